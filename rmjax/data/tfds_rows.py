"""Rows of prepared TFDS data sets, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmjax.data.columns import folded
from rmjax.data.errors import RecordError, first_line, not_utf8
from rmjax.data.messages import from_strings

_TFDS_NAME = re.compile(r"tfds:(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>[^@]+))?(@(?P<directory>.+))?")
_POOL_LABELS = ("kind", "policy_split", "prompt_split")  # absent where a TFDS example has them empty


def read_chunked(source: Any, i: int, place: str) -> Any:
    """A record of an ArrayRecord file, or an example of TFDS, which come in chunks with checksums."""
    try:
        return source[i]
    except UnicodeDecodeError as error:
        raise not_utf8(error, place, "of a text") from None
    except (RuntimeError, ValueError, IndexError) as error:
        remedy = "write or download the file again"
        raise RecordError(place, "", "damaged ArrayRecord chunk", remedy, first_line(error)) from None


@dataclasses.dataclass(frozen=True)
class TfdsRows:
    """Examples of a prepared TFDS split, read without TensorFlow."""

    path: str
    source: object  # a tfds data source: __len__ and __getitem__

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def place(self, i: int) -> str:
        return f"{self.path}:{i + 1}"

    def row(self, i: int) -> object:
        try:
            return from_strings(row_from_example(read_chunked(self.source, i, self.place(i))), self.place(i))
        except UnicodeDecodeError as error:
            raise not_utf8(error, self.place(i), "of a text") from None


def open_tfds(name: str) -> TfdsRows:
    """Opens "tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DIR]"; SPLIT is "train" unless given.

    The data set has to be prepared on disk, in a format with random access (ArrayRecord); nothing
    is downloaded. DIR is TFDS's data_dir, by default its own.
    """
    # Imported here: it takes a second, and only this format needs it.
    import tensorflow_datasets as tfds

    match = _TFDS_NAME.fullmatch(name)
    if match is None:
        raise RecordError(name, "", "not a TFDS name", "write tfds:NAME[/CONFIG][:SPLIT][@DIR]")
    try:
        source = tfds.builder(match["name"], data_dir=match["directory"]).as_data_source(
            split=match["split"] or "train"
        )
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise _tfds_error(error, name, match["directory"]) from None
    return TfdsRows(name, source)


def _tfds_error(error: Exception, name: str, directory: str | None) -> Exception:
    """TFDS knows no data set or config (ValueError), or has not prepared it (AssertionError)."""
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, AssertionError) or "not found" in reason:
        place = directory or "TFDS's default data_dir"
        remedy = "prepare it with rmjax.data.builders"
        return FileNotFoundError(f"{name}: no prepared data set in {place} ({reason}); {remedy}")
    remedy = "check split and file format (array_record is needed)"
    return RecordError(name, "", "TFDS cannot read it", remedy, reason)


def row_from_example(example: Mapping[str, object]) -> dict[str, object]:
    """Turns a TFDS example into a row as `record.parse` takes it.

    Bytes become strings, arrays lists, a dict of lists (how TFDS gives a sequence of messages)
    a list of messages. Fields that are empty, which there means absent, are left out; flat lists
    are folded (`columns.folded`).
    """
    row = {name: _plain(value) for name, value in example.items()}
    return folded({n: v for n, v in row.items() if n not in _POOL_LABELS or v != ""})


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        plain = {name: _plain(item) for name, item in value.items()}
        if isinstance(plain.get("content"), list):
            columns = [item for item in plain.values() if isinstance(item, list)]
            return [dict(zip(plain, turn, strict=True)) for turn in zip(*columns, strict=True)]
        return plain
    return value
