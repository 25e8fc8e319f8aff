"""The request log: a JSON line each. A log that cannot be written stops no reward."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class Log:
    """Lines at the end of a file; nothing without one. Texts are not logged.

    Args:
      failed: called for each line that was lost.
    """

    def __init__(self, path: Path | None, failed: Callable[[], None] = lambda: None):
        self._file = path.open("ab", buffering=0) if path else None
        self._path, self._failed, self._said = path, failed, False

    def write(self, facts: Mapping[str, Any]) -> None:
        """A line, or a warning where it is the first that is lost."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(facts).encode() + b"\n")
        except OSError as error:
            self._failed()
            if not self._said:
                self._said = True
                _log.warning("%s: cannot write (%s); requests go on without a log", self._path, error.strerror)
