"""Writes the golden dry runs again: `python -m tests.launch.renew`. Read the difference before you commit it."""

from pathlib import Path

from experiments.launch import dry_run
from rmjax.launch.targets import ALL
from tests.launch.examples import READY, ready, stored

GOLDEN = Path(__file__).parent / "golden"


def shown(name: str) -> str:
    """What `--dry_run` prints for launch/NAME.py."""
    spec = ready(name)
    return dry_run(ALL[spec.target], spec, stored(spec))


if __name__ == "__main__":
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for name in READY:
        (GOLDEN / f"{name}.txt").write_text(shown(name), encoding="utf-8")
