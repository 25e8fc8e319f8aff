"""The one writer of small files: each is whole and on the disk, or as it was before."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def refuse_unwritable(path: Path) -> None:
    """Raises OSError now if `path` could not be written later; creates missing parent folders.

    Hours of scoring should not end at a file that cannot be written. Nothing is left behind.
    """
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

    Where anything fails, `path` is as it was and nothing is left beside it.
    """
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
