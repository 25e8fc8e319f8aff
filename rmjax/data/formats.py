"""Records to token trees, by a format that is saved with the model, since a score depends on it.

* `polar`: POLAR's exact format and truncation (`joined.py`), which drops roles; where no reference is given, its plain form.
* `plain`: that plain form for every record, whatever references it has.
* `chat`: a Jinja chat template over the messages (`turns.py`), read at the token that ends the answer's turn.
"""

import dataclasses
import datetime
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rmjax.data.chat import TemplateError, between_turns, end_of_turn, template_text
from rmjax.data.columns import tree_columns, uncut
from rmjax.data.joined import SPECIALS, Joined, tree_tokens
from rmjax.data.messages import USER, Conversation, Message, messages_of, text_of
from rmjax.data.packing import Tree
from rmjax.data.record import Comparison, select
from rmjax.data.tokenizer import Tokenizer
from rmjax.data.turns import Turns, refused

KINDS = ("polar", "chat", "plain")
CHAT_FIELDS = ("template", "end_token", "bos_token", "eos_token", "read_out", "date")
SCORED_TOGETHER = 16  # candidates a tree at most when scoring; more would only make the batch's branch axis longer


@dataclasses.dataclass(frozen=True)
class Format:
    """How a record becomes tokens."""

    split_token: str = ""  # polar: between the reference half and the candidate half
    reward_token: str = ""  # polar, plain: read-out
    max_length: int = 16384  # tokens of one sequence: prefix and one candidate
    max_response_length: int = 4096  # tokens of a reference or a candidate
    response_cut_side: str = "right"  # "right" keeps the head (official trainer), "left" the tail
    kind: str = "polar"  # one of KINDS; older descriptions lack it
    template: str = ""  # chat: Jinja text, a file or a shipped template; "" = the model's own
    end_token: str = ""  # chat: ends a turn, "" = what the template writes | language model: ends a text, "" = nothing
    bos_token: str = (
        ""  # chat: the template's `bos_token` | polar, plain: begins a sequence; "" = as the tokenizer does
    )
    eos_token: str = ""  # chat: the template's `eos_token`, "" = the tokenizer's own; older descriptions lack it
    read_out: str = "end"  # chat: "end" token of the last turn | "last" token, blanks behind the end token included
    date: str = ""  # chat: ISO date for a template that asks for it; "" = the day on which the model is made

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("response_cut_side", ("left", "right")), ("read_out", ("end", "last"))):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"format.{name} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}")
        try:
            _ = self.date and datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"config.format.date is {self.date!r}; write YYYY-MM-DD, or leave it empty") from None
        if self.max_response_length < 1:
            raise ValueError(f"max_response_length is {self.max_response_length}; it must be at least 1")
        if self.max_length <= SPECIALS + 2:
            raise ValueError(f"max_length is {self.max_length}; it must leave room for text beside {SPECIALS} specials")


def completed(form: Format, tokenizer: Tokenizer) -> Format:
    """The format with all that was left to the model: the template's text, its tokens, its day. Complete ones stay.

    Raises:
      FileNotFoundError: no such template.
      TokenizerError: a token is not in the vocabulary.
      ValueError: a chat format without a template, or a template that needs a token and is given none.
    """
    if form.kind != "chat":
        begins = form.bos_token or (tokenizer.bos_token if tokenizer.adds_bos else "")
        return dataclasses.replace(form, bos_token=begins)
    source = template_text(form.template) if form.template else tokenizer.chat_template
    if not source:
        raise ValueError("format.template is empty, and the model has none of its own; name a file, or chatml")
    end, bos = form.end_token or end_of_turn(source, tokenizer), form.bos_token or tokenizer.bos_token
    if not end:
        raise ValueError("format.template writes no special token behind an answer; set format.end_token")
    if "bos_token" in source and not bos:
        raise ValueError("format.template asks for bos_token, and the model has none; set format.bos_token")
    eos = (form.eos_token or tokenizer.eos_token or end) if "eos_token" in source else form.eos_token
    for token in filter(None, (end, bos, eos)):
        tokenizer.id(token)
    if asked := re.search(r"\b(pad|unk|sep|cls|mask)_token\b", source):
        raise ValueError(
            f"format.template asks for {asked[0]}, which is not given to templates; write the token itself there"
        )
    today = datetime.date.today().isoformat() if "strftime_now" in source else ""
    return dataclasses.replace(
        form, template=source, end_token=end, bos_token=bos, eos_token=eos, date=form.date or today
    )


