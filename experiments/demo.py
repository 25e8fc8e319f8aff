"""The main job in the small: `python -m experiments.demo --workdir=runs/demo` (or `make demo`).

POLAR pre-training on the shipped policy pool, fine-tuning on ranked triples from the pre-trained and from the bare
backbone, evaluation on held-out prompts and unseen policies, a report. Run again, a stopped demo continues. The same at
another size: `--config=configs/polar/larger.py`, or any file with the runs `pretrain` and `finetune`.
"""

import contextlib
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from experiments import train
from experiments.start import guarded, parse_flags, prepare
from rmjax.data.sources import pool, records
from rmjax.evaluate import (
    discriminate,
    environment,
    evaluate_comparisons,
    paired_gain,
    polar_report,
    print_table,
    read_runs,
    write_report,
)
from rmjax.files import write_text
from rmjax.locks import locked
from rmjax.reward_model import RewardModel
from rmjax.train.loop import Preempted
from rmjax.trainer import open_workdir

POOL, RANKED = "shipped:policy_pool", "shipped:ranked_test"
NEGATIVES = 3


def _announce(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", file=sys.stderr, flush=True)


def load_runs(path: str) -> tuple[ConfigDict, ConfigDict]:
    """Pre-training and fine-tuning, from a config file whose `get_config` takes their names."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"--config={path}: no such file; configs/demo.py and configs/polar/larger.py have both runs"
        )
    spec = importlib.util.spec_from_file_location("demo_runs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("pretrain"), module.get_config("finetune")


def train_all(workdir: Path, config: str, seed: int) -> None:
    """The three runs; a finished one is not run again."""
    pretrain, finetune = load_runs(config)
    pretrain.run.seed = finetune.run.seed = seed
    _announce(1, f"POLAR pre-training: {pretrain.run.steps} steps, who wrote what")
    train.run(pretrain, workdir / "pretrain")
    _announce(2, f"fine-tuning on ranked triples from the pre-trained model: {finetune.run.steps} steps")
    finetune.model.init = str(workdir / "pretrain")
    train.run(finetune, workdir / "finetune")
    _announce(3, "the same fine-tuning without pre-training")
    finetune.model.init = pretrain.model.init
    train.run(finetune, workdir / "scratch")


def judge(workdir: Path, seed: int, per_prompt: int) -> dict[str, Any]:
    """Policy discrimination of the pre-trained model and preference accuracy of the two fine-tuned ones.

    `per_prompt` groups of a reference, a positive and three negatives are drawn from each held-out prompt.
    """
    _announce(4, "evaluation: held-out prompts, seen and unseen policies")
    pretrained = RewardModel.load(workdir / "pretrain", mesh="all")
    splits = {}
    for split in ("seen", "unseen"):
        source = pool(POOL, split, "unseen")
        groups = source.triples(seed=0, per_prompt=per_prompt, negatives=NEGATIVES)
        splits[split] = discriminate(groups, pretrained.score_groups(groups, progress=True), source.kind, seed)
    ranked = list(records(RANKED))
    models = {name: RewardModel.load(workdir / name, mesh="all") for name in ("finetune", "scratch")}
    scores = {name: model.score_groups(ranked, progress=True) for name, model in models.items()}
    judged = {name: evaluate_comparisons(ranked, found, seed) for name, found in scores.items()}
    gain = paired_gain(ranked, scores["finetune"], scores["scratch"], seed)
    make = functools.partial(polar_report, splits["seen"], splits["unseen"], judged["finetune"], judged["scratch"])
    return make(seconds=0.0, provenance={}, pretraining_gain=gain)


def run(workdir: Path, config: str, seed: int, per_prompt: int) -> None:
    """Trains, judges, reports.

    Raises:
      Preempted: SIGTERM came. What is trained is kept; there is no report yet.
      InUseError: another demo is writing to `workdir`.
    """
    open_workdir(workdir)
    with locked(workdir):
        _run(workdir, config, seed, per_prompt)


def _run(workdir: Path, config: str, seed: int, per_prompt: int) -> None:
    try:
        with _timed(workdir):
            train_all(workdir, config, seed)
        with _timed(workdir):
            report = judge(workdir, seed, per_prompt)
    except Preempted as stopped:
        raise Preempted(f"{stopped} (no report yet)") from stopped
    _announce(5, "report")
    report["seconds"] = _seconds(workdir)
    report["provenance"] = {
        "command": f"python -m experiments.demo --workdir={workdir} --config={config} --seed={seed} "
        f"--groups_per_prompt={per_prompt}",
        "config": config,
        "seed": seed,
        **environment(),
    }
    write_report(report, workdir, read_runs(workdir))
    print_table(report)
    print(f"\n{report['seconds']:.0f} s; open {workdir / 'report.html'}")


def _seconds(workdir: Path) -> float:
    path = workdir / "clock.json"
    return json.loads(path.read_text())["seconds"] if path.exists() else 0.0


@contextlib.contextmanager
def _timed(workdir: Path) -> Iterator[None]:
    """Adds the time inside to `clock.json`, whatever ends it short of a kill: a stopped demo's time counts too."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = _seconds(workdir) + time.monotonic() - started
        write_text(workdir / "clock.json", json.dumps({"seconds": seconds}))


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    job = functools.partial(run, Path(given.workdir), given.config, given.seed, given.groups_per_prompt)
    sys.exit(guarded(job, resumes=True))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/demo", "folder of the three runs and the report")
    flags.DEFINE_string("config", "configs/demo.py", "file with the runs `pretrain` and `finetune`")
    flags.DEFINE_integer("seed", 0, "of the order, the draws and the bootstrap")
    flags.DEFINE_integer(
        "groups_per_prompt", 1, "of the evaluation: more of them tighten the intervals and take longer", 1
    )
    prepare()
    app.run(main, flags_parser=parse_flags)
