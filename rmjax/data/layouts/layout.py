"""What a layout is: how rows of someone else's files are recognized, and what records they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError

Row = Mapping[str, Any]
Fields = dict[str, Any]
"""A row as `record.parse` takes it."""
Placed = tuple[str, Fields]
"""With the place that it came from."""
Outcome = tuple[str, Fields | RecordError]
"""What became of a row."""


class ReadRow(Mapping[str, Any]):
    """A row that knows which of its fields were read: what a layout leaves out is to be said.

    Attributes:
      left: names of the fields with a value that nobody has read so far.
    """

    def __init__(self, row: Row):
        self._row = row
        self.left = {name for name, value in row.items() if value is not None}

    def __getitem__(self, name: str) -> Any:
        self.left.discard(name)
        return self._row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout of rows.

    Attributes:
      name: in `LAYOUTS`, and what `--layout` takes.
      says: what such a file is, for messages.
      needs: names of fields that every row has.
      convert: a row and its place → the rows that it becomes; RecordError where it is broken.
      fits: what else tells such rows from others.
      join: where a record is made of several rows: all of them → the records.
    """

    name: str
    says: str
    needs: frozenset[str]
    convert: Callable[[Row, str], list[Fields]]
    fits: Callable[[Row], bool] = lambda row: True
    join: Callable[[Sequence[Placed]], Sequence[Outcome]] | None = None

    def takes(self, row: object) -> bool:
        """Whether a row is of this layout, by its names and the kinds of its values."""
        return isinstance(row, Mapping) and self.needs <= row.keys() and self.fits(row)


def text(row: Row, name: str, place: str) -> str:
    """A field that is a string.

    Raises:
      RecordError: it is missing, or another kind of value.
    """
    value = row.get(name)
    if not isinstance(value, str):
        problem = "missing" if value is None else "not a string"
        raise RecordError(place, name, problem, "get the file again, or drop the row", _kind(value))
    return value


def inner(row: Row, name: str, key: str, place: str) -> str:
    """The string `row[name][key]`; RecordError likewise."""
    value = row.get(name)
    if not isinstance(value, Mapping) or not isinstance(value.get(key), str):
        raise RecordError(place, name, f"not an object with a string `{key}`", "get the file again, or drop the row")
    return value[key]


def texts(row: Row, name: str, place: str) -> list[str]:
    """A field that is a list of strings, not empty; RecordError likewise."""
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RecordError(place, name, "not a list of strings", "get the file again, or drop the row", _kind(value))
    return list(value)


def number(row: Row, name: str, place: str) -> float:
    """A field that is a number, or a string of one; RecordError likewise."""
    value = row.get(name)
    try:
        return float(value)  # type: ignore[arg-type]  # what is none is caught
    except (TypeError, ValueError):
        raise RecordError(place, name, "not a number", "correct it, or drop the row", repr(value)[:40]) from None


def label(row: Row, name: str, place: str, known: Mapping[Any, int | None]) -> int | None:
    """Which of two answers is better, 0 or 1, by a field's value; None where it says that neither is.

    Raises:
      RecordError: a value that is not known.
    """
    value = row.get(name)
    if not isinstance(value, str | int | float) or value not in known:
        remedy = f"give one of {', '.join(map(repr, known))}, or drop the row"
        raise RecordError(place, name, "unknown label", remedy, repr(value)[:40])
    return known[value]


def pair(better: int | None, first: Any, second: Any, **facts: Any) -> Fields:
    """Two answers of which `better` is the better one; tied where it is None."""
    order = [0, 0] if better is None else [int(better != i) for i in range(2)]
    return {"outputs": [first, second], "ranks": order, **facts}


def turns(value: object, name: str, place: str) -> list[dict[str, Any]]:
    """A list of messages under whatever names, `role` and `content` or `from` and `value`; other keys stay, for templates.

    Raises:
      RecordError: no such list, or a role of no known name.
    """
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, list) or not given or not all(isinstance(item, Mapping) for item in given):
        raise RecordError(place, name, "not a list of messages", "get the file again, or drop the row", _kind(value))
    return [_turn(item, name, place) for item in given]


_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_call": "assistant",
}  # fmt: skip


_NAMES = ("role", "from", "content", "value")


def _turn(item: Row, name: str, place: str) -> dict[str, Any]:
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        remedy = "give user, assistant or system"
        raise RecordError(place, name, "message with an unknown role", remedy, repr(role)[:40])
    if not isinstance(content, str):
        raise RecordError(place, name, "message without text content", "give it a string", _kind(content))
    more = {key: value for key, value in item.items() if key not in _NAMES}
    return {**more, "role": known, "content": content}


def is_turns(value: object) -> bool:
    """Whether a value looks like messages under some names."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and bool({"role", "from"} & first.keys())


def _kind(value: object) -> str:
    return "" if value is None else type(value).__name__


def grouped(rows: Sequence[Placed]) -> list[Placed]:
    """Rows of one scored answer each, `{"prompt" or "messages", "output", "score", …}`, joined by their prompt.

    The place is that of a prompt's first row, and so are the facts beside output and score.
    """
    groups: dict[str, Placed] = {}
    for place, row in rows:
        facts = {name: value for name, value in row.items() if name not in ("output", "score")}
        _, group = groups.setdefault(
            repr(row.get("prompt", row.get("messages"))), (place, {**facts, "outputs": [], "scores": []})
        )
        group["outputs"].append(row["output"])
        group["scores"].append(row["score"])
    return list(groups.values())
