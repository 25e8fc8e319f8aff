"""Sentencepiece's BPE vocabularies (Llama 2, Mistral, Gemma) as a `tokenizer.json`: pieces with scores become merges in an order.

Of two neighbors whose joined text is a piece, sentencepiece joins those of the highest score first. The order of merges says the
same where no two pieces have one score, as in every model that it trained. What it cannot say, here as in `transformers`: which
of two overlapping joins to one and the same piece comes first, in a run of one repeated text.
"""

from collections.abc import Iterable, Sequence
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces, as sentencepiece and llama.cpp number them."""
_BLANK = "▁"


class PiecesError(ValueError):
    """A vocabulary that cannot be said in merges."""


def describe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], blank: bool, unknown: str
) -> dict[str, Any]:
    """The object of a `tokenizer.json`.

    Args:
      tokens, scores, types: of the pieces, by id.
      blank: whether a blank is put before a text.
      unknown: the token of what has no piece, which with bytes for everything is nothing.

    Raises:
      PiecesError: two pieces that merges make have one score.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        # A user-defined piece is found in the normalized text, where blanks are pieces' characters.
        {"id": i, "content": token, **flags, "normalized": kind == USER_DEFINED, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    before = [{"type": "Prepend", "prepend": _BLANK}] * blank
    behind = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * blank
    to_blank = {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "pre_tokenizer": None,
        "post_processor": None, "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "decoder": {"type": "Sequence", "decoders": [to_blank, {"type": "ByteFallback"}, {"type": "Fuse"}, *behind]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges(normal)],
        },
    }  # fmt: skip


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those of the highest score first; of one piece, the longer left one first.

    Raises:
      PiecesError: two pieces that are made so have one score.
    """
    found = [
        (score, len(left), left, right) for piece, score in scores.items() for left, right in _halves(piece, scores)
    ]
    made = {left + right: score for score, _, left, right in found}
    if len(set(made.values())) < len(made):
        raise PiecesError(
            f"{len(made) - len(set(made.values()))} pieces have the score of another one, so their order is not known"
        )
    return [(left, right) for _, _, left, right in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _halves(piece: str, known: dict[str, float]) -> Iterable[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in known and piece[cut:] in known:
            yield piece[:cut], piece[cut:]
