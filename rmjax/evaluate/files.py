"""Result files that are either whole or absent."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
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


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text`, at once: a reader, or a crash, sees the old file or the new one.

    Raises:
      OSError: naming the file, say when the disk is full; the old file is then unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


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
