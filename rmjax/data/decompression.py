"""zstd and gzip files into memory, with a limit: a few kilobytes may stand for gigabytes of blanks."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from rmjax.data.record import RecordError

LIMIT = "RMJAX_MAX_DECOMPRESSED"  # environment: bytes that one file may take in memory
_SENSIBLE_RATIO = 200  # JSON of real data is compressed 3 to 30 times
_ALWAYS_BYTES = 2**26  # what any file may take
# Frames of zstd --long=28 and above exceed the decoder's default limit of 2**27.
_MAX_WINDOW_BYTES = 2**31
# Read at once. A block of four bytes may stand for 128 KiB, so that one piece gives 64 MiB at most.
_PIECE_BYTES = 2048
_GZIP_BYTES = 2**20  # decompressed at once
_AGAIN = "copy or download the file again"


def decompress(path: Path, limit: int | None = None) -> bytes:
    """Decompresses a zstd file of one or several frames.

    Args:
      path: the file.
      limit: bytes that it may take; by default those of the environment's RMJAX_MAX_DECOMPRESSED, or else what is sensible
        for a file of this size on this machine.

    Raises:
      RecordError: the file is damaged, or takes more than the limit.
    """
    with path.open("rb") as file:
        return _joined(_pieces(file, str(path)), path, limit)


def gunzip(path: Path, limit: int | None = None) -> bytes:
    """Decompresses a gzip file of one or several members; arguments and errors as `decompress`."""
    try:
        with gzip.open(path) as file:
            return _joined(iter(lambda: file.read(_GZIP_BYTES), b""), path, limit)
    except EOFError:
        raise RecordError(str(path), "", "truncated gzip file", _AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RecordError(str(path), "", "broken gzip file", _AGAIN, str(error)) from None


def _joined(pieces: Iterator[bytes], path: Path, limit: int | None) -> bytes:
    limit = sensible_limit(path.stat().st_size) if limit is None else limit
    text = io.BytesIO()
    for piece in pieces:
        if text.tell() + len(piece) > limit:
            raise too_large(str(path), path.stat().st_size, limit)
        text.write(piece)
    return text.getvalue()


def sensible_limit(size: int) -> int:
    """Bytes that a compressed file of `size` bytes may take in memory.

    Raises:
      RecordError: the environment's RMJAX_MAX_DECOMPRESSED is no number.
    """
    if given := os.environ.get(LIMIT):
        if not given.isascii() or not given.isdigit():
            raise RecordError(LIMIT, "", f"is {given!r}, not a number of bytes", "set it to one, such as 4000000000")
        return int(given)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(_ALWAYS_BYTES, _SENSIBLE_RATIO * size), memory)


def too_large(path: str, size: int, limit: int) -> RecordError:
    """The error of a file of `size` bytes that takes more than `limit` in memory."""
    return RecordError(
        path,
        "",
        "takes more memory than is sensible",
        f"if it is meant to, set {LIMIT} in the environment to the bytes it may take",
        f"{size:,} bytes become more than {limit:,}",
    )


def _pieces(file: io.BufferedReader, path: str) -> Iterator[bytes]:
    frame = None
    while rest := file.read(_PIECE_BYTES):
        while rest:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
            try:
                yield frame.decompress(rest)
            except zstandard.ZstdError as error:
                raise RecordError(path, "", "broken zstd file", _AGAIN, str(error)) from None
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise RecordError(path, "", "truncated zstd file", _AGAIN)
