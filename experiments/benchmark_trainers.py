"""Against TRL's RewardTrainer: `python -m experiments.benchmark_trainers --peer=.venv-bench/bin/python` (`make bench`).

Both sides start from the same weights and take the same pairs, one process after the other on this machine; a round is a
process of ours, one of TRL's, and at the smallest batch one of ours on TRL's own padded batch. Before that, a process each
shows that loss and rewards of one batch agree. Ratios are formed within a round. What a process found is a file in
WORKDIR/runs; run again, the command goes on with those that are missing. See docs/speed.md.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.start import guarded, parse_flags, prepare
from experiments.trainers.generated import stand_in
from experiments.trainers.processes import OURS, THEIRS, processor, run_job
from experiments.trainers.results import summary, table
from experiments.trainers.start import changes, shared_facts
from rmjax import config as base
from rmjax.files import refuse_unwritable, write_json

TOLERANCE = 1e-3  # largest difference of a reward or of the loss between the sides, in fp32
DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run: `steps[i]` of them are timed in a process at `batches[i]` pairs, after one that is not."""

    config: Mapping[str, Any]  # changes of configs/base.py
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    at_once: int  # pairs whose activations are in memory; a larger batch is accumulated, on both sides in as many parts
    rounds: int
    groups: int  # POLAR groups that are scored
    candidates: int
    peer: str  # interpreter of the environment with torch and TRL
    workdir: Path

    def settings(self) -> dict[str, Any]:
        """What must not change when a benchmark goes on; the number of rounds may."""
        steps = dict(zip(map(str, self.batches), self.steps, strict=True))
        others = {name: getattr(self, name) for name in ("at_once", "groups", "candidates")}
        return {"config": dict(self.config), "steps": steps} | others

    def parts(self, batch: int) -> int:
        """Microbatches of a step.

        Raises:
          ValueError: the batch does not divide into parts of `at_once` pairs.
        """
        if batch > self.at_once and batch % self.at_once:
            raise ValueError(
                f"--batches has {batch}; make it a multiple of --at_once={self.at_once}, or no more than that"
            )
        return max(1, batch // self.at_once)


@dataclasses.dataclass(frozen=True)
class Run:
    """One process of a round."""

    arm: str
    batch: int
    number: int  # of the round, from 0; the seed of the order of the pairs

    @property
    def name(self) -> str:
        return f"{self.arm}.{self.batch}.{self.number}"


def runs_of(plan: Plan) -> Iterator[Run]:
    """All rounds; the sides take turns. The padded step is compared where a batch is run as one."""
    for number in range(plan.rounds):
        for batch in plan.batches:
            padded = batch == min(plan.batches) and plan.parts(batch) == 1
            for arm in (OURS, THEIRS, DENSE) if padded else (OURS, THEIRS):
                yield Run(arm, batch, number)


class Bench:
    """A plan's folder: starts processes there and keeps what they found."""

    def __init__(self, plan: Plan):
        self.plan = plan
        (plan.workdir / "runs").mkdir(parents=True, exist_ok=True)

    def found(self, name: str) -> dict[str, Any] | None:
        """What the process of that name found; None where it is still to run."""
        path = self.plan.workdir / "runs" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, name: str, kind: str, arm: str = OURS, **job: Any) -> dict[str, Any]:
        """Runs a process, unless it has run; what it found, with its command, its start and its wall time.

        Raises:
          RuntimeError: it failed; the message has its last lines and names its log.
        """
        if (before := self.found(name)) is not None:
            return before
        folder = self.plan.workdir.resolve()
        known = {"kind": kind, "config": dict(self.plan.config), "model": str(folder / "model"), "tolerance": TOLERANCE}
        found = run_job(folder / "jobs", name, arm, self.plan.peer, known | job)
        write_json(folder / "runs" / f"{name}.json", found)
        return found


def check_settings(plan: Plan) -> None:
    """ValueError where the folder holds another benchmark."""
    path, now = plan.workdir / "settings.json", plan.settings()
    if path.exists() and (before := json.loads(path.read_text())) != now:
        differing = [key for key in now if before.get(key) != now[key]]
        raise ValueError(f"{plan.workdir} holds a benchmark with other {', '.join(differing)}; use a new --workdir")
    plan.workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def with_data(plan: Plan) -> tuple[Plan, str]:
    """The plan and the name of its data: generated pairs where the real ones are not on this machine."""
    path, root = (plan.config.get(f"data.{key}", base.get_config().data[key]) for key in ("path", "root"))
    found, name = stand_in(path, root, plan.workdir.resolve())
    return (plan if found == path else dataclasses.replace(plan, config={**plan.config, "data.path": found})), name


