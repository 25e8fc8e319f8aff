"""Declared columns in records and files: what a field must hold, the schemas of the file formats, and the way into a tree.

Columns are declared in `models.columns`; nothing here names one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow

from rmjax.data.errors import RecordError
from rmjax.data.messages import IN_COLUMNS
from rmjax.models import columns
from rmjax.models.columns import Column


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record file: `depth` lists deep, of text, float or int."""

    name: str
    kind: str  # text | float | int
    depth: int = 0  # 0: one value; 1: a list; 2: a list of lists
    ragged: bool = False  # depth 2: inner lists differ in length; otherwise each has one value per output


_OWN = (
    Field("prompt", "text"),
    Field("outputs", "text", 1),
    Field("references", "text", 1),
    Field("ranks", "float", 1),
    Field("scores", "float", 1),
    Field("votes", "float", 2),
    Field("policies", "text", 1),
    Field("category", "text"),
    Field("source", "text"),
    Field("type", "int"),
    Field("wrapper", "text"),
    Field("weight", "float"),
    Field("margin", "float"),
    Field("id", "text"),
    Field(IN_COLUMNS, "text"),
)
"""What `record.to_row` writes by itself, and where `messages.as_strings` puts messages; the declared columns come to it."""


def file_fields() -> dict[str, Field]:
    """The fields of every record file by name; all schemas are made of them."""
    depth = {"RG": 0, "RGN": 1, "RGNN": 2, "RT": 2}
    declared = (
        Field(name, "int" if column.dtype == "int32" else "float", depth[column.axes], column.axes == "RT")
        for name, column in columns.extra().items()
    )
    return {field.name: field for field in (*_OWN, *declared)}


# --- a record's field ---------------------------------------------------------------------------------------------------


def number(value: object, field: str, place: str, column: Column | None = None) -> float:
    """A finite number, as a float; RecordError where it is none, or none that `column` takes."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RecordError(place, field, "not a number", "give a finite number", repr(value)[:40])
    try:
        found = float(value)
    except OverflowError:  # an integer beyond 1.8e308
        found = math.inf
    if not math.isfinite(found) and (column is None or found != column.fill):
        raise RecordError(place, field, "not finite", "give a finite number", repr(value)[:40])
    if column is not None and (problem := column.refuses(found)):
        raise RecordError(place, field, problem, f"give {column.range_text}", repr(value)[:40])
    return found


def numbers(value: object, field: str, count: int, place: str, column: Column | None = None) -> tuple[float, ...]:
    """`count` numbers, one per output."""
    if not isinstance(value, list | tuple):
        raise RecordError(place, field, "not a list of numbers", "give one number per output")
    if len(value) != count:
        detail = f"{len(value)} for {count} outputs"
        raise RecordError(place, field, "length differs from outputs", "give one number per output", detail)
    return tuple(_cell(v, f"{field}[{i}]", place, column) for i, v in enumerate(value))


def _cell(value: object, field: str, place: str, column: Column | None) -> float:
    found = number(value, field, place, column)
    if column is None or column.dtype != "int32":
        return found
    if not isinstance(value, int):
        raise RecordError(place, field, "not an integer", f"give {column.range_text}", repr(value)[:40])
    return value


def parse_columns(row: Mapping[str, object], count: int, place: str) -> dict[str, Any]:
    """The declared columns that a row has beside a record's own fields, by field name, as numbers and tuples of them.

    Args:
      row: its fields; one that is None counts as absent.
      count: number of outputs.
      place: "file:line".

    Raises:
      RecordError: a value that is no such number, out of the declared range, or a list of the wrong length.
    """
    return {
        name: _value(row[name], column, count, place)
        for name, column in columns.extra().items()
        if row.get(name) is not None
    }


def _value(value: object, column: Column, count: int, place: str) -> Any:
    field = column.field
    if column.axes == "RG":
        return _cell(value, field, place, column)
    if column.axes == "RGN":
        return numbers(value, field, count, place, column)
    if not isinstance(value, list | tuple):
        raise RecordError(place, field, "not a list of lists", f"give {columns.AXES[column.axes]}")
    if len(value) != count:
        detail = f"{len(value)} for {count} outputs"
        raise RecordError(place, field, "length differs from outputs", f"give {columns.AXES[column.axes]}", detail)
    if column.axes == "RGNN":
        return tuple(numbers(v, f"{field}[{i}]", count, place, column) for i, v in enumerate(value))
    return tuple(_of_tokens(v, f"{field}[{i}]", place, column) for i, v in enumerate(value))


def _of_tokens(value: object, field: str, place: str, column: Column) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise RecordError(place, field, "not a list of numbers", "give one number per token")
    return tuple(_cell(v, f"{field}[{i}]", place, column) for i, v in enumerate(value))


def parse_single(row: Mapping[str, object], place: str) -> dict[str, Any]:
    """The declared columns of a row that is one output alone, as in a pool: a number (a list of one will do) where a record has
    one per output, a list where it has a list per output. RecordError as `parse_columns`."""
    found = {}
    for name, column in of_single().items():
        value = row.get(name)
        if value is not None:
            alone = value if isinstance(value, list | tuple) and column.axes != "RG" else [value]
            if column.axes == "RT" and not any(isinstance(part, list | tuple) for part in alone):
                alone = [alone]
            found[name] = value if column.axes == "RG" else alone
    return parse_columns(found, 1, place)


def of_single() -> dict[str, Column]:
    """The columns that one output alone can have, by field: all but those of pairs."""
    return {name: column for name, column in columns.extra().items() if column.axes != "RGNN"}


def gathered(outputs: Sequence[Mapping[str, Any]], place: str) -> dict[str, Any]:
    """The columns of a record made of outputs that were rows of their own; `outputs` are their `parse_single`s, which agree where
    a column has one value for the record.

    Raises:
      RecordError: a list per token that some of the outputs lack.
    """
    found: dict[str, Any] = {}
    for name, column in of_single().items():
        values = [of[name] for of in outputs if name in of]
        if not values:
            continue
        if column.axes == "RT" and len(values) < len(outputs):
            raise RecordError(place, name, "is missing in some of a prompt's rows", "give it in all of them or in none")
        default = (column.of_absent,)
        found[name] = values[0] if column.axes == "RG" else tuple(of.get(name, default)[0] for of in outputs)
    return found


def selected(found: Mapping[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The columns of the outputs at `indices`."""

    def of(column: Column, value: Any) -> Any:
        if column.axes == "RG":
            return value
        rows = tuple(value[i] for i in indices)
        return tuple(tuple(row[i] for i in indices) for row in rows) if column.axes == "RGNN" else rows

    known = columns.extra()
    return {name: of(known[name], value) for name, value in found.items()}