def stored(described: Mapping[str, Any]) -> Format:
    """A format as a model's description holds it; in older ones a template's `eos_token` was the end of a turn.

    Raises:
      TypeError, ValueError: it is none.
    """
    older = "eos_token" not in described and "eos_token" in described.get("template", "")
    return Format(**described, **({"eos_token": described["end_token"]} if older else {}))


def own_tokens(form: Format) -> list[str]:
    """Tokens that the format alone may write. One of one character, a newline's say, stays a text's."""
    of_kind = {"polar": (form.split_token, form.reward_token), "plain": (form.reward_token,), "chat": (form.end_token,)}
    return [token for token in of_kind[form.kind] if len(token) > 1]


def refuse_longer(form: Format, longest: int) -> None:
    """ValueError where texts may be longer than `models.rope.longest_text` says; 0 = there is no such length."""
    if longest and form.max_length > longest:
        raise ValueError(
            f"format.max_length is {form.max_length}, and the model's rotary positions are made for texts up to {longest}; "
            "lower it to that"
        )


class Layout(Protocol):
    """What a kind of format does: one record's token sequences, whole or cut."""

    reads_messages: bool
    reads_references: bool

    def sequences(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """A candidate's sequence each, uncut."""

    def fits(self, c: Comparison, reference: str | None, sequences: Sequence[list[int]]) -> bool:
        """Whether they may stay uncut."""

    def cut(self, c: Comparison, reference: str | None) -> list[list[int]]:
        """Sequences that fit; ValueError where none do."""

    def begun(self, prompt: str) -> list[int]:
        """What a language model is given, to go on from it."""

    def answer_tokens(self, c: Comparison) -> list[int]:
        """Number of tokens of each uncut output, which stand before the read-out; −1 where it shares one with the prompt."""

    def whole(self, text: str) -> list[int]:
        """Ids of a text that is laid out already; ValueError where it is not."""

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether the read-out stands at their end."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A candidate's tokens for scoring."""

    ids: list[int]
    length: int  # before cutting
    cut: bool


class Encoder:
    """Turns a record into one tree per reference (one tree in all without references) and counts what it had to change.

    Attributes:
      form: the format, completed.
      counts: records that were `cut`, that spell a special token in a text (it stays ordinary text), whose
        `references_unread` or `message_keys_unread` (tool calls, say) the format has no place for; candidates that are
        `identical_after_encoding` to another one ranked differently, and `groups_without_pair` that this left; texts
        `read_elsewhere_by_transformers`, which end with the pad id of a model of the hub (`Tokenizer.skipped_at_end`).
    """

    def __init__(self, tokenizer: Tokenizer, form: Format, row_tokens: int):
        self.form, self.row_tokens = completed(form, tokenizer), row_tokens
        forged = between_turns(self.form.template, tokenizer) if form.kind == "chat" else []
        self.tokenizer = tokenizer.guarding([*own_tokens(self.form), *forged])
        self.counts: Counter[str] = Counter()
        kind = Turns if form.kind == "chat" else Joined
        self._layout: Layout = kind(self.tokenizer, self.form, row_tokens)

    def trees(self, c: Comparison, record: int = -1) -> list[Tree]:
        """For training. Candidates of equal tokens that are ranked differently become one, of their mean rank: no pair of
        them can be learned. A group that this leaves without a pair gives no tree.

        Args:
          record: the row's index in its source, kept so that a bad batch can be traced back.

        Raises:
          ValueError: a group that no cutting makes fit a row, or that the template refuses.
        """
        found = []
        for sequences, cut in self._trained(c):
            kept, sequences = self._told_apart(c, sequences)
            if kept is None:
                continue
            columns = tree_columns(
                kept.columns, sequences, functools.partial(self._layout.answer_tokens, kept), c.place
            )
            if kept.scores is not None:
                columns["score_RGN"] = kept.scores
            found.append(
                Tree.from_sequences(
                    sequences,
                    ranks=kept.ranks if kept.ranks is not None else [np.inf] * len(sequences),
                    weight=c.weight,
                    margin=c.margin,
                    type=-1 if c.type is None else c.type,
                    record=record,
                    columns=uncut(columns, c.place) if cut else columns,
                )
            )
        return found

    def sequences(self, c: Comparison) -> list[list[list[int]]]:
        """[reference][candidate] → token ids as in training, where a group is cut as one."""
        return [sequences for sequences, _ in self._trained(c)]

    def _trained(self, c: Comparison) -> list[tuple[list[list[int]], bool]]:
        """The same, each with whether it is cut."""
        self._count_texts(c)
        found = []
        for reference in self._references(c):
            sequences = self._layout.sequences(c, reference)
            cut = not self._layout.fits(c, reference, sequences)
            self.counts.update(["cut"] * cut)
            found.append((self._layout.cut(c, reference) if cut else sequences, cut))
            self._count_ends(found[-1][0])
        return found

    def _told_apart(self, c: Comparison, sequences: list[list[int]]) -> tuple[Comparison | None, list[list[int]]]:
        """The record without orders between candidates of equal tokens, and its sequences; None where no order is left."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for n, ids in enumerate(sequences):
            alike.setdefault(tuple(ids), []).append(n)
        equal = [members for members in alike.values() if len(members) > 1]
        targets = c.columns.get("pair_target")
        if targets is not None:
            return self._without_targets(c, equal, targets), sequences
        ranks = c.ranks or ()
        mixed = [members for members in equal if ranks and len({ranks[n] for n in members}) > 1]
        if not mixed:
            return c, sequences
        self.counts["identical_after_encoding"] += sum(map(len, mixed))
        mean = {members[0]: sum(ranks[n] for n in members) / len(members) for members in mixed}
        dropped = {n for members in mixed for n in members[1:]}
        kept = [n for n in range(len(sequences)) if n not in dropped]
        new = tuple(mean.get(n, ranks[n]) for n in kept)
        if len(set(new)) < 2:
            self.counts["groups_without_pair"] += 1
            return None, []
        return dataclasses.replace(select(c, kept), ranks=new), [sequences[n] for n in kept]

    def _without_targets(
        self, c: Comparison, equal: list[list[int]], targets: Sequence[Sequence[float]]
    ) -> Comparison | None:
        """The record whose soft order says nothing (−1) of candidates of equal tokens."""
        of = {n: members[0] for members in equal for n in members}
        same = [[i != j and of.get(i, -1) == of.get(j, -2) for j in range(len(targets))] for i in range(len(targets))]
        mixed = {
            i
            for i, row in enumerate(same)
            for j, is_same in enumerate(row)
            if is_same and targets[i][j] not in (-1, 0.5)
        }
        if not mixed:
            return c
        self.counts["identical_after_encoding"] += len(mixed)
        new = tuple(
            tuple(-1.0 if is_same else target for target, is_same in zip(*rows, strict=True))
            for rows in zip(targets, same, strict=True)
        )
        if not any(target >= 0 for i, row in enumerate(new) for j, target in enumerate(row) if i != j):
            self.counts["groups_without_pair"] += 1
            return None
        return dataclasses.replace(c, columns={**c.columns, "pair_target": new})

    def scoring_trees(self, c: Comparison, record: int = -1) -> list[tuple[list[list[int]], Tree]]:
        """(which outputs each branch is of, tree) pairs for scoring, over all references.

        Every candidate is cut by itself and outputs are spread over as many trees as their length asks for, so that a reward
        depends on nothing else in the record; candidates of equal tokens are one branch, and so of equal reward. (Training
        cuts a group as one: POLAR takes the smaller prompt of the pair.)
        """
        found = []
        for scored in self.scored(c):
            alone = [one.ids for one in scored]
            members: dict[tuple[int, ...], list[int]] = {}
            for n, ids in enumerate(alone):
                members.setdefault(tuple(ids), []).append(n)
            branches = list(members.values())
            sequences = [alone[branch[0]] for branch in branches]
            for part in self._parts(range(len(branches)), sequences):
                found.append(([branches[b] for b in part], self._unranked([sequences[b] for b in part], record)))
        return found

    def scored(self, c: Comparison, cutting: bool = True) -> list[list[Scored]]:
        """[reference][candidate] → its tokens for scoring, each candidate cut by itself.

        Args:
          cutting: otherwise what is too long stays whole, and is only marked as `cut`: how to cut it is not found out.
        """
        self._count_texts(c)
        found = []
        for reference in self._references(c):
            whole = self._layout.sequences(c, reference)
            cut = [not self._layout.fits(_only(c, n), reference, [ids]) for n, ids in enumerate(whole)]
            alone = [
                self._layout.cut(_only(c, n), reference)[0] if cutting and cut[n] else ids
                for n, ids in enumerate(whole)
            ]
            self.counts["cut"] += any(cut)
            self._count_ends(alone)
            found.append([Scored(*one) for one in zip(alone, map(len, whole), cut, strict=True)])
        return found

    def whole(self, text: str) -> list[int]:
        """Ids of one text that holds prompt and answer as the format lays them out, its special tokens spelled; what the format
        ends a text with is added where it is missing. It is not cut.

        Raises:
          ValueError: the text is not laid out by this format.
        """
        return self._layout.whole(text)

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether ids end with the token at which the format reads the reward."""
        return self._layout.closes(ids)

    def language_model_trees(self, c: Comparison, record: int = -1, ended: bool = True) -> list[Tree]:
        """A tree for language-model training on a record's one output: the loss is on it and the end token.

        The prompt may be empty, and then all of the text is learned. A longer text than a row keeps its head and loses the
        rest, the end token included: counted as `cut`, and as `prompt_fills_row` where nothing is left to learn from.

        Args:
          record: the row's index in its source.
          ended: False for texts that just stop; the end token then is not learned.
        """
        try:
            before, after = self.continued(c.prompt, c.outputs[0])
        except TemplateError as error:
            raise refused(c, error) from error
        ids = before + after + ([self.tokenizer.id(self.form.end_token)] if ended and self.form.end_token else [])
        self._count_texts(c)
        cut = len(ids) > self.row_tokens
        self.counts["cut"] += cut
        self.counts["prompt_fills_row"] += len(before) >= self.row_tokens
        columns = tree_columns(c.columns, [[*before, *after, 0]], lambda: [len(after)], c.place)
        tree = Tree.for_language_model(
            ids[: self.row_tokens], learned_from=max(1, len(before)), record=record, type=-1 if c.type is None else c.type,
            weight=c.weight, columns=uncut(columns, c.place) if cut else columns,
        )  # fmt: skip
        return [tree]

    def continued(self, prompt: str, output: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of what a language model wrote after it, without an end token.

        The two never share a token: a model writes whole ones. An output of several messages is laid out by the template.
        """
        before = self.begun(prompt)
        if not isinstance(output, Conversation) or self.form.kind != "chat":
            encode = self.tokenizer.encode_continued if before else self.tokenizer.encode
            return before, encode(output)
        (whole,) = self._layout.sequences(Comparison(prompt, (output,)), None)
        if whole[: len(before)] != before:
            raise ValueError("format.template lays an answer of several messages out otherwise than it begins one")
        end = len(whole) - whole[::-1].index(self.tokenizer.id(self.form.end_token)) - 1
        return before, whole[len(before) : end]

    def begun(self, prompt: str) -> list[int]:
        """Ids that a language model goes on from: with a chat format up to where the assistant speaks; of "" none but the
        beginning of a text that is no chat."""
        return self._layout.begun(prompt) if prompt or self.form.kind != "chat" else []

    def begun_messages(self, messages: Sequence[Message]) -> list[int]:
        """The same of messages."""
        return self.begun(text_of(messages, USER))

    def closed_messages(self, messages: Sequence[Message]) -> list[int]:
        """Ids of whole turns as they stand before others, chat formats only; of none, none."""
        if not isinstance(self._layout, Turns):
            raise ValueError(f"format.kind is {self.form.kind!r}, which has no turns; choose chat")
        return self._layout.chat.closed(messages)

    def _references(self, c: Comparison) -> Sequence[str | None]:
        return c.references if c.references and self._layout.reads_references else (None,)

    def _parts(self, members: Iterable[int], sequences: list[list[int]]) -> list[list[int]]:
        """Consecutive members together as long as their tree fits the row."""
        parts: list[list[int]] = []
        for n in members:
            together = [*parts[-1], n] if parts else [n]
            fits = len(together) <= SCORED_TOGETHER and tree_tokens([sequences[i] for i in together]) <= self.row_tokens
            if parts and fits:
                parts[-1] = together
            else:
                parts.append([n])
        return parts

    @staticmethod
    def _unranked(sequences: list[list[int]], record: int) -> Tree:
        return Tree.from_sequences(sequences, ranks=[np.inf] * len(sequences), record=record)

    def _count_ends(self, sequences: Sequence[Sequence[int]]) -> None:
        skipped = self.tokenizer.skipped_at_end
        ends = sum(len(ids) > 1 and ids[-1] == skipped for ids in sequences)
        self.counts.update({"read_elsewhere_by_transformers": ends} if ends else {})

    def _count_texts(self, c: Comparison) -> None:
        texts = (c.prompt, *c.references, *c.outputs)
        keys = any(message.more for text in texts for message in messages_of(text, USER))
        found = {
            "special_token_in_text": any(map(self.tokenizer.mentions_special, texts)),
            "references_unread": bool(c.references) and not self._layout.reads_references,
            "message_keys_unread": keys and not self._layout.reads_messages,
        }
        self.counts.update(name for name, true in found.items() if true)


def _only(c: Comparison, n: int) -> Comparison:
    """The record with one of its outputs."""
    return dataclasses.replace(c, outputs=c.outputs[n : n + 1])
