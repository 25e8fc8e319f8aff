"""What all parsers of rows share: which fields are there, which are unknown, names and labels."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.texts import require_encodable


def given(row: object, place: str, known: Collection[str]) -> dict[str, Any]:
    """The known fields that are not null; RecordError where the row is no object."""
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", 'write one {"prompt": …} per record')
    return {name: row[name] for name in known if row.get(name) is not None}


def one_of(
    fields: Mapping[str, object],
    forms: Sequence[tuple[str, ...]],
    row: Mapping[str, object],
    place: str,
    known: Collection[str],
) -> tuple[str, ...]:
    """The one form of which a field is present; raises if that is none, several or half of one."""
    present = [form for form in forms if any(name in fields for name in form)]
    if len(present) > 1:
        given = " and ".join(f"`{'`/`'.join(form)}`" for form in present)
        raise RecordError(place, present[1][0], f"{given} exclude each other", "keep one of them")
    if not present:
        raise RecordError(place, forms[-1][-1], "missing", add_one_of(forms, row, known))
    for name in present[0]:
        if name not in fields:
            raise RecordError(place, name, "missing", add_one_of([(name,)], row, known))
    return present[0]


def add_one_of(forms: Sequence[tuple[str, ...]], row: Mapping[str, object], known: Collection[str]) -> str:
    """What to do about a field that is missing: the misspelled one, or what to add and what the row has."""
    wanted = {name for form in forms for name in form}
    for name in unknown(row, known):
        if nearest(name, known) in wanted:
            return f"did you mean `{nearest(name, known)}` by `{name}`?"
    added = "add " + " or ".join(" and ".join(f"`{name}`" for name in form) for form in forms)
    names = ", ".join(f"`{_shown(name)}`" for name in list(row)[:12])
    return f"{added}; the row has {names or 'no field'}{', …' if len(row) > 12 else ''}"


def _shown(name: object) -> str:
    return str(name)[:40].encode("unicode_escape").decode()


def unknown(row: Mapping[str, object], known: Collection[str]) -> list[str]:
    """The names in a row that its parser ignores, sorted."""
    return sorted(set(row) - set(known)) if isinstance(row, Mapping) else []


def nearest(name: str, known: Collection[str]) -> str | None:
    """The accepted field that `name` was probably meant to be, or None.

    A name of other parts (`prompt_id`, `output_1`) is another name, not a misspelled one.
    """
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return close[0] if close and close[0].count("_") == name.count("_") else None


def label(fields: Mapping[str, object], name: str, place: str) -> str:
    """A short string; an integer is accepted where it is an id."""
    value = fields.get(name, "")
    if name in ("id", "prompt_id") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        remedy = "give a string, or rename or remove the field"
        raise RecordError(place, name, "not a string", remedy, type(value).__name__)
    require_encodable(value, place, name)
    return value


def named(value: object, field: str, place: str) -> str:
    """A string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise RecordError(place, field, "not a name", "give a string that is not empty", type(value).__name__)
    require_encodable(value, place, field)
    return value
