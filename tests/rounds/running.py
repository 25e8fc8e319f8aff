"""Small runs of rounds: the tiny start, a few prompts, answers of eight tokens."""

import importlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from rmjax import config as base
from tests.experiments.running import told
from tests.experiments.starting import save_start

PROMPTS = 6


def save_home(home: Path) -> Path:
    """A start, prompts with a reference each, and their config as a file."""
    save_start(home / "start", head=0.2)
    rows = [{"prompt": f"Say {i}.", "id": f"q{i}", "reference": str(i)} for i in range(PROMPTS)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def configured(home: Path, **changes) -> ConfigDict:
    """Two updates a round, three rounds; answers are rewarded by their length. `changes` has "__" for "."."""
    config = base.get_config()
    values = {
        "objective": "policy_gradient", "format.kind": "plain", "model.init": str(home / "start"),
        "data.kind": "rollouts", "data.path": str(home / "prompts.jsonl"), "data.rows": 4, "data.row_tokens": 64,
        "data.groups": 4, "data.candidates": 4, "rollouts.prompts": 4, "rollouts.samples": 4, "rollouts.updates": 2,
        "rollouts.max_new_tokens": 8, "reward.parts": ("overlong=1",), "reward.longest": 8, "reward.buffer": 8,
        "policy.kl_weight": 0.1, "policy.reference": "recorded", "optimizer.learning_rate": 1e-2,
        "optimizer.warmup": 0.0, "run.steps": 6, "run.save_every": 1, "run.log_every": 1,
    }  # fmt: skip
    config.update_from_flattened_dict(values | {name.replace("__", "."): value for name, value in changes.items()})
    return config


def said(workdir: Path) -> list[dict[str, float]]:
    """The metric lines without what depends on time."""
    return [{k: v for k, v in line.items() if "/seconds_" not in k} for line in told(workdir)]


def answers_of(workdir: Path) -> dict[str, bytes]:
    """Name of a round's file of records → its bytes."""
    return {path.name: path.read_bytes() for path in sorted((workdir / "rollouts").glob("round-*.jsonl"))}


class Killed(BaseException):
    """In place of a signal: what is on the disk is what a kill leaves."""


def dying(function, call):
    """The function, which dies instead of its call of this number, once."""
    left = [call]

    def run(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return function(*arguments, **named)

    return run


def resolved(target):
    """What a dotted name is."""
    parts = target.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        for name in parts[i:]:
            found = getattr(found, name)
        return found
    raise AssertionError(target)
