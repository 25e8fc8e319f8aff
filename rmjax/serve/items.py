"""What a request asks to be scored, and the token sequences of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.errors import RecordError
from rmjax.data.formats import Encoder
from rmjax.data.messages import USER, messages_of
from rmjax.data.record import Comparison, parse, unknown_fields
from rmjax.data.texts import Notes, require_encodable, split_answer
from rmjax.serve.outcomes import Refused

CHARACTERS = 32
"""Characters a token, on the average of a text, beyond which it is refused before it is encoded: English has 4, and a text many
times too long would keep all others waiting."""
_BLANK = "-"
"""Stands for an answer without text while a record is checked: files have none, a sampler has."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Fields as in a file of records (docs/data.md); `messages` alone are a conversation whose last turns are the answer."""

    row: Mapping[str, Any]
    place: str  # in the request, for messages


@dataclasses.dataclass(frozen=True)
class Text:
    """Prompt and answer in one text, laid out by the model's own format."""

    text: str
    place: str


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The same as token ids."""

    ids: tuple[int, ...]
    place: str


Item = Record | Text | Tokens


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An item's sequences; N answers."""

    sequences: tuple[tuple[bytes, ...], ...]  # [reference][answer], as `key` gives them
    tokens: tuple[int, ...]  # N numbers: of all its sequences, as they are scored
    truncated: tuple[bool, ...]  # N
    notes: tuple[str, ...] = ()  # what the format did not read or took for plain text


def key(ids: Sequence[int]) -> bytes:
    """A sequence such that bytes sort as ids do."""
    return np.asarray(ids, ">u4").tobytes()


class Encoding:
    """Items → sequences. Not for several threads at once: the encoder counts.

    Args:
      encoder: of the model's format, with the longest sequence that the server takes.
      cut: cut what is too long by the format's rule; otherwise it is refused.
      vocabulary: number of the model's token ids.
    """

    def __init__(self, encoder: Encoder, cut: bool, vocabulary: int):
        self.encoder, self.cut, self.vocabulary = encoder, cut, vocabulary

    def encode(self, item: Item) -> Encoded | Refused:
        """The sequences, or why there are none."""
        try:
            if isinstance(item, Record):
                return self._record(item)
            ids = self._text(item) if isinstance(item, Text) else self._ids(item)
        except Refused as refused:
            return refused
        except ValueError as error:  # RecordError among them
            place = "" if isinstance(error, RecordError) or not str(error) else f"{item.place}: "
            return Refused(400, f"{place}{error}")
        longest = self.encoder.form.max_length
        if len(ids) > longest:
            return Refused(413, f"{item.place} has {len(ids)} tokens, and the server takes {longest}; shorten it")
        return Encoded(((key(ids),),), (len(ids),), (False,))

    def _record(self, item: Record) -> Encoded:
        before, asked = self.encoder.counts.copy(), comparison(item)
        texts = (asked.prompt, max(asked.references, key=len, default=""), max(asked.outputs, key=len))
        self._bound(
            [message.content for text in filter(None, texts) for message in messages_of(text, USER)], item.place
        )
        scored = self.encoder.scored(asked, cutting=self.cut)
        long = next((one for row in scored for one in row if one.cut), None)
        if long and not self.cut:
            raise Refused(
                413,
                f"{item.place} has {long.length} tokens with one of its answers, and the format takes "
                f"{self.encoder.form.max_length}, {self.encoder.form.max_response_length} an answer; shorten it, or start "
                "the server with --truncate=format",
            )
        notes = tuple(sorted(name for name in self.encoder.counts - before if name != "cut"))
        ignored = tuple(f"field `{name}` is not read" for name in unknown_fields(item.row))
        columns = list(zip(*scored, strict=True))
        return Encoded(
            tuple(tuple(key(one.ids) for one in row) for row in scored),
            tuple(sum(len(one.ids) for one in column) for column in columns),
            tuple(any(one.cut for one in column) for column in columns),
            notes + ignored,
        )

    def _bound(self, turns: Sequence[str], place: str) -> None:
        """413 for what no encoding could make short enough; each turn has a token of its own."""
        longest, characters = self.encoder.form.max_length, sum(map(len, turns))
        if characters > CHARACTERS * longest or len(turns) > longest:
            raise Refused(
                413,
                f"{place} has {characters} characters in {len(turns)} texts or turns, far more than the {longest} tokens that "
                "the server takes; shorten it",
            )

    def _text(self, item: Text) -> list[int]:
        require_encodable(item.text, item.place, "")
        self._bound([item.text], item.place)
        if not item.text.strip():
            raise Refused(400, f"{item.place} is empty; send a prompt and an answer")
        return self.encoder.whole(item.text)

    def _ids(self, item: Tokens) -> list[int]:
        ids = list(item.ids)
        if bad := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise Refused(
                400, f"{item.place} has the token id {bad[0]}, and the model's are 0 to {self.vocabulary - 1}"
            )
        if not self.encoder.closes(ids):
            raise Refused(
                400,
                f"{item.place} does not end with the token at which the model's format reads the reward; send the whole "
                "sequence, or text",
            )
        return ids


def comparison(item: Record) -> Comparison:
    """The record, answers without text among them.

    Raises:
      RecordError: a field is missing or wrong; the message names it.
    """
    row = dict(item.row)
    if "messages" in row and not {"output", "outputs", "chosen"} & {name for name, x in row.items() if x is not None}:
        row["messages"], row["output"] = split_answer(row["messages"], item.place, "messages")
    given = row.get("outputs") if isinstance(row.get("outputs"), list) else [row.get("output")]
    blank = [isinstance(text, str) and not text.strip() for text in given or ()]
    if not any(blank):
        return parse(row, item.place, Notes())
    name = "outputs" if isinstance(row.get("outputs"), list) else "output"
    filled = [_BLANK if is_blank else text for is_blank, text in zip(blank, given or (), strict=True)]
    found = parse({**row, name: filled if name == "outputs" else filled[0]}, item.place, Notes())
    outputs = (
        text if is_blank else kept for is_blank, text, kept in zip(blank, given or (), found.outputs, strict=True)
    )
    return dataclasses.replace(found, outputs=tuple(outputs))
