"""Rows of JSON: an object a line, or an array of objects."""

from __future__ import annotations

import array
import dataclasses
import io
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from rmjax.data.decompression import decompress, gunzip
from rmjax.data.errors import RecordError, not_utf8


class _NoNumberError(ValueError):
    """A literal that Python's decoder takes and JSON does not have."""


def _refuse_literal(literal: str) -> float:
    raise _NoNumberError(literal)


_JSON = json.JSONDecoder(parse_constant=_refuse_literal)


def decode_json(line: bytes, place: str, unit: str = "line") -> object:
    """Decodes UTF-8 JSON of one line, or of what `unit` says; RecordError names the byte, or line and column, of a fault.

    NaN and infinities, which JSON does not have, are faults, and so are numbers of thousands of digits.
    """
    remedy = f"correct or delete the {unit}"
    try:
        return _JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(error, place, f"of the {unit}") from None
    except json.JSONDecodeError as error:
        raise RecordError(place, "", "broken JSON", remedy, f"{_where(error, unit)}: {error.msg}") from None
    except RecursionError:
        raise RecordError(place, "", "broken JSON", remedy, "nested too deeply") from None
    except _NoNumberError as error:
        raise RecordError(place, "", "not a JSON number", "write null, or leave the field out", str(error)) from None
    except ValueError as error:  # Python limits the digits of an integer
        raise RecordError(place, "", "number with too many digits", remedy, str(error).split(";")[0]) from None


def _where(error: json.JSONDecodeError, unit: str) -> str:
    """The place of a fault: a fault behind a line's newline is in its column, not in a second line."""
    if unit == "line":
        return f"column {error.pos + 1}"
    return f"column {error.colno} of its line {error.lineno}" if "\n" in error.doc else f"column {error.pos + 1} of it"


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """JSON lines, or the elements of an array: read from the file at each access, or held in memory where it is compressed."""

    path: str
    starts: np.ndarray  # byte offset of each row
    stops: np.ndarray  # byte offset of its end
    numbers: np.ndarray  # line in which each row begins, from 1; blank lines are no rows
    blank_lines: int
    text: bytes | None  # the decompressed file, or None to read `path`
    unit: str = "line"  # what a row is called in errors
    stamp: tuple[int, int] | None = None  # of the file as it was indexed

    def __len__(self) -> int:
        return len(self.starts)

    def place(self, i: int) -> str:
        return f"{self.path}:{self.numbers[i]}"

    def row(self, i: int) -> object:
        return decode_json(self._line(i), self.place(i), self.unit)

    def _line(self, i: int) -> bytes:
        start, stop = int(self.starts[i]), int(self.stops[i])
        if self.text is not None:
            return self.text[start:stop]
        with open(self.path, "rb") as file:
            if self.stamp not in (None, _stamp(file)):
                remedy = "start again, and let files that are in use alone"
                raise RecordError(self.place(i), "", "the file was changed after it was opened", remedy)
            file.seek(start)
            return file.read(stop - start)


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_mtime_ns, found.st_size


def open_jsonl(path: Path) -> JsonLines:
    """Opens uncompressed JSON lines; only the line offsets stay in memory (24 bytes a line)."""
    with path.open("rb") as file:
        return dataclasses.replace(index_lines(str(path), file, None), stamp=_stamp(file))


def open_jsonl_zst(path: Path) -> JsonLines:
    """Opens zstd-compressed JSON lines, decompressed in memory."""
    text = decompress(path)
    return index_lines(str(path), io.BytesIO(text), text)


def open_jsonl_gz(path: Path) -> JsonLines:
    """Opens JSON lines compressed by gzip, decompressed in memory."""
    text = gunzip(path)
    return index_lines(str(path), io.BytesIO(text), text)


