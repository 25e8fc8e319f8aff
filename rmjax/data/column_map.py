"""Other people's columns as fields of records, by a config's word.

`columns` says which field is which column; a column inside another is written with dots, a place in a list is a number. Of a
row with `columns` nothing else is read. A layout (`rmjax.data.layouts`) then makes what is no renaming of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ColumnMap:
    """How a file's rows become rows with our fields' names; the neutral one leaves them alone.

    Attributes:
      columns: field → where it is, from the row down; empty = all columns by their names.
    """

    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns)

    def row(self, row: object, place: str) -> object:
        """The row by our names; RecordError where a column is not there."""
        if not isinstance(row, Mapping) or not self.columns:
            return row
        return {field: _inside(row, path, field, place) for field, path in self.columns.items()}


AS_THEY_ARE = ColumnMap()


def column_map(entries: Sequence[str]) -> ColumnMap:
    """From `config.data.columns`: "FIELD=COLUMN", or "FIELD" for one of that name.

    Raises:
      ValueError: an entry that is not of that form, or a field twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        field, _, path = entry.partition("=")
        if not field or not (path or "=" not in entry) or field in found:
            raise ValueError(f"config.data.columns has {entry!r}; write FIELD=COLUMN, each field once")
        found[field] = tuple((path or field).split("."))
    return ColumnMap(found)


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
