"""Runs of `python -m experiments.train`, in this process and in others, and what they leave."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.polar import pretrain
from experiments import train as command
from rmjax.reward_model import CHECKPOINTS
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.manifest import MANIFEST
from rmjax.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 30
SPEEDS = ("tokens_per_second", "pairs_per_second", "step_seconds", "data_wait_fraction", "mfu")


def pool_rows():
    words = ["yes", "no", "maybe", "never"]
    return [
        {"prompt_id": f"p{p}", "prompt": f"What is {p} times {p + 3}?", "policy": f"q{policy}", "sample": sample,
         "output": " ".join([words[policy]] * (2 + sample) + [str(p + sample)]), "kind": f"k{policy % 2}",
         "policy_split": "seen", "prompt_split": "unseen" if p > 11 else "seen"}
        for p in range(16) for policy in range(4) for sample in range(2)
    ]  # fmt: skip


def ranked_rows():
    return [
        {"prompt": f"Say {i}.", "reference": f"{i}", "chosen": f"It is {i}.", "rejected": "No.", "id": f"r{i}"}
        for i in range(8)
    ]


def text_rows():
    return [{"prompt": f"Q{i}:", "output": f"A{i}"} for i in range(8)]


def configured(home, **changes) -> ConfigDict:
    """The config of POLAR pre-training, tiny; `changes` has "__" for "."."""
    config = pretrain.get_config()
    del config.evals["unseen"]
    values = {
        "model.init": str(home / "start"), "model.layers": 0, "model.frozen_layers": 0,
        "data.path": str(home / "pool.jsonl"), "data.rows": 4,
        "data.row_tokens": 256, "data.candidates": 4, "run.steps": STEPS, "run.save_every": 3, "run.log_every": 1,
        "run.keep": 2, "evals.seen.path": str(home / "pool.jsonl"), "evals.seen.per_prompt": 1, "evals.seen.every": 8,
    }  # fmt: skip
    if changes.get("objective") == "language_model":
        values["format.kind"] = "plain"
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config.lock()


def execute(config, workdir) -> int:
    """The exit code of the command, run in this process."""
    return command.guarded(functools.partial(command.run, config, Path(workdir)))


def launch(home, workdir, *flags, config=None, **environment):
    """The command as a user runs it."""
    if config is None:
        config = home / "config.py"
        values = json.loads(configured(home).to_json())
        config.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n")
    arguments = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}", *flags]
    environment = os.environ | {"RMJAX_CACHE": str(home / "cache"), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process, within=600) -> tuple[int, str]:
    return process.wait(timeout=within), process.stderr.read()


def final(workdir):
    """All leaves of the last checkpoint as bytes, and the state of the data."""
    leaves = {}
    with Checkpoints(Path(workdir) / CHECKPOINTS) as saved:
        for part in ("step", "trainable", "frozen", "optimizer", "rng"):
            step, tree = saved.restore_subtree(part)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                leaves[part + jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
        return step, leaves, json.loads((saved.directory / str(step) / "data_0.json").read_text())


def told(workdir):
    """The metric lines without what depends on time."""
    hidden = {"time", *(f"train/{name}" for name in SPEEDS)}
    return [{k: v for k, v in line.items() if k not in hidden} for line in read_metrics(workdir / "metrics.jsonl")]


def newest(workdir) -> int:
    finished = [path.parent.name for path in (workdir / CHECKPOINTS).glob(f"*/{MANIFEST}")]
    return max((int(name) for name in finished if name.isdigit()), default=0)


def saving(workdir, after) -> bool:
    """A checkpoint of a later step than `after` is being written."""
    directories = [p for p in (workdir / CHECKPOINTS).glob("*") if p.name.isdigit() and int(p.name) > after]
    return any((p / "state").exists() or list(p.glob("state*")) for p in directories if not (p / MANIFEST).exists())


def lines_written(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_when(process, condition, stop) -> None:
    """Waits, then sends the signal, unless the process ended before."""
    while process.poll() is None and not condition():
        time.sleep(0.001)
    process.send_signal(stop)


def refused(config, workdir, capsys) -> str:
    """What a run that may not start says; it saves nothing."""
    assert execute(config, workdir) == 1
    assert not list(Path(workdir).glob(f"{CHECKPOINTS}/*"))
    return only_error(capsys)


def only_error(capsys) -> str:
    """The one line of the error, without a traceback."""
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("WARNING", "run "))]
    errors = [line for line in errors if line.startswith("error: ") or "Traceback" in line]
    assert len(errors) == 1, errors
    return errors[0]
