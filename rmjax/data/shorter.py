"""Ever less of a conversation that is too long: an ordered sequence of states, each made when it is asked for."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from rmjax.data.messages import SYSTEM, USER, Message
from rmjax.data.tokenizer import Tokenizer

FLOOR = 8
"""Tokens that a turn of the prompt keeps while there is anything else to cut."""
Messages = tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Shorter:
    """(prompt, answers) in the order in which `Turns.cut` tries them; every turn is encoded once.

    Attributes:
      longest: tokens that an answer may have.
      left: answers keep their ends rather than their beginnings.
    """

    tokenizer: Tokenizer
    prompt: Messages
    answers: Sequence[Messages]
    longest: int
    left: bool
    _known: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return 1 + len(self.starts) + len(self._turns) + len(self._answers) + len(self._system)

    def __getitem__(self, n: int) -> tuple[Messages, list[Messages]]:
        if n == 0:
            return self.prompt, self._shown(self.cap)
        if n <= len(self.starts):
            return (*self.system, *self.rest[self.starts[n - 1] :]), self._shown(self.cap)
        n -= 1 + len(self.starts)
        if n < len(self._turns):
            return (*self.system, *self._kept(*self._turns[n])), self._shown(self.cap)
        kept, n = self._kept(len(self.last), 0), n - len(self._turns)
        if n < len(self._answers):
            return (*self.system, *kept), self._shown(self._answers[n])
        count = self._system[n - len(self._answers)]
        system = (self._cut(message, count, self.tokenizer.head) for message in self.system)
        return (*system, *kept), self._shown(self._answers[-1] if self._answers else self.cap)

    @functools.cached_property
    def cap(self) -> int:
        """Tokens of the longest answer, as it may be."""
        return min(self.longest, max(sum(len(self._ids(message)) for message in turns) for turns in self.answers))

    @functools.cached_property
    def system(self) -> Messages:
        """The system's turns of the prompt, which stay longest."""
        return tuple(message for message in self.prompt if message.role == SYSTEM)

    @functools.cached_property
    def rest(self) -> Messages:
        """The others."""
        return tuple(message for message in self.prompt if message.role != SYSTEM)

    @functools.cached_property
    def starts(self) -> list[int]:
        """Turns of the user's at which the rest may begin instead."""
        return [i for i, message in enumerate(self.rest) if message.role == USER and i]

    @functools.cached_property
    def last(self) -> Messages:
        """The turns from the user's last one on."""
        return self.rest[self.starts[-1] if self.starts else 0 :]

    @functools.cached_property
    def _turns(self) -> list[tuple[int, int]]:
        """(which of the last turns, tokens that it keeps)."""
        sizes = [len(self._ids(message)) for message in self.last]
        return [(i, count) for i, size in enumerate(sizes) for count in _fewer(size, FLOOR)]

    @functools.cached_property
    def _answers(self) -> list[int]:
        return list(_fewer(self.cap, 1))

    @functools.cached_property
    def _system(self) -> list[int]:
        return list(_fewer(max((len(self._ids(message)) for message in self.system), default=0), 0))

    def _kept(self, which: int, count: int) -> Messages:
        """The last turns: those before `which` cut as far as they may be, that one to its last `count` tokens."""
        tail = self.tokenizer.tail
        before = (self._cut(message, FLOOR, tail) for message in self.last[:which])
        one = (self._cut(message, count, tail) for message in self.last[which : which + 1])
        return (*before, *one, *self.last[which + 1 :])

    def _cut(self, message: Message, count: int, part: Callable[[Sequence[int], int], str]) -> Message:
        ids = self._ids(message)
        return message if len(ids) <= count else dataclasses.replace(message, content=part(ids, count))

    def _shown(self, cap: int) -> list[Messages]:
        return [self._answer(turns, cap) for turns in self.answers]

    def _answer(self, turns: Messages, cap: int) -> Messages:
        """The answer's first `cap` tokens, or its last ones."""
        kept: list[Message] = []
        for message in reversed(turns) if self.left else turns:
            kept.append(self._cut(message, cap, self.tokenizer.tail if self.left else self.tokenizer.head))
            cap -= len(self._ids(message))
            if cap <= 0:
                break
        return tuple(reversed(kept)) if self.left else tuple(kept)

    def _ids(self, message: Message) -> list[int]:
        if message.content not in self._known:
            self._known[message.content] = self.tokenizer.encode(message.content)
        return self._known[message.content]


def first(states: Shorter, fits: Callable[[int], bool]) -> int:
    """The first state that fits; what comes after one that fits does, too. −1 where none does.

    Where whole turns are left out, the search begins at the fewest, so that what it lays out is about as long as what it keeps.
    """
    fewest = len(states.starts)
    if fits(fewest):
        step, good = 1, fewest
        while good >= step and fits(good - step):
            good, step = good - step, 2 * step
        return _between(max(good - step, -1), good, fits)
    end = len(states) - 1
    return _between(fewest, end, fits) if end > fewest and fits(end) else -1


def _between(bad: int, good: int, fits: Callable[[int], bool]) -> int:
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if fits(middle) else (middle, good)
    return good


def _fewer(count: int, least: int) -> Iterator[int]:
    """Counts below `count` down to `least`, each an eighth less than the one before."""
    while count > least:
        count = max(least, min(count - 1, count * 7 // 8))
        yield count
