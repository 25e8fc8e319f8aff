"""Files of comparisons: random access for reading, atomic writing."""

from __future__ import annotations

import array
import collections
import errno
import json
import logging
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, SupportsIndex, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from rmjax.data import fields
from rmjax.data.column_map import AS_THEY_ARE, ColumnMap
from rmjax.data.columns import parquet_schema
from rmjax.data.layouts import RECORDS, reshaped
from rmjax.data.messages import as_strings
from rmjax.data.record import (
    FIELDS,
    Comparison,
    RecordError,
    known_fields,
    parse,
    scores_contradict,
    to_row,
    unknown_fields,
)
from rmjax.data.rows import Rows, open_rows
from rmjax.data.texts import Notes
from rmjax.files import replacing

logger = logging.getLogger(__name__)

_ZSTD_LEVEL = 10
_ONE_RECORD_PER_GROUP = "group_size:1"  # ArrayRecord: random access without reading neighbors
_T = TypeVar("_T")
Parser = Callable[[Mapping[str, object], str, Notes | None], Comparison]
"""(row, place, what counts what was done to its texts) → the record; RecordError where it is none."""


class RandomAccessSource:
    """Comparisons by index, every one of them already validated; a grain data source.

    Attributes:
      path: as it was given.
      skipped: reason -> number of rows left out (blank lines, and bad records where asked for).
      unknown: field name -> number of rows in which it was ignored.
      contradicting: number of records whose scores contradict their ranks, which count.
      notes: what was done to texts, in words -> how often.
    """

    def __init__(
        self,
        path: str,
        rows: Rows,
        kept: np.ndarray,
        skipped: dict[str, int],
        unknown: dict[str, int],
        contradicting: int = 0,
        notes: Mapping[str, int] | None = None,
        parser: Parser = parse,
    ) -> None:
        self.path, self.skipped, self.unknown, self.contradicting = path, skipped, unknown, contradicting
        self.notes = dict(notes or {})
        self._rows, self._kept, self._parser = rows, kept, parser

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: SupportsIndex) -> Comparison:
        i = int(self._kept[operator.index(index)])
        return self._parser(self._rows.row(i), self._rows.place(i), None)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Comparison]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:  # grain stores it in its checkpoints, so it must not vary
        return f"RandomAccessSource(path={self.path!r}, length={len(self)})"


def open_records(
    path: str | Path,
    on_error: Literal["raise", "skip"] = "raise",
    layout: str = RECORDS,
    columns: ColumnMap = AS_THEY_ARE,
    parser: Parser = parse,
) -> RandomAccessSource:
    """Opens and validates a file of comparisons.

    Accepts .jsonl, .jsonl.zst, .jsonl.gz, .json (an array of records, or JSON lines), .parquet, .array_record (records
    are UTF-8 JSON), a folder of one kind of these, "tfds:NAME[/CONFIG][:SPLIT][@DIR]" and
    "hf:ORG/NAME[/CONFIG][:SPLIT][@REVISION]". Every record is parsed once here, so a fault shows before training starts;
    records are parsed again at each access and not kept.

    Args:
      path: file or TFDS name.
      on_error: "raise" raises the first bad record's error and says how many there are; "skip"
        leaves bad records out, counts them by reason in `skipped` and logs the counts.
      layout: of its rows: records (ours), auto, or a name in `layouts.LAYOUTS`.
      columns: what the file's columns are called here.
      parser: `record.parse`, or `record.parse_text` for texts.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the file cannot be read.
      RecordError: a bad record; or, whatever `on_error` says, a file that is empty, damaged as a
        whole (truncated zstd), of an unknown type, or without a single good record.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is "{on_error}"; use "raise" or "skip"')
    rows = reshaped(open_rows(path, columns), str(path), layout)
    kept = array.array("q")
    errors: list[RecordError] = []
    unknown: collections.Counter[str] = collections.Counter()
    contradicting, notes = 0, Notes()
    for i in range(len(rows)):
        try:
            raw = rows.row(i)
            contradicting += scores_contradict(parser(raw, rows.place(i), notes))  # type: ignore[arg-type]
            unknown.update(unknown_fields(raw))  # type: ignore[arg-type]
            kept.append(i)
        except RecordError as error:
            errors.append(error)
    skipped = _tally(rows, errors)
    _log_unknown(str(path), unknown, len(rows), known_fields())
    unknown.update(getattr(rows, "ignored", {}))  # by a layout, which has said so
    log_notes(str(path), notes)
    if errors and (on_error == "raise" or not kept):
        raise _first_with_count(errors, len(rows))
    if skipped:
        logger.warning("%s: skipped %s", path, listed(skipped))
    if contradicting:
        message = (
            "%s: `scores` contradict the order that is given in %d of %d records; the order counts; correct or drop one"
        )
        logger.warning(message, path, contradicting, len(rows))
    found = np.asarray(kept, np.int64)
    return RandomAccessSource(str(path), rows, found, skipped, dict(unknown), contradicting, notes, parser)


def read_all(
    path: str | Path,
    parser: Callable[[Mapping[str, object], str, Notes], _T],
    known: Collection[str] = FIELDS,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: collections.Counter[str] | None = None,
    layout: str = RECORDS,
    columns: ColumnMap = AS_THEY_ARE,
) -> list[_T]:
    """All rows of a file through one of the parsers (`parse_text`, `parse_sample`, `parse_prompt`).

    Args:
      known: the fields that the parser reads; others are logged with their counts.
      on_error: as in `open_records`.
      skipped: gets the number of rows that are left out, by reason.
      layout, columns: as in `open_records`.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the file cannot be read.
      RecordError: as `open_records`.
    """
    found: list[_T] = []
    errors: list[RecordError] = []
    unknown: collections.Counter[str] = collections.Counter()
    notes, rows = Notes(), reshaped(open_rows(path, columns), str(path), layout)
    for i in range(len(rows)):
        try:
            row = rows.row(i)
            found.append(parser(row, rows.place(i), notes))  # type: ignore[arg-type]
            unknown.update(fields.unknown(row, known))  # type: ignore[arg-type]
        except RecordError as error:
            errors.append(error)
    total = len(found) + len(errors)
    _log_unknown(str(path), unknown, total, known)
    log_notes(str(path), notes)
    if errors and (on_error == "raise" or not found):
        raise _first_with_count(errors, total)
    tally = _tally(rows, errors)
    if tally:
        logger.warning("%s: skipped %s", path, listed(tally))
    if skipped is not None:
        skipped.update(tally)
    return found


def _tally(rows: Rows, errors: Sequence[RecordError]) -> dict[str, int]:
    tally = collections.Counter(error.reason for error in errors)
    if blank := getattr(rows, "blank_lines", 0):  # of JSON lines
        tally["blank line"] = blank
    return dict(tally)


def _first_with_count(errors: Sequence[RecordError], total: int) -> RecordError:
    first = errors[0]
    if len(errors) == 1:
        return first
    remedy = f"{first.remedy} ({len(errors)} of {total} records are bad)"
    return RecordError(first.place, first.field, first.problem, remedy, first.detail)


def listed(tally: Mapping[str, int]) -> str:
    """Reasons and how often, for messages."""
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(tally.items()))


def log_notes(path: str, notes: Notes) -> None:
    """Warns of what was done to a file's rows, with counts."""
    for note, count in sorted(notes.items()):
        logger.warning("%s: %d × %s", path, count, note)