def open_json(path: Path) -> JsonLines:
    """Opens an array of records, on one line or several; JSON lines where the file does not begin with a bracket. Only offsets
    stay in memory (24 bytes a record).

    Raises:
      RecordError: the array does not end, or something stands behind it; the line is named.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:  # which cannot be mapped
            return index_lines(str(path), file, None)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = index_elements(str(path), data, None) if _ARRAY.match(data) else index_lines(str(path), file, None)
            return dataclasses.replace(found, stamp=_stamp(file))


def in_memory(name: str, text: bytes) -> JsonLines:
    """JSON lines, or an array, that are no file; `name` is what errors call them."""
    return index_elements(name, text, text) if _ARRAY.match(text) else index_lines(name, io.BytesIO(text), text)


def index_lines(path: str, lines: Iterable[bytes], text: bytes | None) -> JsonLines:
    """Finds the lines of JSON. Only b"\\n" ends one: U+2028 and U+0085 occur inside JSON strings."""
    starts, stops, numbers = (
        array.array("q"),
        array.array("q"),
        array.array("q"),
    )  # a list would take four times as much
    offset = number = 0
    for number, line in enumerate(lines, 1):
        if line.strip(b" \t\r\n\xef\xbb\xbf"):
            # A byte order mark is legal in UTF-8 and illegal in JSON.
            starts.append(offset + 3 * (number == 1 and line.startswith(b"\xef\xbb\xbf")))
            stops.append(offset + len(line))
            numbers.append(number)
        offset += len(line)
    rows = JsonLines(
        path=path,
        starts=np.asarray(starts, np.int64),
        stops=np.asarray(stops, np.int64),
        numbers=np.asarray(numbers, np.int64),
        blank_lines=number - len(numbers),
        text=text,
    )
    _refuse_other_json(rows)
    return rows


def _refuse_other_json(rows: JsonLines) -> None:
    """RecordError where the file is one JSON array, or objects over several lines each."""
    head = b"".join(rows._line(i).strip(b" \t\r") for i in range(min(2, len(rows))))
    if re.match(rb"\[\s*(\{|$)", head):
        remedy = f"give its name the ending .json, or write an object a line, say with `jq -c '.[]' {rows.path}`"
        raise RecordError(rows.place(0), "", "a JSON array, not JSON lines", remedy)
    if re.match(rb'\{\s*\n\s*"', head):
        remedy = f"write each object in one line, for example with `jq -c . {rows.path}`"
        raise RecordError(rows.place(0), "", "an object over several lines, not JSON lines", remedy)


_AGAIN = "close it, or copy the file again"
_BLANK = re.compile(rb"[ \t\r\n]*")
_ARRAY = re.compile(rb"(\xef\xbb\xbf)?[ \t\r\n]*\[")
# What tells where an element ends. A string ends in its line; a quotation mark alone is one that does not.
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"|["\[\]{},\n]')


def index_elements(path: str, data: bytes | mmap.mmap, text: bytes | None) -> JsonLines:
    """Finds the elements of a JSON array, which are not decoded: a broken one is one bad record.

    Args:
      path: what errors name.
      data: that begin with an array.
      text: the same where they are no file.

    Raises:
      RecordError: the array does not end, or something stands behind it; the line is named.
    """
    found = np.fromiter((number for each in _elements(path, data) for number in each), np.int64).reshape(-1, 3)
    starts, stops, numbers = found.T.copy()
    return JsonLines(path, starts, stops, numbers, blank_lines=0, text=text, unit="record")


def _elements(path: str, data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Start, end and line of each element."""
    opening = _ARRAY.match(data)
    assert opening
    line = 1 + opening[0].count(b"\n")
    start, first = _begin(data, opening.end(), line)
    depth, count = 1, 0
    for token in _TOKEN.finditer(data, opening.end()):
        kind = token[0]
        if kind == b"\n":
            line += 1
        elif kind == b'"':
            remedy = "close it, or write a newline in it as \\n"
            raise RecordError(f"{path}:{line}", "", "a text that does not end in its line", remedy)
        elif kind in b"[{":
            depth += 1
        elif kind in b"]}":
            depth -= 1
        if kind in b",]}" and depth == (1 if kind == b"," else 0):
            if kind != b"]" or start < token.start() or count:
                yield start, token.start(), first
            count += 1
            if kind != b",":
                _refuse_more(path, data, token, line)
                return
            start, first = _begin(data, token.end(), line)
    raise RecordError(f"{path}:{first}", "", "an array without its end, whose last record begins here", _AGAIN)


def _begin(data: bytes | mmap.mmap, at: int, line: int) -> tuple[int, int]:
    """Where what follows begins, and in which line."""
    blank = _BLANK.match(data, at)
    assert blank
    return blank.end(), line + blank[0].count(b"\n")


def _refuse_more(path: str, data: bytes | mmap.mmap, last: re.Match[bytes], line: int) -> None:
    """RecordError unless the array ends with a bracket, and the file with the array."""
    start, number = _begin(data, last.end(), line)
    if last[0] == b"}":
        raise RecordError(f"{path}:{line}", "", "a brace that closes nothing", "delete it, or open it before")
    if start < len(data):
        remedy = "write one array, or an object a line"
        raise RecordError(f"{path}:{number}", "", "something stands behind the array", remedy)
