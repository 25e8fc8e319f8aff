"""Rows of Parquet files.

A file is read once, a few rows at a time, into a table for random access: row groups may hold a million rows, of which each
access would decode all. Small tables stay in memory, others lie uncompressed in a temporary file without a name that is mapped:
the system may take its pages from memory at any time, and the file goes with the process.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from rmjax.data.decompression import sensible_limit, too_large
from rmjax.data.errors import RecordError, first_line, not_utf8
from rmjax.data.messages import from_strings

_BATCH_ROWS = 1024  # of a Parquet file, decoded at once at most
_CHUNK_BYTES = 2**24  # of its table, joined; of what is decoded at once, about
_READ_BYTES = 2**20  # of a column in the file, read at once
_IN_MEMORY_BYTES = 2**22  # of a file's table at most; a larger one lies in a temporary file


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
            raise RecordError(self.place(i), name, "unreadable value", remedy, first_line(error)) from None


def open_parquet(path: Path) -> ParquetRows:
    """Opens a Parquet file, with checksums verified where it has them; above `_IN_MEMORY_BYTES` its table is in a temporary file.

    Raises:
      RecordError: the file is damaged, or its table takes more memory than `sensible_limit` gives it.
      OSError: it cannot be read, or the temporary folder has no space.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, buffer_size=_READ_BYTES) as file:
            table = _read_table(file, path)
            _ = table.column_names  # are decoded here
            return ParquetRows(str(path), table)
    except MemoryError:  # pyarrow's is an ArrowException too
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own, of damaged pages, have no number
            raise
        remedy = "write or download the file again"
        raise RecordError(str(path), "", "broken Parquet file", remedy, first_line(error)) from None


def _read_table(file: pyarrow.parquet.ParquetFile, path: Path) -> pyarrow.Table:
    """The whole table. A value that is stored once may stand in every row: what counts is the size of what was read."""
    size, limit = path.stat().st_size, sensible_limit(path.stat().st_size)
    groups = _least_bytes(file.metadata)
    if sum(groups) > limit:
        raise too_large(str(path), size, limit)
    # Each row may be as large as all that its group stores, and even then a batch is not above the limit.
    usual = _CHUNK_BYTES * file.metadata.num_rows // max(1, sum(groups))
    rows = max(1, min(_BATCH_ROWS, limit // max([1, *groups]), usual))
    schema = file.schema_arrow
    # Columns that stay dictionaries do not grow, and each batch would have a copy of the dictionary.
    shared = [field.name for field in schema if pyarrow.types.is_dictionary(field.type)]
    others = [field for field in schema if field.name not in shared]
    kept = file.read(columns=shared) if shared else None
    taken = kept.nbytes if kept is not None else 0

    def within(chunks: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
        read = taken
        for chunk in chunks:
            read += chunk.nbytes
            if read > limit:
                raise too_large(str(path), size, limit)
            yield chunk

    batches = file.iter_batches(rows, columns=[field.name for field in others] if shared else None)
    read = _stored(within(_chunks(batches)), pyarrow.schema(others, schema.metadata), path)
    if kept is None:
        return read
    return pyarrow.table([(kept if name in shared else read)[name] for name in schema.names], schema=schema)


def _stored(chunks: Iterator[pyarrow.Table], schema: pyarrow.Schema, path: Path) -> pyarrow.Table:
    """One table of chunks, in memory as long as it is small."""
    held, size = [schema.empty_table()], 0
    for chunk in chunks:
        held.append(chunk)
        size += chunk.nbytes
        if size > _IN_MEMORY_BYTES:
            return _mapped(itertools.chain(held, chunks), schema, path)
    return pyarrow.concat_tables(held)


def _mapped(chunks: Iterable[pyarrow.Table], schema: pyarrow.Schema, path: Path) -> pyarrow.Table:
    try:
        with tempfile.NamedTemporaryFile(prefix="rmjax-", suffix=".arrow") as file:
            with pyarrow.OSFile(file.name, "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
                for chunk in chunks:
                    writer.write_table(chunk)
            with pyarrow.memory_map(file.name) as mapped:
                return pyarrow.ipc.open_file(mapped).read_all()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        folder = tempfile.gettempdir()
        said = f"no space for the table of {path} in {folder}; free some, or set TMPDIR to a folder with more"
        raise OSError(errno.ENOSPC, said) from error


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
