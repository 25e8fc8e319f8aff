"""Records to token trees: POLAR's exact format and truncation, and the plain form where no reference is given.

Source: POLAR (arXiv 2507.05197) section 4.1 for the format; the truncation order is that of the official trainer.

    with a reference:  P [\\n] REF <split> P [\\n] CAND <reward>
    without one:       P [\\n] CAND <reward>

`[\\n]` is there with the wrapper "sft" and absent with "pretrain" (whose prompts are text cut off in mid-sentence) or
where the answer is empty. The read-out is the reward token.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.columns import tree_columns, uncut
from rmjax.data.packing import Tree
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer

SCORED_TOGETHER = 16  # candidates a tree at most when scoring; more would only make the batch's branch axis longer
SPECIALS = 4
"""Tokens that POLAR's budget sets aside: one read-out token, two separators, one reward token."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How a record becomes tokens; saved with the model, since a score depends on it."""

    split_token: str  # between the reference half and the candidate half
    reward_token: str  # read-out
    max_length: int = 16384  # tokens of one sequence: prefix and one candidate
    max_response_length: int = 4096  # tokens of a reference or a candidate
    response_cut_side: str = "right"  # "right" keeps the head (official trainer), "left" the tail

    def __post_init__(self) -> None:
        if self.response_cut_side not in ("left", "right"):
            raise ValueError(f"response_cut_side is {self.response_cut_side!r}; choose left or right")
        if self.max_response_length < 1:
            raise ValueError(f"max_response_length is {self.max_response_length}; it must be at least 1")
        if self.max_length <= SPECIALS + 2:
            raise ValueError(f"max_length is {self.max_length}; it must leave room for text beside {SPECIALS} specials")


