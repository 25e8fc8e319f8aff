"""Rows of other people's files to the fields of records: by columns that a config names, and by named layouts.

`columns` says which field is which column; a column inside another is written with dots, a place in a list is a number. Of a
row with `columns` nothing else is read. A layout then makes what is no renaming of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rmjax.data.errors import RecordError

Row = Mapping[str, Any]
_TURNS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant", "human": "user", "gpt": "assistant", "system": "system"}


def conversations(row: Row, place: str) -> dict[str, Any]:
    """`chosen` and `rejected` are whole conversations: what they begin alike with is the prompt."""
    chosen, rejected = (list(_field(row, name, place)) for name in ("chosen", "rejected"))
    alike = 0
    while alike < min(len(chosen), len(rejected)) - 1 and chosen[alike] == rejected[alike]:
        alike += 1
    if not alike:
        raise RecordError(place, "chosen", "begins otherwise than `rejected`", "give both the prompt's messages first")
    return {**row, "messages": chosen[:alike], "chosen": chosen[alike:], "rejected": rejected[alike:]}


def hh(row: Row, place: str) -> dict[str, Any]:
    """`chosen` and `rejected` are texts of turns, `\\n\\nHuman: … \\n\\nAssistant: …`, as in HH-RLHF."""
    texts = {name: _turns(_field(row, name, place), place, name) for name in ("chosen", "rejected")}
    return conversations({**row, **texts}, place)


def sharegpt(row: Row, place: str) -> dict[str, Any]:
    """Messages with `from` and `value` instead of `role` and `content`; `conversations` is the prompt."""
    given = {("messages" if name == "conversations" else name): value for name, value in row.items()}
    return {name: _renamed(value) for name, value in given.items()}


def labeled(row: Row, place: str) -> dict[str, Any]:
    """`output_1` and `output_2`, and a `label` that is 1 or 2 for the better one; another label is a tie."""
    outputs = [_field(row, f"output_{n}", place) for n in (1, 2)]
    label = _field(row, "label", place)
    number = int(label) if str(label) in ("1", "2") else 0
    rest = {name: value for name, value in row.items() if name not in ("output_1", "output_2", "label")}
    return {**rest, "outputs": outputs, "ranks": [[0, 0], [0, 1], [1, 0]][number]}


LAYOUTS: Mapping[str, Callable[[Row, str], dict[str, Any]]] = MappingProxyType(
    {"conversations": conversations, "hh": hh, "sharegpt": sharegpt, "labeled": labeled}
)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """How a file's rows become rows as `record.parse` takes them; the neutral one leaves them alone.

    Attributes:
      columns: field → where it is, from the row down; empty = all columns by their names.
      layout: one of `LAYOUTS`, "" = none.
    """

    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    layout: str = ""

    def __bool__(self) -> bool:
        return bool(self.columns or self.layout)

    def row(self, row: object, place: str) -> object:
        """The row in our fields.

        Raises:
          RecordError: a column is not there, or the layout finds something else than it is for.
        """
        if not isinstance(row, Mapping):
            return row
        found = {field: _inside(row, path, field, place) for field, path in self.columns.items()} or row
        return LAYOUTS[self.layout](found, place) if self.layout else found


AS_THEY_ARE = Mapped()


def mapped(columns: Sequence[str], layout: str = "") -> Mapped:
    """From `config.data.columns` ("FIELD=COLUMN", or "FIELD" for one of that name) and `config.data.layout`.

    Raises:
      ValueError: no such layout; an entry that is not of that form, or a field twice.
    """
    if layout and layout not in LAYOUTS:
        raise ValueError(f"config.data.layout is {layout!r}; choose {', '.join(LAYOUTS)}, or leave it empty")
    found: dict[str, tuple[str, ...]] = {}
    for entry in columns:
        field, _, path = entry.partition("=")
        if not field or not (path or "=" not in entry) or field in found:
            raise ValueError(f"config.data.columns has {entry!r}; write FIELD=COLUMN, each field once")
        found[field] = tuple((path or field).split("."))
    return Mapped(found, layout)


def _inside(row: Row, path: Sequence[str], field: str, place: str) -> Any:
    found: Any = row
    for depth, name in enumerate(path):
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (LookupError, ValueError, TypeError):
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            column = ".".join(path[: depth + 1])
            remedy = f"correct the entry of `{field}` in config.data.columns"
            raise RecordError(place, "", f"there is no column {column}", remedy, f"there is {known}") from None
    return found


def _field(row: Row, name: str, place: str) -> Any:
    if row.get(name) is None:
        raise RecordError(place, name, "missing, and the layout needs it", "name its column in config.data.columns")
    return row[name]


def _turns(text: Any, place: str, field: str) -> list[dict[str, str]]:
    parts = _TURNS.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise RecordError(place, field, "no turns of `Human:` and `Assistant:`", "use another config.data.layout")
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def _renamed(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [
        {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
        if isinstance(turn, Mapping) and {"from", "value"} <= turn.keys()
        else turn
        for turn in value
    ]
