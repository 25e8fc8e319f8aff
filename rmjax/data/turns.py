"""Messages through a chat template: the layout of the kind `chat`, and what it leaves out of conversations that are too long.

A sequence is the prompt's turns and the candidate's, up to the end token of the last one, where the reward is read. A last
turn of the assistant in the prompt is one that the candidates continue.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmjax.data.chat import Chat, TemplateError
from rmjax.data.errors import RecordError
from rmjax.data.joined import tree_tokens
from rmjax.data.messages import ASSISTANT, USER, Message, messages_of
from rmjax.data.record import Comparison
from rmjax.data.shorter import Messages, Shorter, first
from rmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rmjax.data.formats import Format


class Turns:
    """The layout of the kind `chat`; the format is a completed one."""

    reads_messages = True
    reads_references = False

    def __init__(self, tokenizer: Tokenizer, form: Format, row_tokens: int):
        self.tokenizer, self.form, self.row_tokens = tokenizer, form, row_tokens
        self.chat = Chat(form.template, tokenizer, form.end_token, form.bos_token, form.date, form.eos_token)

    def begun(self, prompt: str) -> list[int]:
        """Up to where the assistant speaks, or goes on with its last turn; TemplateError where the template refuses that."""
        return self.chat.begun(messages_of(prompt, USER))

    def sequences(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """A candidate's sequence each, uncut.

        Raises:
          RecordError: the template refuses the conversation, one of two turns of the user's in a row, say.
        """
        return self._laid_out(c, *self._messages(c))

    def answer_tokens(self, c: Comparison) -> list[int]:
        """Number of tokens of each output before its end token; −1 where the template lays it out otherwise than it begins."""
        try:
            before = self.begun(c.prompt)
        except TemplateError as error:
            raise refused(c, error) from error
        whole = self._laid_out(c, *self._messages(c))
        behind = len(before) + len(self._ending)
        return [len(ids) - behind if ids[: len(before)] == before else -1 for ids in whole]

    def whole(self, text: str) -> list[int]:
        """Ids of a conversation that a template has written, its special tokens spelled: a user who types one is obeyed.

        Raises:
          ValueError: no special token of the template's turns is in it, so that another template has written it, or none.
        """
        if self._between.isdisjoint(self.tokenizer.split(text)):
            raise ValueError(
                f"the text has none of the special tokens of the model's chat template, such as {min(self._between)!r}; send "
                "prompt and answer as messages"
            )
        before, end, behind = text.rpartition(self.form.end_token)
        ids = self.tokenizer.encode_marked(text)
        if self.closes(ids):
            ids = ids[: -len(self._ending)]
        elif end and self.chat.is_behind(behind):
            ids = self.tokenizer.encode_marked(before)
        first = self._shown[:1] if self._shown[0] == self._bos and ids[:1] != self._shown[:1] else []
        return [*first, *ids, *self._ending]

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether they end as the template ends a turn."""
        return list(ids[-len(self._ending) :]) == self._ending

    @functools.cached_property
    def _shown(self) -> list[int]:
        """A conversation of one word each."""
        return self.chat.ended((Message(USER, "q"), Message(ASSISTANT, "a")), self.form.read_out == "last")

    @functools.cached_property
    def _between(self) -> set[str]:
        """Special tokens that the template writes before the end; its BOS, which others have, too, if it is alone."""
        before = set(self._shown[: len(self._shown) - len(self._ending)])
        found = {token for token in self.tokenizer.special if self.tokenizer.id(token) in before}
        return found - {self.form.bos_token} or {self.form.bos_token, self.form.end_token} - {""}

    @functools.cached_property
    def _bos(self) -> int:
        return self.tokenizer.id(self.form.bos_token) if self.form.bos_token else -1

    @functools.cached_property
    def _ending(self) -> list[int]:
        """The end token, and what stands behind it where the reward is read there."""
        end = self.tokenizer.id(self.form.end_token)
        return self._shown[len(self._shown) - 1 - self._shown[::-1].index(end) if end in self._shown else -1 :]

    def fits(self, c: Comparison, reference: str | None, sequences: Sequence[list[int]]) -> bool:
        """Whether they are within the format's lengths and, as one tree, within a row."""
        cap = self.form.max_response_length
        return self._over(sequences) <= 0 and all(self._size(answer) <= cap for answer in self._messages(c)[1])

    def cut(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """Answers keep `max_response_length` tokens. The prompt then loses its oldest turns, but neither the system's nor
        those from the user's last one on; then these turns lose their beginnings down to 8 tokens each, the answers are
        shortened further, and at last the system's turns.

        Raises:
          ValueError: what is left still fits no row.
        """
        states = Shorter(
            self.tokenizer, *self._messages(c), self.form.max_response_length, self.form.response_cut_side == "left"
        )
        found = first(states, lambda n: self._over(self._laid_out(c, *states[n])) <= 0)
        if found >= 0:
            return self._laid_out(c, *states[found])
        raise ValueError(
            f"{c.place or c.id}: {len(c.outputs)} candidates cannot fit a row of {self.row_tokens} tokens; "
            "raise row_tokens or split the group"
        )

    def _messages(self, c: Comparison) -> tuple[Messages, list[Messages]]:
        return messages_of(c.prompt, USER) if c.prompt else (), [messages_of(o, ASSISTANT) for o in c.outputs]

    def _laid_out(self, c: Comparison, prompt: Messages, answers: Sequence[Messages]) -> list[list[int]]:
        whole = self.form.read_out == "last"
        try:
            return [self.chat.ended(joined(prompt, answer), whole) for answer in answers]
        except TemplateError as error:
            raise refused(c, error) from error

    def _over(self, sequences: Sequence[list[int]]) -> int:
        """Tokens too many."""
        return max(max(map(len, sequences)) - self.form.max_length, tree_tokens(sequences) - self.row_tokens)

    def _size(self, turns: Messages) -> int:
        return sum(len(self.tokenizer.encode(message.content)) for message in turns)


def refused(c: Comparison, error: TemplateError) -> RecordError:
    """The error of a record that a template refuses."""
    return RecordError(c.place or c.id, "", str(error), "correct or drop the record, or use another format.template")


def joined(prompt: Messages, answer: Messages) -> Messages:
    """The conversation: an open last turn of the assistant in the prompt goes on in the answer's first."""
    if prompt and prompt[-1].role == answer[0].role == ASSISTANT and not prompt[-1].more:
        first = dataclasses.replace(answer[0], content=prompt[-1].content + answer[0].content)
        return (*prompt[:-1], first, *answer[1:])
    return (*prompt, *answer)
