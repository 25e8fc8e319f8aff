"""The one writer of small files: each is whole and on the disk, or as it was before."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # two letters at least: C:/ is a drive
_LFS = "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"
# First bytes → what such a file is, and what to do. Names often say something else.
_DISGUISES: tuple[tuple[bytes, tuple[str, str]], ...] = (
    (b"version https://git-lfs.github.com/spec/", _LFS),
    (b"\x1f\x8b", ("a gzip file", "give its name the ending .jsonl.gz, or unpack it with `gunzip`")),
    (b"PK\x03\x04", ("a zip file", "unpack it")),
    (b"BZh", ("a bzip2 file", "unpack it with `bunzip2`")),
    (b"\xfd7zXZ\x00", ("an xz file", "unpack it with `unxz`")),
    (b"\x28\xb5\x2f\xfd", ("a zstd file", "give its name the ending .jsonl.zst, or unpack it with `unzstd`")),
    (b"PAR1", ("a Parquet file", "give its name the ending .parquet")),
    (b"\xff\xfe", ("text in UTF-16", "convert it to UTF-8, for example with iconv")),
    (b"\xfe\xff", ("text in UTF-16", "convert it to UTF-8, for example with iconv")),
    (b"<!DOCTYPE html", ("a web page", "download the file itself")),
    (b"<html", ("a web page", "download the file itself")),
)


def refuse_url(path: str | Path, name: str = "") -> None:
    """ValueError where a path is a URL, which the file system would take for a folder called `gs:`.

    Args:
      path: what was given.
      name: of the flag or argument, with the sign that stands before the value.
    """
    if found := _URL.match(str(path)):
        url = f"{found[1]}://{str(path)[found.end() :]}"  # a Path has lost a slash
        raise ValueError(f"{name}{url} is a URL; mount the bucket (say with gcsfuse) or give a local folder")


def disguise(path: Path, expected: bytes = b"") -> tuple[str, str] | None:
    """(what a file is, what to do) where its first bytes say that it is something else than its name says.

    Args:
      path: a readable file.
      expected: first bytes that it may have.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if expected and head.startswith(expected):
        return None
    return next((found for magic, found in _DISGUISES if head.startswith(magic)), None)


def refuse_unwritable(path: Path) -> None:
    """Raises OSError now if `path` could not be written later (ValueError: it is a URL); creates missing parent folders.

    Hours of scoring should not end at a file that cannot be written. Nothing is left behind.
    """
    refuse_url(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device or a pipe, which `write_text` would replace; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("the file is read-only")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write {path}: {reason}; name another file") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name of a file to write beside `path`; afterwards it is flushed to the disk and takes the place of `path`.

    Where anything fails, `path` is as it was and nothing is left beside it. ValueError where it is a URL.
    """
    refuse_url(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; some file systems refuse to open folders, and there it is up to them."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text`, at once: a reader, or a crash, sees the old file or the new one.

    Raises:
      OSError: naming the file, say when the disk is full; the old file is then unharmed.
    """
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, f"cannot write ({error.strerror or error})", str(path)) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """`write_text` of indented JSON.

    Raises:
      OSError: as `write_text`.
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """As `write_text`, a JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a JSON object as a line, which is on the disk when this returns. A process that is killed meanwhile leaves a part of
    the line, which `whole_lines` takes off.

    Raises:
      OSError: naming the file, say when the disk is full.
    """
    rest = memoryview(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    try:
        with path.open("ab", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"cannot write ({error.strerror or error})", str(path)) from error


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that `append_line` wrote; a part of one at its end is cut off. None where there is no file."""
    if not path.exists():
        return []
    found = path.read_bytes()
    whole = found[: found.rfind(b"\n") + 1]  # not splitlines, which breaks at U+2028 in text
    if len(whole) < len(found):
        os.truncate(path, len(whole))
    return whole.split(b"\n")[:-1]
