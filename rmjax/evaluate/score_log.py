"""Scores written down as they are made, so that a stopped evaluation continues."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rmjax.data.record import Comparison
from rmjax.locks import is_lock

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes read at once


def fingerprint_files(path: Path, ignore: Collection[Path] = ()) -> str:
    """SHA-256 of a file, or of all files below a folder, by relative name and content; locks of runs are left out.

    Args:
      path: a checkpoint.
      ignore: files below it that are not part of it, say results that go into the same folder.

    Raises:
      OSError: a file cannot be read.
    """
    ignored = {file.resolve() for file in ignore}
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.resolve() in ignored or is_lock(file):
            continue
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest()


def fingerprint_comparisons(comparisons: Iterable[Comparison]) -> str:
    """SHA-256 of all that scores and accuracies depend on, wherever the records came from."""
    digest = hashlib.sha256()
    for record in comparisons:
        text = (record.prompt, record.outputs, record.references, record.wrapper, record.type)
        labels = (record.ranks, record.scores, record.category)
        digest.update(json.dumps([text, labels]).encode())
    return digest.hexdigest()


class ScoreLog:
    """An append-only JSONL file: a header with the fingerprint, then a line for every `append`.

    Use as a context manager. `scores` holds what is known: row number -> one score per output;
    `counts` what encoding these rows had to change. Lines are on disk when `append` returns; a last
    line that a crash cut short is dropped, and a log of other data, another model or other options
    is started again, both with a warning.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        self.path = path
        self.scores: dict[int, list[float]] = {}
        self.counts: Counter[str] = Counter()
        self._header = {"fingerprint": dict(fingerprint)}
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        size = self._read() if self.path.exists() else 0
        # Unbuffered: after a failed write there is nothing left for `close` to fail at again.
        self._file = self.path.open("r+b" if size else "wb", buffering=0)
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write([self._header])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, scored: Mapping[int, list[float]], counts: Mapping[str, int] | None = None) -> None:
        """Writes down the scores of some rows, and what encoding them had to change (name -> number).

        Raises:
          OSError: naming the file, say when the disk is full.
        """
        self._write([{"scores": scored, "counts": dict(counts or {})}])  # one line, so that neither is there alone
        self.scores.update(scored)
        self.counts.update(counts or {})

    def _write(self, lines: Iterable[Mapping[str, object]]) -> None:
        if self._file is None:
            raise ValueError(f"{self.path}: a score log is used as a context manager")
        try:
            rest = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _read(self) -> int:
        """Fills `scores`; returns how many bytes of the file are good."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        header, size = self._header, 0
        for number, line in enumerate(lines):
            entry = _entry(line)
            if number == 0 and entry != header:
                logger.warning("%s is of other data or of another model: from the start", self.path)
                return 0
            if entry is None or (number and "counts" not in entry):
                logger.warning("%s:%d is cut short: rows from here anew", self.path, number + 1)
                return size
            if number:
                self.scores.update({int(row): list(map(float, scores)) for row, scores in entry["scores"].items()})
                self.counts.update(entry["counts"])
            size += len(line)
        return size


def _entry(line: bytes) -> dict[str, Any] | None:
    """A whole line's object, or None if the line was cut short."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if line.endswith(b"\n") and isinstance(entry, dict) else None
