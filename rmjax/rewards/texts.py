"""What of an output is rewarded: without its thinking, or within a tag; and rules on its length and form."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, Reward, Values

OPEN, CLOSE = "<think>", "</think>"


def without_thinking(text: str) -> str:
    """The text behind its first `</think>`; "" where a block begins the text and never ends; a text without one as it is.

    The opening mark may be missing: some chat templates write it before the answer begins.
    """
    before, closed, after = text.partition(CLOSE)
    if text.lstrip().startswith(OPEN):
        return after.lstrip() if closed else ""
    return after.lstrip() if closed and OPEN not in before else text


def within(tag: str) -> Callable[[str], str]:
    """text → what stands in its last `<tag>…</tag>`; "" where there is none."""
    pattern = re.compile(rf"<{re.escape(tag)}>((?:(?!<{re.escape(tag)}>).)*?)</{re.escape(tag)}>", re.DOTALL)

    def inside(text: str) -> str:
        found = pattern.findall(text)
        return found[-1].strip() if found else ""

    return inside


@dataclasses.dataclass(frozen=True)
class Reading:
    """A reward of what `read` makes of each output; records keep their own."""

    reward: Reward
    read: Callable[[str], str]

    @property
    def name(self) -> str:
        """That of the reward."""
        return self.reward.name

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        # Columns are about the outputs as they were: a reward reads texts, never ids.
        return self.reward(
            [dataclasses.replace(c, outputs=tuple(map(self.read, c.outputs)), columns={}) for c in records]
        )


@dataclasses.dataclass(frozen=True)
class Overlong:
    """A verifier: 0 up to `longest` − `buffer`, from there falling to −1 at `longest` (DAPO, arXiv 2503.14476, equation 13).

    ValueError unless 0 < buffer ≤ longest.
    """

    longest: int  # in units of `measure`
    buffer: int
    measure: Callable[[str], int] = len  # of a text: characters, or a tokenizer's count

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.longest:
            raise ValueError(f"longest is {self.longest} and buffer {self.buffer}; want 0 < buffer <= longest")

    def __call__(self, prompt: str, output: str, references: Sequence[str]) -> float | Failure:
        """See `reward.Verifier`."""
        del prompt, references
        over = self.measure(output) - (self.longest - self.buffer)
        return -min(max(over / self.buffer, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Matches:
    """A verifier: `right` where a regular expression matches all of the output, `.` line ends too, else `wrong`.

    ValueError for a pattern that is none.
    """

    pattern: str
    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"pattern is {self.pattern!r}, not a regular expression: {error}") from error

    def __call__(self, prompt: str, output: str, references: Sequence[str]) -> float | Failure:
        """See `reward.Verifier`."""
        del prompt, references
        return self.right if re.fullmatch(self.pattern, output, re.DOTALL) else self.wrong
