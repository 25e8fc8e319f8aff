"""The programs of schedulers and clouds, played by tests/launch/standin.py."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("gcloud", "sbatch", "squeue", "sacct", "scancel", "scontrol", "srun", "kubectl", "sky")


@dataclasses.dataclass(frozen=True)
class Service:
    """What the stand-ins were asked for, and what exists."""

    home: Path

    def calls(self) -> list[list[str]]:
        file = self.home / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def state(self) -> dict[str, str]:
        file = self.home / "state.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write(self, state: dict[str, str]) -> None:
        """Plays the service."""
        (self.home / "state.json").write_text(json.dumps(state))


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Stand-ins first on PATH."""
    home, programs = tmp_path / "service", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    for name in PROGRAMS:
        program = programs / name
        program.write_text(
            (Path(__file__).parent / "standin.py").read_text().replace("/usr/bin/env python3", sys.executable, 1)
        )
        program.chmod(0o755)
    monkeypatch.setenv("STANDIN", str(home))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Service(home)


@pytest.fixture
def checkout(tmp_path):
    """A small git checkout with one change that is not committed, and one file that git does not track."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "run.py").write_text("print('first')\n")
    (folder / ".gitignore").write_text("*.log\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (folder / "run.py").write_text("print('changed')\n")
    (folder / "new.py").write_text("")
    (folder / "ignored.log").write_text("")
    return folder
