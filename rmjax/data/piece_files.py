"""Sentencepiece's `tokenizer.model` as a `tokenizer.json`: a protobuf message of which a few fields are read.

What a `tokenizer.json` cannot say is an error: vocabularies that are no BPE, unused pieces, blanks that end words, user-defined
pieces where a blank is put before a text (sentencepiece finds them behind that blank), and rules for characters (`tokenizers`
applies them to a reader's characters, sentencepiece to code points: halfwidth kana and Hangul letters come out otherwise).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmjax.data.pieces import NORMAL, UNUSED, USER_DEFINED, PiecesError, describe

MODEL = "tokenizer.model"
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BPE = 2
Message = Mapping[int, list[Any]]
"""Number of a field → its values: integers, or bytes for texts, messages and floats."""


@dataclasses.dataclass(frozen=True)
class PieceFile:
    """What a `tokenizer.model` says.

    Attributes:
      tokens, scores, types: of the pieces, by id.
      kind: of its vocabulary, one of `_KINDS`.
      ids: unk, bos, eos, pad → id; −1 = none.
      blank: whether a blank is put before a text.
      squeezed: whether blanks at the ends of a text go, and several become one.
      ruled: whether there are rules for characters, NFKC's say.
      escaped, suffixed: whether blanks are pieces' characters, and end words instead of beginning them.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    kind: int
    ids: Mapping[str, int]
    blank: bool
    squeezed: bool
    ruled: bool
    escaped: bool
    suffixed: bool

    def named(self, name: str) -> str:
        """The piece of one of `ids`; "" = none."""
        number = self.ids[name]
        return self.tokens[number] if 0 <= number < len(self.tokens) else ""


def read_pieces(path: Path) -> PieceFile:
    """Reads a `tokenizer.model`.

    Raises:
      PiecesError: it is none, or is cut short.
    """
    try:
        whole = _message(path.read_bytes())
        pieces = [_message(piece) for piece in whole.get(1, [])]
        trainer, normalizer = (_message(b"".join(whole.get(number, []))) for number in (2, 3))
        tokens = [piece[1][0].decode("utf-8") for piece in pieces]
        scores = [struct.unpack("<f", piece[2][0])[0] if 2 in piece else 0.0 for piece in pieces]
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise PiecesError(f"not a sentencepiece model ({error})") from error
    if not tokens:
        raise PiecesError("not a sentencepiece model (it has no pieces)")
    ids = {
        name: _signed(_last(trainer, 40 + i, i if i < 3 else -1)) for i, name in enumerate(("unk", "bos", "eos", "pad"))
    }
    return PieceFile(
        tokens, scores, [_last(piece, 3, NORMAL) for piece in pieces], _last(trainer, 3, 1), ids,
        blank=bool(_last(normalizer, 3, 1)), squeezed=bool(_last(normalizer, 4, 1)), ruled=bool(_last(normalizer, 2, b"")),
        escaped=bool(_last(normalizer, 5, 1)), suffixed=bool(_last(trainer, 24, 0)),
    )  # fmt: skip


def _message(data: bytes) -> Message:
    found: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields; ValueError or IndexError where it is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7)
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        if size is None or not key >> 3 or at + size > len(data):
            raise ValueError(f"no field at byte {at}, or it is cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


def _signed(value: int) -> int:
    """An int32 as protobuf writes it: −1 takes ten bytes."""
    return value - 2**64 if value >= 2**63 else value


def _last(message: Message, number: int, absent: Any) -> Any:
    return message[number][-1] if number in message else absent


def described(file: PieceFile, renamed: Mapping[int, str], blank: bool, only_first: bool) -> dict[str, Any]:
    """The object of a `tokenizer.json` that makes the ids that sentencepiece makes.

    Args:
      renamed: id → string of a token that is found as tokenizer_config.json says, in the place of the piece of this id.
      blank: False = no blank is put before a text, whatever the file says.
      only_first: the blank is put before a text's beginning alone, and not behind special tokens (`legacy: false`).

    Raises:
      PiecesError: the file asks for what cannot be said.
    """
    blank = blank and file.blank
    _refuse(file, blank)
    tokens = [renamed.get(number, token) for number, token in enumerate(file.tokens)]
    types = [UNUSED if number in renamed else kind for number, kind in enumerate(file.types)]  # no part of a merge
    if twice := len(tokens) - len(set(tokens)):
        raise PiecesError(f"{twice} pieces are there twice")
    found = describe(tokens, file.scores, types, blank and not only_first, file.named("unk"))
    before = [*_squeezing(file), *found["normalizer"]["normalizers"]]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoders = found["decoder"]["decoders"]
    if blank and only_first:
        decoders = [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        **found,
        "normalizer": {"type": "Sequence", "normalizers": before},
        "pre_tokenizer": first if blank and only_first else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _squeezing(file: PieceFile) -> list[dict[str, Any]]:
    """What takes superfluous blanks out of a text."""
    if not file.squeezed:
        return []
    rules = ((" {2,}", " "), (r"\A +|[ ▁]+\z", ""))
    return [{"type": "Replace", "pattern": {"Regex": pattern}, "content": content} for pattern, content in rules]


def _refuse(file: PieceFile, blank: bool) -> None:
    faults = {
        f"its vocabulary is {_KINDS.get(file.kind, file.kind)}, supported: bpe": file.kind != _BPE,
        f"{file.types.count(UNUSED)} pieces are unused": UNUSED in file.types,
        f"{file.types.count(USER_DEFINED)} pieces are user-defined, and a blank is put before texts": blank
        and USER_DEFINED in file.types,
        "characters are changed by rules (normalization other than identity)": file.ruled,
        "blanks end words": file.suffixed,
        "blanks are not escaped": not file.escaped,
        "there is no unknown piece": not file.named("unk"),
    }
    if found := [fault for fault, true in faults.items() if true]:
        raise PiecesError("; ".join(found))