# --- file schemas -------------------------------------------------------------------------------------------------------


def parquet_schema() -> pyarrow.Schema:
    """A Parquet column per field; float64 and int64, since files keep what a record says."""
    kinds = {"text": pyarrow.string(), "float": pyarrow.float64(), "int": pyarrow.int64()}

    def type_of(field: Field) -> pyarrow.DataType:
        found = kinds[field.kind]
        for _ in range(field.depth):
            found = pyarrow.list_(found)
        return found

    return pyarrow.schema({name: type_of(field) for name, field in file_fields().items()})


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `record.to_row` with every field there is, none deeper than a list: how TFDS keeps it.

    Absent texts are "", absent numbers and lists are empty. A list of lists is one list, behind the inner lengths where they
    differ.
    """
    return {name: _flat(row.get(name), field) for name, field in file_fields().items()}


def _flat(value: Any, field: Field) -> Any:
    if field.kind == "text":
        return ("" if field.depth == 0 else []) if value is None else value
    parts: Any = [] if value is None else [value] if field.depth == 0 else value
    if field.depth == 2:
        inner = [item for part in parts for item in part]
        parts = [*map(len, parts), *inner] if field.ragged else inner
    return np.asarray(parts, np.int64 if field.kind == "int" else np.float64)


def folded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, without the fields that are absent; fields that are nested already, or unknown, stay as they are."""
    fields, outputs = file_fields(), row.get("outputs")
    count = len(outputs) if isinstance(outputs, list) else 1
    kept = {n: v for n, v in row.items() if n in _NEEDED or n not in fields or v not in ("", [])}
    return {name: _folded(value, fields.get(name), count) for name, value in kept.items()}


_NEEDED = ("prompt", "outputs")


def _folded(value: Any, field: Field | None, count: int) -> Any:
    if field is None or field.kind == "text" or not isinstance(value, list) or isinstance(value[0], list):
        return value
    if field.depth == 0:
        return value[0]
    if field.depth == 1:
        return value
    if not field.ragged:
        return [value[k : k + count] for k in range(0, len(value), count)]
    ends = np.cumsum([count, *map(int, value[:count])])
    return [value[start:end] for start, end in zip(ends, ends[1:], strict=False)]


# --- into a tree --------------------------------------------------------------------------------------------------------


def tree_columns(
    found: Mapping[str, Any], sequences: Sequence[Sequence[int]], answers: Callable[[], Sequence[int]], place: str
) -> dict[str, Any]:
    """A record's columns as `packing.Tree` takes them: by full name; one value per token as arrays over whole sequences.

    Args:
      found: the record's `columns`.
      sequences: token ids of each candidate, the read-out last.
      answers: gives the number of tokens of each output, which are those before the read-out; called where needed only.
      place: "file:line".

    Raises:
      RecordError: a list per token that has another length than the output's tokens, or differs where candidates share tokens.
    """
    known = columns.extra()
    return {
        known[name].full_name: _over_tokens(value, known[name], sequences, answers(), place)
        if known[name].axes == "RT"
        else value
        for name, value in found.items()
    }


def uncut(found: dict[str, Any], place: str) -> dict[str, Any]:
    """`found`, for a record that is cut to fit; RecordError where it has a list per token: tokens would be missing."""
    for name, column in columns.declared().items():
        if column.axes == "RT" and name in found:
            remedy = "raise max_length, max_response_length or row_tokens, or shorten the output"
            raise RecordError(
                place, column.field, "one number per token, but the record is too long and would be cut", remedy
            )
    return found


def _over_tokens(
    value: Any, column: Column, sequences: Sequence[Sequence[int]], answers: Sequence[int], place: str
) -> list[np.ndarray]:
    whole = []
    for n, (sequence, given, tokens) in enumerate(zip(sequences, value, answers, strict=True)):
        if len(given) != tokens:
            raise RecordError(
                place, f"{column.field}[{n}]", "length differs from the output's tokens", "give one number per token",
                f"{len(given)} for {tokens} tokens",
            )  # fmt: skip
        values = np.full(len(sequence), column.of_absent, column.dtype)
        values[len(sequence) - 1 - tokens : len(sequence) - 1] = given
        whole.append(values)
    return whole