class Encoder:
    """Turns a record into one tree per reference (one tree in all without references) and counts what it had to cut."""

    def __init__(self, tokenizer: Tokenizer, form: Format, row_tokens: int):
        self.tokenizer, self.form, self.row_tokens = tokenizer, form, row_tokens
        self.counts: Counter[str] = Counter()
        self._split = tokenizer.id(form.split_token)
        self._reward = tokenizer.id(form.reward_token)

    def trees(self, c: Comparison, record: int = -1) -> list[Tree]:
        """`record` is the row's index in its source, kept so that a bad batch can be traced back."""
        self._count_specials(c)
        return [self._tree(c, reference, record) for reference in c.references or (None,)]

    def scoring_trees(self, c: Comparison, record: int = -1) -> list[tuple[list[int], Tree]]:
        """(which outputs, tree) pairs for scoring, over all references.

        Every candidate is cut by itself and outputs are spread over as many trees as their length asks for, so that a reward
        depends on nothing else in the record. (Training cuts a group as one: POLAR takes the smaller prompt of the pair.)
        """
        self._count_specials(c)
        found = []
        for reference in c.references or (None,):
            whole = self._sequences(c.prompt, reference, c.outputs, c.wrapper)
            alone = [self._alone(c, reference, n, ids) for n, ids in enumerate(whole)]
            self.counts["cut"] += any(ids is not uncut for ids, uncut in zip(alone, whole, strict=True))
            parts = self._parts(range(len(whole)), alone)
            found += [(part, self._unranked([alone[n] for n in part], record)) for part in parts]
        return found

    def _alone(self, c: Comparison, reference: str | None, n: int, ids: list[int]) -> list[int]:
        if self._fits([ids], reference, c.outputs[n : n + 1]):
            return ids
        return self._cut_sequences(dataclasses.replace(c, outputs=c.outputs[n : n + 1]), reference)[0]

    def _parts(self, members: Iterable[int], sequences: list[list[int]]) -> list[list[int]]:
        """Consecutive members together as long as their tree fits the row."""
        parts: list[list[int]] = []
        for n in members:
            together = [*parts[-1], n] if parts else [n]
            fits = (
                len(together) <= SCORED_TOGETHER and _tree_tokens([sequences[i] for i in together]) <= self.row_tokens
            )
            if parts and fits:
                parts[-1] = together
            else:
                parts.append([n])
        return parts

    @staticmethod
    def _unranked(sequences: list[list[int]], record: int) -> Tree:
        return Tree.from_sequences(sequences, ranks=[np.inf] * len(sequences), record=record)

    def _count_specials(self, c: Comparison) -> None:
        if any(map(self.tokenizer.mentions_special, (c.prompt, *c.references, *c.outputs))):
            self.counts["special_token_in_text"] += 1

    def _tree(self, c: Comparison, reference: str | None, record: int) -> Tree:
        sequences = self._sequences(c.prompt, reference, c.outputs, c.wrapper)
        facts = tree_columns(c.columns, sequences, lambda: self._answer_tokens(c), c.place)
        if not self._fits(sequences, reference, c.outputs):
            sequences = self._cut_sequences(c, reference)
            facts = uncut(facts, c.place)
            self.counts["cut"] += 1
        ranks = c.ranks if c.ranks is not None else [np.inf] * len(c.outputs)
        return Tree.from_sequences(
            sequences,
            ranks=ranks,
            weight=c.weight,
            margin=c.margin,
            type=-1 if c.type is None else c.type,
            record=record,
            columns=facts,
        )

    def _answer_tokens(self, c: Comparison) -> list[int]:
        """Number of tokens of each output behind the prompt."""
        encode = self.tokenizer.encode
        before = encode(c.prompt + ("\n" if c.wrapper == "sft" else ""))
        whole = [half[:-1] for half in self._sequences(c.prompt, None, c.outputs, c.wrapper)]
        return [len(ids) - len(before) if ids[: len(before)] == before else -1 for ids in whole]

    def _sequences(self, prompt: str, reference: str | None, outputs: Sequence[str], wrapper: str) -> list[list[int]]:
        def half(answer: str) -> list[int]:
            return self.tokenizer.encode(prompt + ("\n" if wrapper == "sft" and answer else "") + answer)

        prefix = [] if reference is None else [*half(reference), self._split]
        return [[*prefix, *half(output), self._reward] for output in outputs]

    def _fits(self, sequences: list[list[int]], reference: str | None, outputs: Sequence[str]) -> bool:
        if max(map(len, sequences)) > self.form.max_length or _tree_tokens(sequences) > self.row_tokens:
            return False
        cap = self.form.max_response_length
        # A token is at least one byte, so short texts need no tokenizing to be known to fit.
        texts = [text for text in (reference or "", *outputs) if len(text.encode()) > cap]
        return all(len(self.tokenizer.encode(text)) <= cap for text in texts)

    def _cut_sequences(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """POLAR's rule: answers keep `max_response_length` tokens, then the prompt keeps its tail.

        The same rule with the row instead of the sequence as budget makes a whole group fit its row. Where the answers
        leave less room than 8 prompt tokens (without any, the official code's slice keeps all of the prompt) the
        longest are cut to an equal share. Parts are decoded and tokenized again, which may merge or split at the
        borders, so the budget shrinks until the result fits.
        """
        spare = 0
        while True:
            parts = self._cut_texts(c.prompt, reference, c.outputs, spare)
            sequences = self._sequences(*parts, c.wrapper)
            over = max(max(map(len, sequences)) - self.form.max_length, _tree_tokens(sequences) - self.row_tokens)
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
        encode, halves = self.tokenizer.encode, 1 if reference is None else 2
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
        answers = [self._cut_answer(ids, cap) for ids in answers]
        longest = max(len(ids) for ids in answers[-len(outputs) :])
        reference_length = 0 if reference is None else len(answers[0])
        room = min(
            (pair_budget - reference_length - longest) // halves, (row_budget - sum(map(len, answers))) // halves
        )
        decode = self.tokenizer.decode
        kept = prompt_ids[-room:] if room > 0 else []  # a slice of [-0:] would keep everything
        texts = [decode(ids) for ids in answers]
        return decode(kept), None if reference is None else texts[0], texts[-len(outputs) :]

    def _cut_answer(self, ids: list[int], cap: int) -> list[int]:
        return ids[:cap] if self.form.response_cut_side == "right" else ids[-cap:]

    @staticmethod
    def _equal_share(lengths: list[int], budget: int) -> int:
        """The largest cap with sum(min(length, cap)) <= budget (at least 1)."""
        low, high = 1, max(lengths, default=1)
        while low < high:
            middle = (low + high + 1) // 2
            fits = sum(min(length, middle) for length in lengths) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _tree_tokens(sequences: list[list[int]]) -> int:
    shared = Tree.shared_length(sequences)
    return shared + sum(len(s) - shared for s in sequences)


def text_trees(
    tokenizer: Tokenizer,
    end_token: str,
    row_tokens: int,
    counts: Counter[str],
    text: Mapping[str, Any],
    record: int,
) -> list[Tree]:
    """A tree for language-model training from {"prompt", "output", "type"?}: the loss is on the output and the end token.

    `prompt` is a template in which special tokens count; it may be empty, and then all of the text is learned. An empty
    `end_token` is none.

    Args:
      row_tokens: a longer text keeps its head and loses the rest, the end token included.
      counts: gets one more `cut` for that, `prompt_fills_row` where nothing is left to learn from, and
        `special_token_in_text` where the output spells a special token, which stays ordinary text.
      record: the row's index in its source.
    """
    before = tokenizer.encode_marked(text.get("prompt", ""))
    ids = before + tokenizer.encode(text["output"]) + ([tokenizer.id(end_token)] if end_token else [])
    counts["cut"] += len(ids) > row_tokens
    counts["prompt_fills_row"] += len(before) >= row_tokens
    counts["special_token_in_text"] += tokenizer.mentions_special(text["output"])
    facts = {"record": record, "type": -1 if text.get("type") is None else text["type"]}
    return [Tree.for_language_model(ids[:row_tokens], learned_from=max(1, len(before)), **facts)]
