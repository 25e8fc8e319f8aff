"""A round's files: `round-00007.jsonl`, its answers as records, and `round-00007.json`, what they were drawn with, what was
measured of them, and which had no reward, with the reason.

The second is written last and has the SHA-256 of the first: a round without it was never finished, and is drawn again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # numpy then knows bfloat16, which safetensors reads by name
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rmjax.data.record import Comparison, parse, to_row
from rmjax.files import replacing, write_json, write_lines

_SAID = "drawn with"
Failed = Mapping[int, Sequence[Mapping[str, str]]]
"""Index of a prompt → its outputs without a reward: `output`, `reason`."""


@dataclasses.dataclass(frozen=True)
class Round:
    """A round's answers.

    Attributes:
      records: with their rewards, and all that is learned from.
      questions: of each, the index of its prompt.
      metrics: of the round.
      failed: what was dropped.
    """

    records: Sequence[Comparison]
    questions: Sequence[int]
    metrics: Mapping[str, float]
    failed: Failed = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RoundFiles:
    """Reads and writes the rounds of a run.

    Attributes:
      folder: of the files.
      settings: what all rounds are drawn with (JSON); a file of other settings is an error.
    """

    folder: Path
    settings: Mapping[str, Any]

    def path(self, number: int) -> Path:
        """Of a round's records."""
        return self.folder / f"round-{number:05}.jsonl"

    def write(self, number: int, found: Round, own: Mapping[str, Any]) -> Round:
        """Writes a round, and gives it as it is read again.

        Args:
          own: what this round alone was drawn with (JSON), as its step and seed.
        """
        path = self.path(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # of a file that is replaced now
        write_lines(path, map(to_row, found.records))
        told: dict[str, Any] = {"metrics": dict(found.metrics), "questions": list(found.questions)}
        failed = {str(i): list(outputs) for i, outputs in found.failed.items()}
        settings = dict(self.settings) | dict(own)
        write_json(path.with_suffix(".json"), {_SAID: settings, "sha256": _digest(path), **told, "failed": failed})
        again = self.read(number, own)
        assert again is not None
        return again

    def read(self, number: int, own: Mapping[str, Any]) -> Round | None:
        """A round that was finished; None where it was not.

        Raises:
          ValueError: it was drawn with other settings, or is damaged.
        """
        path = self.path(number)
        beside = path.with_suffix(".json")
        if not (path.is_file() and beside.is_file()):
            return None
        try:
            known = json.loads(beside.read_text(encoding="utf-8"))
            then, digest, metrics, asked = (known[name] for name in (_SAID, "sha256", "metrics", "questions"))
            failed = {int(i): outputs for i, outputs in known["failed"].items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{beside}: not what a run writes ({error!r}); {_REMEDY}") from error
        now = json.loads(json.dumps({**self.settings, **own}))
        if other := [name for name in now.keys() | then.keys() if then.get(name) != now.get(name)]:
            raise ValueError(f"{path} was drawn with another {', '.join(sorted(other))} than now; {_REMEDY}")
        if digest != _digest(path):
            raise ValueError(f"{path} is not as it was written (another SHA-256 than in {beside.name}); {_REMEDY}")
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        records = [parse(row, f"{path}:{i}", blank=True) for i, row in enumerate(rows, 1)]
        return Round(records, asked, metrics, failed)

    # --- the reference of later rounds ------------------------------------------------------------------------------------

    def reference_path(self, number: int) -> Path:
        """Of the parameters that are the reference from a round on."""
        return self.folder / f"reference-{number:05}.safetensors"

    def write_reference(self, number: int, leaves: Mapping[str, Any]) -> None:
        """Writes the reference of a round and those that follow, and removes those of before but for one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.reference_path(number)
        with replacing(path) as unfinished:
            save_file({name: np.asarray(leaf) for name, leaf in leaves.items()}, unfinished)
        for old in sorted(self.folder.glob("reference-*.safetensors"))[:-2]:
            old.unlink()

    def read_reference(self, number: int) -> dict[str, np.ndarray] | None:
        """Path → leaf; None where there is no such file. ValueError where it is damaged."""
        path = self.reference_path(number)
        if not path.is_file():
            return None
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); {_REMEDY}") from error


_REMEDY = "bring it back, or use a new workdir"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
