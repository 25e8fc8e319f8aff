"""Rows beside comparisons: samples of a policy pool, and a sampler's prompts. They are checked as records are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rmjax.data.columns import of_single, parse_single
from rmjax.data.errors import RecordError
from rmjax.data.fields import add_one_of, given, label, one_of
from rmjax.data.messages import USER
from rmjax.data.record import FIELDS, Comparison, parse, type_label
from rmjax.data.texts import Notes, read_answer, read_text

SAMPLE_FIELDS = frozenset(
    {"prompt_id", "prompt", "policy", "output", "sample", "kind", "policy_split", "prompt_split", "category", "type"}
)
PROMPT_FIELDS = frozenset({"id", "prompt", "messages", "split"})
ASKED_FIELDS = FIELDS - {"chosen", "rejected", "output", "outputs", "best", "ranks", "scores", "votes", "policies"}
_STANDS_FOR_ONE = "-"
SEEN = "seen"
SPLITS = (SEEN, "unseen")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row of a policy pool: what one policy once answered to one prompt."""

    prompt_id: str
    prompt: str
    policy: str
    output: str  # may be empty: a policy may say nothing
    number: int = 0  # of the policy's samples for the prompt (`sample`)
    kind: str = ""  # what makes the policy differ
    policy_split: str = SEEN
    prompt_split: str = SEEN
    category: str = ""
    type: int | None = None  # type label of the record of the prompt
    place: str = ""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # declared ones, as of a record of this output


def sample_fields() -> frozenset[str]:
    """The names that `parse_sample` reads, declared columns among them."""
    return SAMPLE_FIELDS.union(of_single())


def parse_sample(row: Mapping[str, object], place: str, notes: Notes | None = None) -> Sample:
    """Validates a pool row.

    Raises:
      RecordError: `prompt_id`, `prompt`, `policy` or `output` is missing; a field is ill-typed, out of range or no split.
    """
    fields = given(row, place, SAMPLE_FIELDS)
    for name in ("prompt_id", "prompt", "policy", "output"):
        if name not in fields:
            raise RecordError(place, name, "missing", add_one_of([(name,)], row, SAMPLE_FIELDS))
    number = fields.get("sample", 0)
    if not isinstance(number, int) or isinstance(number, bool):
        raise RecordError(place, "sample", "not an integer", "number a policy's samples for a prompt from 0")
    names = {name: label(fields, name, place) for name in ("policy", "kind", "category")}
    splits = {name: _split(fields, name, place) for name in ("policy_split", "prompt_split")}
    prompt = read_text(fields["prompt"], USER, place, "prompt", notes)
    said = fields["output"]
    blank = isinstance(said, str) and not said.strip()
    return Sample(
        prompt_id=label(fields, "prompt_id", place), prompt=prompt, number=number, type=type_label(fields, notes),
        output=said if blank else read_answer(said, prompt, place, "output", notes), place=place,
        columns=parse_single(row, place), **names, **splits,
    )  # type: ignore[arg-type]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a policy is asked: a row of a sampler's prompts."""

    id: str
    prompt: str
    split: str = SEEN
    place: str = ""


_Row = TypeVar("_Row", Prompt, Comparison)


def parse_prompt(row: Mapping[str, object], place: str, notes: Notes | None = None) -> Prompt:
    """Validates a row {"id", "prompt" or "messages", "split"?}; RecordError for a bad one."""
    fields = given(row, place, PROMPT_FIELDS)
    for forms in ((("id",),), (("messages",), ("prompt",))):
        one_of(fields, forms, row, place, PROMPT_FIELDS)
    name = "messages" if "messages" in fields else "prompt"
    text = read_text(fields[name], USER, place, name, notes)
    return Prompt(label(fields, "id", place), text, _split(fields, "split", place), place)


def parse_asked(row: Mapping[str, object], place: str, notes: Notes | None = None) -> Comparison:
    """A row that a policy is to answer: a record (`record.parse`) whose outputs, and what is known of them, do not count.

    Raises:
      RecordError: no `id`, or as `parse`.
    """
    kept = {name: row[name] for name in asked_fields() if name in row} if isinstance(row, Mapping) else {}
    if "id" not in given(row, place, ASKED_FIELDS):
        raise RecordError(place, "id", "missing", add_one_of([("id",)], row, ASKED_FIELDS))
    return dataclasses.replace(parse({**kept, "output": _STANDS_FOR_ONE}, place, notes), outputs=())


def distinct(rows: Sequence[_Row]) -> Sequence[_Row]:
    """The prompts; RecordError for the first whose id is that of another one."""
    places: dict[str, str] = {}
    for row in rows:
        if (first := places.setdefault(row.id, row.place)) != row.place:
            detail = f"{row.id!r} is in {first}"
            raise RecordError(row.place, "id", "occurs twice", "give each prompt an id of its own", detail)
    return rows


def asked_fields() -> frozenset[str]:
    """The names that `parse_asked` reads, declared columns among them."""
    return ASKED_FIELDS.union(name for name, column in of_single().items() if column.axes == "RG")


def _split(fields: Mapping[str, object], name: str, place: str) -> str:
    value = fields.get(name) or SEEN
    if value not in SPLITS:
        raise RecordError(place, name, "no split", f"use {' or '.join(SPLITS)}, or leave it out", repr(value)[:40])
    return str(value)
