"""Random access to the raw rows of a file or of several, one small class per storage format (Parquet and TFDS have files of
their own).

Every class has `__len__`, `row(i)` (the decoded row, not validated) and `place(i)` ("file:line").
They keep no open files, so that data loading threads can share them and worker processes can
receive them.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rmjax.data.column_map import AS_THEY_ARE, ColumnMap
from rmjax.data.decompression import sensible_limit, too_large
from rmjax.data.errors import RecordError, first_line
from rmjax.data.jsonrows import decode_json, open_json, open_jsonl, open_jsonl_gz, open_jsonl_zst
from rmjax.data.parquet_rows import open_parquet
from rmjax.data.shards import HUB, ShardError, folder_shards, hub_shards
from rmjax.data.tfds_rows import open_tfds, read_chunked
from rmjax.files import disguise, refuse_url


class Rows(Protocol):
    """What a reader needs from a storage format."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> object: ...

    def place(self, i: int) -> str: ...


def open_rows(path: str | Path, columns: ColumnMap = AS_THEY_ARE) -> Rows:
    """Opens a file by its extension, a folder of such files, a TFDS data set by "tfds:NAME[/CONFIG][:SPLIT][@DIR]", or one of
    the hub by "hf:ORG/NAME[/CONFIG][:SPLIT][@REVISION]", which huggingface_hub's cache has to hold.

    Args:
      columns: what the file's columns are called here.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the file cannot be read, or some of a set are not there.
      RecordError: unknown extension, or the file is damaged or empty; a set's name that does not say which.
    """
    rows = _not_empty(_opened(path), str(path))
    return MappedRows(rows, columns) if columns else rows


def _opened(path: str | Path) -> Rows:
    if str(path).startswith("tfds:"):
        return open_tfds(str(path))
    try:
        if str(path).startswith(HUB):
            return _together(hub_shards(str(path)))
        if Path(path).is_dir():
            return _together(folder_shards(Path(path), tuple(_OPENERS)))
    except ShardError as error:
        problem, _, remedy = str(error).partition("; ")
        raise RecordError(str(path), "", problem.removeprefix(f"{path}: "), remedy) from None
    return _open_file(Path(path))


def _together(paths: Sequence[Path]) -> Rows:
    shards = tuple(map(_open_file, paths))
    return shards[0] if len(shards) == 1 else ShardRows(shards, np.cumsum([0, *map(len, shards)]))


def _open_file(path: Path) -> Rows:
    check_readable(path)
    for suffix, (opener, magic) in _OPENERS.items():
        if path.name.endswith(suffix):
            _refuse_disguise(path, magic)
            return opener(path)
    _refuse_disguise(path)
    accepted = ", ".join(_OPENERS) + " and tfds:NAME:SPLIT"
    lines = "; write one JSON object a line" if path.suffix in (".csv", ".tsv") else ""
    raise RecordError(str(path), "", "unknown file type", f"use one of {accepted}{lines}")


@dataclasses.dataclass(frozen=True)
class ShardRows:
    """Rows of several files as of one, in the files' order; a place names the file."""

    shards: tuple[Rows, ...]
    starts: np.ndarray  # [S + 1] number of the first row of each, and of all

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def blank_lines(self) -> int:
        """Lines that are no rows."""
        return sum(getattr(shard, "blank_lines", 0) for shard in self.shards)

    def row(self, i: int) -> object:
        shard, within = self._find(i)
        return shard.row(within)

    def place(self, i: int) -> str:
        shard, within = self._find(i)
        return shard.place(within)

    def _find(self, i: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.shards[number], i - int(self.starts[number])


@dataclasses.dataclass(frozen=True)
class MappedRows:
    """Rows in our fields of a file in others."""

    rows: Rows
    columns: ColumnMap

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def blank_lines(self) -> int:
        """Lines that are no rows."""
        return getattr(self.rows, "blank_lines", 0)

    def row(self, i: int) -> object:
        return self.columns.row(self.rows.row(i), self.place(i))

    def place(self, i: int) -> str:
        return self.rows.place(i)


def _refuse_disguise(path: Path, magic: bytes = b"") -> None:
    if found := disguise(path, magic):
        raise RecordError(str(path), "", *found)


def check_readable(path: Path) -> None:
    """Raises the OSError that fits, with what to do, unless `path` is a readable file; ValueError where it is a URL."""
    refuse_url(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; give one of the files in it")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {_near_names(path)}") from None
    except PermissionError:
        raise PermissionError(f"{path}: no read permission; try chmod u+r on it") from None


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f"its directory {path.parent} does not exist either"
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3, cutoff=0.5)
    return f"near names in {path.parent}: {', '.join(close)}" if close else "check the path"


def _not_empty(rows: Rows, path: str) -> Rows:
    if len(rows) == 0:
        raise RecordError(path, "", "empty data set", "give a file with at least one record")
    return rows


@dataclasses.dataclass(frozen=True)
class ArrayRecordRows:
    """Rows of an ArrayRecord file of UTF-8 JSON; the number in a place is the row's, from 1."""

    path: str
    source: ArrayRecordDataSource
    size: int  # bytes of the file
    limit: int  # bytes that one record may take

    def __len__(self) -> int:
        return len(self.source)

    def place(self, i: int) -> str:
        return f"{self.path}:{i + 1}"

    def row(self, i: int) -> object:
        record = read_chunked(self.source, i, self.place(i))
        if len(record) > self.limit:
            raise too_large(self.place(i), self.size, self.limit)
        return decode_json(record, self.place(i))


def open_array_record(path: Path) -> ArrayRecordRows:
    """Opens an ArrayRecord file whose records are UTF-8 JSON."""
    try:
        size = path.stat().st_size
        return ArrayRecordRows(str(path), ArrayRecordDataSource(str(path)), size, sensible_limit(size))
    except RuntimeError as error:
        remedy = "write or download the file again"
        raise RecordError(str(path), "", "broken ArrayRecord file", remedy, first_line(error)) from None


def iterate_rows(path: str | Path) -> Iterator[tuple[str, object]]:
    """Yields (place, raw row) for every row of a file; errors as in `open_rows`."""
    rows = open_rows(path)
    for i in range(len(rows)):
        yield rows.place(i), rows.row(i)


# Ending → what opens such a file, and the first bytes that it may have (`disguise`).
_OPENERS: dict[str, tuple[Callable[[Path], Rows], bytes]] = {
    ".jsonl": (open_jsonl, b""),
    ".jsonl.zst": (open_jsonl_zst, b"\x28\xb5\x2f\xfd"),
    ".jsonl.gz": (open_jsonl_gz, b"\x1f\x8b"),
    ".json": (open_json, b""),
    ".parquet": (open_parquet, b"PAR1"),
    ".array_record": (open_array_record, b""),
}
