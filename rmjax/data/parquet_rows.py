"""Rows of Parquet files, held in memory as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from rmjax.data.decompression import sensible_limit, too_large
from rmjax.data.errors import RecordError, first_line, not_utf8
from rmjax.data.messages import from_strings

_BATCH_ROWS = 1024  # of a Parquet file, decoded at once at most
_CHUNK_BYTES = 2**24  # of its table in memory


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
        raise RecordError(str(path), "", "broken Parquet file", remedy, first_line(error)) from None


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
