"""Texts joined to one: POLAR's exact format and truncation, and the plain form where no reference is given.

Source: POLAR (arXiv 2507.05197) section 4.1 for the format; the truncation order is that of the official trainer.

    with a reference:  [BOS] P [\\n] REF <split> P [\\n] CAND <reward>
    without one:       [BOS] P [\\n] CAND <reward>

BOS is there where the format names one, as that of a model does whose tokenizer adds it.
`[\\n]` is there with the wrapper "sft" and absent with "pretrain" (whose prompts are text cut off in mid-sentence) or
where the answer is empty. The read-out is the reward token. Messages are joined by newlines, their roles dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmjax.data.packing import Tree
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rmjax.data.formats import Format

SPECIALS = 4
"""Tokens that POLAR's budget sets aside: one read-out token, two separators, one reward token."""


class Joined:
    """The layout of the kinds `polar` and `plain`."""

    reads_messages = False

    def __init__(self, tokenizer: Tokenizer, form: Format, row_tokens: int):
        self.tokenizer, self.form, self.row_tokens = tokenizer, form, row_tokens
        self.reads_references = form.kind == "polar"
        self._split = tokenizer.id(form.split_token) if self.reads_references else -1
        self._reward = tokenizer.id(form.reward_token)
        self._begin = [tokenizer.id(form.bos_token)] if form.bos_token else []

    def begun(self, prompt: str) -> list[int]:
        """A language model goes on from the prompt as it is."""
        return self._begin + self.tokenizer.encode(prompt)

    def sequences(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """A candidate's sequence each, uncut."""
        return self._sequences(c.prompt, reference, c.outputs, c.wrapper)

    def _sequences(self, prompt: str, reference: str | None, outputs: Sequence[str], wrapper: str) -> list[list[int]]:
        def half(answer: str, after: str = "") -> list[int]:
            return self.tokenizer.encode(prompt + ("\n" if wrapper == "sft" and answer else "") + answer, after)

        if reference is None:
            return [[*self._begin, *half(output), self._reward] for output in outputs]
        prefix = [*self._begin, *half(reference), self._split]
        return [[*prefix, *half(output, self.form.split_token), self._reward] for output in outputs]

    def answer_tokens(self, c: Comparison) -> list[int]:
        """Number of tokens of each output behind the prompt; −1 where it shares one with it."""
        before = self.begun(c.prompt + ("\n" if c.wrapper == "sft" else ""))
        whole = [half[:-1] for half in self._sequences(c.prompt, None, c.outputs, c.wrapper)]
        return [len(ids) - len(before) if ids[: len(before)] == before else -1 for ids in whole]

    def whole(self, text: str) -> list[int]:
        """Ids of `[P [\\n] REF <split>] P [\\n] CAND [<reward>]`, both tokens spelled; other special tokens are plain text.

        Raises:
          ValueError: there is more than one separator.
        """
        body, separator = text.removesuffix(self.form.reward_token), self.form.split_token
        halves = body.split(separator) if self.reads_references else [body]
        if len(halves) > 2:
            raise ValueError(
                f"the text has {len(halves) - 1} separators {separator!r} and the format one at most; send prompt, reference and "
                "answer as fields of a record"
            )
        return self._sequences("", halves[0] if halves[1:] else None, halves[-1:], "pretrain")[0]

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether the reward token is the last one."""
        return len(ids) > 0 and ids[-1] == self._reward

    def fits(self, c: Comparison, reference: str | None, sequences: Sequence[list[int]]) -> bool:
        """Whether they are within the format's lengths and, as one tree, within a row."""
        if max(map(len, sequences)) > self.form.max_length or tree_tokens(sequences) > self.row_tokens:
            return False
        cap = self.form.max_response_length
        # A token is at least one byte, but for BOS and a blank put before; so short texts are known to fit without tokenizing.
        texts = [text for text in (reference or "", *c.outputs) if len(text.encode()) + len(self._begin) + 1 > cap]
        return all(len(self.begun(text)) <= cap for text in texts)

    def cut(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """POLAR's rule: answers keep `max_response_length` tokens, then the prompt keeps its tail.

        The same rule with the row instead of the sequence as budget makes a whole group fit its row. Where the answers
        leave less room than 8 prompt tokens (without any, the official code's slice keeps all of the prompt) the
        longest are cut to an equal share. Parts are decoded and tokenized again, which may merge or split at the
        borders, so the budget shrinks until the result fits. What a cut leaves of a character goes as well.
        """
        spare = 0
        while True:
            parts = self._cut_texts(c.prompt, reference, c.outputs, spare)
            sequences = self._sequences(*parts, c.wrapper)
            over = max(max(map(len, sequences)) - self.form.max_length, tree_tokens(sequences) - self.row_tokens)
            if over <= 0:
                return sequences
            spare += over + 1
            if spare > self.form.max_length + self.row_tokens:
                raise ValueError(
                    f"{c.place or c.id}: {len(c.outputs)} candidates cannot fit a row of {self.row_tokens} tokens; "
                    "raise row_tokens or split the group"
                )

    def _cut_texts(
        self, prompt: str, reference: str | None, outputs: Sequence[str], spare: int
    ) -> tuple[str, str | None, list[str]]:
        encode, halves = (
            self.begun,
            1 if reference is None else 2,
        )  # official counts have a BOS each, where there is one
        prompt_ids = encode(prompt)
        answers = [encode(text) for text in ([] if reference is None else [reference]) + list(outputs)]
        row_budget = self.row_tokens - halves - len(outputs) - spare
        pair_budget = self.form.max_length - SPECIALS - spare
        floor = halves * min(len(prompt_ids), 8)  # a few prompt tokens survive whatever the answers' length
        lengths = [len(ids) for ids in answers]
        pair_lengths = [*lengths[: -len(outputs)], max(lengths[-len(outputs) :])]
        cap = min(
            self.form.max_response_length,
            self._equal_share(pair_lengths, pair_budget - floor),
            self._equal_share(lengths, row_budget - floor),
        )
        lengths = [min(length, cap) for length in lengths]
        longest = max(lengths[-len(outputs) :])
        reference_length = 0 if reference is None else lengths[0]
        room = min((pair_budget - reference_length - longest) // halves, (row_budget - sum(lengths)) // halves)
        kept = self.tokenizer.head if self.form.response_cut_side == "right" else self.tokenizer.tail
        texts = [kept(ids, cap) for ids in answers]
        return self.tokenizer.tail(prompt_ids, room), None if reference is None else texts[0], texts[-len(outputs) :]

    @staticmethod
    def _equal_share(lengths: list[int], budget: int) -> int:
        """The largest cap with sum(min(length, cap)) <= budget (at least 1)."""
        low, high = 1, max(lengths, default=1)
        while low < high:
            middle = (low + high + 1) // 2
            fits = sum(min(length, middle) for length in lengths) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def tree_tokens(sequences: Sequence[list[int]]) -> int:
    """Tokens of a row that these sequences take as one tree."""
    shared = Tree.shared_length(sequences)
    return shared + sum(len(s) - shared for s in sequences)