def _log_unknown(path: str, unknown: collections.Counter[str], total: int, known: Collection[str]) -> None:
    for name, count in sorted(unknown.items()):
        near = fields.nearest(name, known)
        hint = f" (did you mean `{near}`?)" if near else ""
        message = "%s: unknown field `%s` ignored in %d of %d records%s"
        logger.warning(message, path, name, count, total, hint)


def write_records(path: str | Path, comparisons: Iterable[Comparison]) -> int:
    """Writes comparisons as .jsonl, .jsonl.zst, .parquet or .array_record, and counts them.

    The file appears complete or not at all: it is written beside its place and then renamed.
    `place` is not written.

    Raises:
      OSError: disk full, no permission, no such directory; what was there before is untouched.
      RecordError: unknown extension, or no record to write.
    """
    path = Path(path)
    writer = _writer_for(path)
    rows = [to_row(comparison) for comparison in comparisons]
    if not rows:
        raise RecordError(str(path), "", "no records to write", "check what selects them")
    try:
        with replacing(path) as unfinished:
            unfinished.touch()  # ArrayRecord's writer would hide why it cannot be made
            writer(unfinished, rows)
    except (OSError, RuntimeError) as error:
        raise _write_error(error, path) from error
    return len(rows)


def _write_error(error: OSError | RuntimeError, path: Path) -> OSError:
    """One clear error; ArrayRecord reports a full disk as RuntimeError."""
    reason = getattr(error, "strerror", None) or str(error)
    message = f"cannot write ({reason}); check free space and permission, nothing was changed"
    return OSError(getattr(error, "errno", None) or errno.EIO, message, str(path))


def _writer_for(path: Path) -> Callable[[Path, Sequence[dict[str, object]]], None]:
    for suffix, writer in _WRITERS.items():
        if path.name.endswith(suffix):
            return writer
    raise RecordError(str(path), "", "unknown file type", f"use one of {', '.join(_WRITERS)}")


def _encoded(row: dict[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _write_jsonl(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("wb") as file:
        file.writelines(_encoded(row) + b"\n" for row in rows)


def _write_jsonl_zst(path: Path, rows: Sequence[dict[str, object]]) -> None:
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
    with path.open("wb") as file, compressor.stream_writer(file) as stream:
        for row in rows:
            stream.write(_encoded(row) + b"\n")


def _write_array_record(path: Path, rows: Sequence[dict[str, object]]) -> None:
    writer = ArrayRecordWriter(str(path), _ONE_RECORD_PER_GROUP)
    for row in rows:
        writer.write(_encoded(row))
    writer.close()


def _write_parquet(path: Path, rows: Sequence[dict[str, object]]) -> None:
    table = pyarrow.Table.from_pylist([as_strings(row) for row in rows], schema=parquet_schema())
    pyarrow.parquet.write_table(table, path, compression="zstd", write_page_checksum=True)


_WRITERS: dict[str, Callable[[Path, Sequence[dict[str, object]]], None]] = {
    ".jsonl": _write_jsonl,
    ".jsonl.zst": _write_jsonl_zst,
    ".parquet": _write_parquet,
    ".array_record": _write_array_record,
}