def check_agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Largest differences of loss and rewards.

    Raises:
      ValueError: they are more than `TOLERANCE`.
    """
    pairs = list(zip(ours["rewards"], theirs["rewards"], strict=True))
    rewards = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    found = {"loss": abs(ours["loss"] - theirs["loss"]), "rewards": rewards}
    if not max(found.values()) <= TOLERANCE:
        raise ValueError(
            f"the two sides differ on the same batch, in the loss by {found['loss']:.2g} and in a reward by "
            f"{found['rewards']:.2g}, more than {TOLERANCE}: they are not the same model, so nothing is timed"
        )
    return found | {"spread_of_rewards": max(map(max, ours["rewards"])) - min(map(min, ours["rewards"]))}


def benchmark(plan: Plan) -> dict[str, Any]:
    """Runs all that is missing; the summary."""
    check_settings(plan)
    plan, data = with_data(plan)
    bench, steps, pairs = Bench(plan), [1 + n for n in plan.steps], plan.workdir.resolve() / "pairs"
    made = bench.run(
        f"prepare.{plan.rounds}", "prepare", batches=plan.batches, parts=[plan.parts(b) for b in plan.batches],
        steps=steps, rounds=plan.rounds, pairs=str(pairs),
    )  # fmt: skip
    if made["platform"] == "gpu":
        plan = bench.plan = dataclasses.replace(plan, config={**plan.config, "model.dtype": "bfloat16"})
    shared = shared_facts(plan.config, "gpu" if made["platform"] == "gpu" else "cpu")

    def job(run: Run) -> dict[str, Any]:
        wanted = 2 if run.arm == DENSE else steps[plan.batches.index(run.batch)]
        return shared | {
            "batch": run.batch, "parts": plan.parts(run.batch), "steps": wanted, "seed": run.number,
            "rows": made["rows"][str(run.batch)], "pairs": str(pairs / f"{run.batch}.{run.number}.jsonl"),
        }  # fmt: skip

    first = job(Run(OURS, min(plan.batches), 0))
    one = first | {"batch": first["batch"] // first["parts"], "parts": 1, "dtype": "float32"}
    both = [bench.run(f"agree.{arm}", "agree", arm, **one) for arm in (OURS, THEIRS)]
    agreement = check_agreement(*both)
    print(f"loss and rewards agree to {max(agreement['loss'], agreement['rewards']):.1e}", flush=True)
    todo = [(run.name, "dense" if run.arm == DENSE else "train", run.arm, job(run)) for run in runs_of(plan)]
    scoring = {"rounds": plan.rounds, "groups": plan.groups, "candidates": plan.candidates, "batch_tokens": 4096}
    found = _all(bench, [*todo, ("pack", "pack", OURS, first), ("score", "score", OURS, scoring)])
    rates = {arm: side.get("product_rate") for arm, side in zip((OURS, THEIRS), both, strict=True)}
    facts = {
        "agreement": agreement, "product_rate": rates,
        "data": {"name": data} | made["data"], "rows": made["rows"], "dtype": shared["dtype"],
        "settings": plan.settings(), "device": made["device"], "cores": os.cpu_count(), "cpu": processor(),
    }  # fmt: skip
    return facts | summary(found, plan.batches, plan.rounds) | {"runs": found}


def _all(bench: Bench, todo: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Runs each; says after each what it found and how long the rest will take."""
    found: dict[str, Any] = {}
    for n, (name, kind, arm, job) in enumerate(todo, 1):
        new = bench.found(name) is None
        found[name] = bench.run(name, kind, arm, **job)
        if new:
            left = tqdm.format_interval(_left(found, [name for name, *_ in todo[n:] if bench.found(name) is None]))
            steps = found[name].get("steps", [])
            speed = sum(s["pairs"] for s in steps) / sum(s["seconds"] for s in steps) if steps else 0.0
            text = f"  {speed:.3g} pairs/s" if steps else ""
            print(f"[{n}/{len(todo)}] {name}{text}  {found[name]['wall_seconds']:.0f} s  left {left}", flush=True)
    return found


def _left(found: Mapping[str, Any], missing: Sequence[str]) -> float:
    """Seconds: a process takes as long as the last one of its arm and batch, or as all did in the mean."""
    walls = {name.rpartition(".")[0]: run["wall_seconds"] for name, run in found.items()}
    mean = sum(walls.values()) / len(walls)
    return sum(walls.get(name.rpartition(".")[0], mean) for name in missing)


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS

    def job() -> None:
        batches, steps = (tuple(int(n) for n in values) for values in (given.batches, given.steps))
        if len(batches) != len(steps) or not batches or min(*batches, *steps, given.rounds) < 1:
            raise ValueError("--batches and --steps need as many numbers, all 1 or more, and --rounds 1 or more")
        sizes = {name: getattr(given, name) for name in ("at_once", "rounds", "groups", "candidates")}
        plan = Plan(changes(given.config), batches, steps, peer=given.peer, workdir=Path(given.workdir), **sizes)
        out = Path(given.out)
        refuse_unwritable(out)
        found = benchmark(plan)
        write_json(out, found)
        print(table(found), f"written to {out}; docs/speed.md: python -m experiments.speed", sep="\n")

    sys.exit(guarded(job))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/benchmark.py", "what both sides run", lock_config=True)
    flags.DEFINE_string("peer", ".venv-bench/bin/python", "interpreter of an environment with torch and TRL")
    flags.DEFINE_string("workdir", "runs/bench", "folder of the benchmark; the same one goes on")
    flags.DEFINE_string("out", "runs/bench/result.json", "file to write")
    flags.DEFINE_list("batches", "8,32", "pairs a batch")
    flags.DEFINE_list("steps", "2,1", "steps that are timed in a process, for each batch size")
    flags.DEFINE_integer(
        "at_once", 8, "pairs whose activations are in memory at a time; larger batches are accumulated", 1
    )
    flags.DEFINE_integer("rounds", 5, "processes of each side at each batch size", 1)
    flags.DEFINE_integer("groups", 32, "POLAR groups that are scored", 1)
    flags.DEFINE_integer("candidates", 5, "candidates of such a group", 2)
    prepare()
    app.run(main, flags_parser=parse_flags)
