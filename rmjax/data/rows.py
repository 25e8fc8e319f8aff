"""Random access to the raw rows of a file, one small class per storage format.

Every class has `__len__`, `row(i)` (the decoded row, not validated) and `place(i)` ("file:line").
They keep no open files, so that data loading threads can share them and worker processes can
receive them.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rmjax.data.columns import folded
from rmjax.data.decompression import sensible_limit, too_large
from rmjax.data.jsonrows import decode_json, not_utf8, open_json, open_jsonl, open_jsonl_gz, open_jsonl_zst
from rmjax.data.messages import from_strings
from rmjax.data.record import RecordError
from rmjax.files import disguise, refuse_url

_TFDS_NAME = re.compile(r"tfds:(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>[^@]+))?(@(?P<directory>.+))?")
_POOL_LABELS = ("kind", "policy_split", "prompt_split")  # absent where a TFDS example has them empty

_BATCH_ROWS = 1024  # of a Parquet file, decoded at once at most
_CHUNK_BYTES = 2**24  # of its table in memory


class Rows(Protocol):
    """What a reader needs from a storage format."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> object: ...

    def place(self, i: int) -> str: ...


def open_rows(path: str | Path) -> Rows:
    """Opens a file by its extension, or a TFDS data set by "tfds:NAME[/CONFIG][:SPLIT][@DIR]".

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the file cannot be read.
      RecordError: unknown extension, or the file is damaged or empty.
    """
    if str(path).startswith("tfds:"):
        return _not_empty(open_tfds(str(path)), str(path))
    path = Path(path)
    check_readable(path)
    for suffix, (opener, magic) in _OPENERS.items():
        if path.name.endswith(suffix):
            _refuse_disguise(path, magic)
            return _not_empty(opener(path), str(path))
    _refuse_disguise(path)
    accepted = ", ".join(_OPENERS) + " and tfds:NAME:SPLIT"
    lines = "; write one JSON object a line" if path.suffix in (".csv", ".tsv") else ""
    raise RecordError(str(path), "", "unknown file type", f"use one of {accepted}{lines}")


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
class ParquetRows:
    """Rows of a Parquet table; the number in a place is the row's, from 1."""

    path: str
    table: pyarrow.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def place(self, i: int) -> str:
        return f"{self.path}:{i + 1}"

    def row(self, i: int) -> object:
        return from_strings({name: self._value(i, name) for name in self.table.column_names}, self.place(i))

    def _value(self, i: int, name: str) -> object:
        try:
            return self.table[name][i].as_py()
        except UnicodeDecodeError as error:
            raise not_utf8(error, self.place(i), "of a text", name) from None
        except (ValueError, OverflowError, pyarrow.ArrowException) as error:
            remedy = "correct or delete the row"
            raise RecordError(self.place(i), name, "unreadable value", remedy, _first_line(error)) from None


def open_parquet(path: Path) -> ParquetRows:
    """Opens a Parquet file, with checksums verified where it has them; its table is held in memory.

    Raises:
      RecordError: the file is damaged, or its table takes more memory than `sensible_limit` gives it.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = _read_table(file, path)
            _ = table.column_names  # are decoded here
            return ParquetRows(str(path), table)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own, of damaged pages, have no number
            raise
        remedy = "write or download the file again"
        raise RecordError(str(path), "", "broken Parquet file", remedy, _first_line(error)) from None


def _read_table(file: pyarrow.parquet.ParquetFile, path: Path) -> pyarrow.Table:
    """The whole table. A value that is stored once may stand in every row: what counts is the size of what was read."""
    size, limit = path.stat().st_size, sensible_limit(path.stat().st_size)
    groups = _least_bytes(file.metadata)
    if sum(groups) > limit:
        raise too_large(str(path), size, limit)
    # Each row may be as large as all that its group stores, and even then a batch is not above the limit.
    rows = max(1, min(_BATCH_ROWS, limit // max([1, *groups])))
    schema = file.schema_arrow
    # Columns that stay dictionaries do not grow, and each batch would have a copy of the dictionary.
    shared = [field.name for field in schema if pyarrow.types.is_dictionary(field.type)]
    others = [field for field in schema if field.name not in shared]
    kept = file.read(columns=shared) if shared else None
    taken = kept.nbytes if kept is not None else 0
    chunks = [pyarrow.schema(others, schema.metadata).empty_table()]
    for chunk in _chunks(file.iter_batches(rows, columns=[field.name for field in others] if shared else None)):
        taken += chunk.nbytes
        if taken > limit:
            raise too_large(str(path), size, limit)
        chunks.append(chunk)
    read = pyarrow.concat_tables(chunks)
    if kept is None:
        return read
    return pyarrow.table([(kept if name in shared else read)[name] for name in schema.names], schema=schema)


def _least_bytes(metadata: pyarrow.parquet.FileMetaData) -> list[int]:
    """What each row group takes in memory at least, by the footer: as much as is stored, and a byte a row.

    The footer's columns are left alone: pyarrow ends the process where one of them is damaged.
    """
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return [max(group.total_byte_size, group.num_rows) for group in groups]


def _chunks(batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.Table]:
    """Batches joined to about `_CHUNK_BYTES`: an access to a row takes time with the number of chunks."""
    waiting: list[pyarrow.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= _CHUNK_BYTES:
            yield pyarrow.Table.from_batches(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pyarrow.Table.from_batches(waiting).combine_chunks()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
        record = _read(self.source, i, self.place(i))
        if len(record) > self.limit:
            raise too_large(self.place(i), self.size, self.limit)
        return decode_json(record, self.place(i))


def _read(source: Any, i: int, place: str) -> Any:
    """A record of an ArrayRecord file, or an example of TFDS, which come in chunks with checksums."""
    try:
        return source[i]
    except UnicodeDecodeError as error:
        raise not_utf8(error, place, "of a text") from None
    except (RuntimeError, ValueError, IndexError) as error:
        remedy = "write or download the file again"
        raise RecordError(place, "", "damaged ArrayRecord chunk", remedy, _first_line(error)) from None


def open_array_record(path: Path) -> ArrayRecordRows:
    """Opens an ArrayRecord file whose records are UTF-8 JSON."""
    try:
        size = path.stat().st_size
        return ArrayRecordRows(str(path), ArrayRecordDataSource(str(path)), size, sensible_limit(size))
    except RuntimeError as error:
        remedy = "write or download the file again"
        raise RecordError(str(path), "", "broken ArrayRecord file", remedy, _first_line(error)) from None


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
            return from_strings(row_from_example(_read(self.source, i, self.place(i))), self.place(i))
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
