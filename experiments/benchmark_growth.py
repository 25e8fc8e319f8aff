"""How the cost grows: `python -m experiments.benchmark_growth` (`make growth`).

Pairs per second of a training step against the size of the model, the length of a row, the size of a group, and the number of
devices, which are simulated: they share the machine's cores, so what shows is the cost of cutting, not a gain. A point is a
process of its own; its file in WORKDIR is not made again. All points together: one JSON, one plot.

Random weights and tokens, rows without padding: a group is 64 tokens that its candidates share and 32 of each one's own, and
all its candidates are ranked, so one of N has N (N − 1) / 2 pairs.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import Arm, configured
from experiments.start import guarded, parse_flags, prepare
from experiments.trainers.results import spread
from rmjax.data import placement
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.pipeline import Shard
from rmjax.evaluate import environment
from rmjax.evaluate.plots import growth, svg
from rmjax.files import refuse_unwritable, write_json, write_text
from rmjax.models import parameters
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import make_mesh
from rmjax.start import load_start

SHARED, OWN = 64, 32  # tokens of a group: of all its candidates, of each
BLOCK = 96  # tokens, where attention is in blocks: groups of 128 do not line up with them
_DEVICES = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch; SmolLM2's proportions, heads of 64."""

    layers: int = 12
    heads: int = 6
    rows: int = 8
    groups: int = 4  # a row, which they fill
    candidates: int = 2
    devices: int = 1
    attention: str = "dense"

    @property
    def row_tokens(self) -> int:
        return self.groups * (SHARED + OWN * self.candidates)

    @property
    def pairs(self) -> int:
        """Of a batch."""
        return self.rows * self.groups * self.candidates * (self.candidates - 1) // 2


PANELS: dict[str, tuple[str, tuple[Case, ...]]] = {
    "trained parameters": ("trained", tuple(Case(layers, heads) for layers, heads in ((6, 3), (12, 6), (30, 9)))),
    "tokens a row (4096 a batch)": ("row_tokens", tuple(Case(rows=n, groups=32 // n) for n in (16, 8, 4, 2))),
    "tokens a row, attention in blocks of 96 (4096 a batch)": (
        "row_tokens",
        tuple(Case(rows=n, groups=32 // n, attention="blockwise") for n in (16, 8, 4, 2)),
    ),
    "candidates a group (rows of 512 to 640 tokens)": (
        "candidates",
        tuple(Case(groups=groups, candidates=n) for n, groups in ((2, 4), (4, 3), (8, 2), (16, 1))),
    ),
    "simulated devices": ("devices", tuple(Case(devices=n) for n in (1, 2, 4, 8))),
}
"""Axis → (what is on it, the points)."""


def config_of(case: Case) -> Any:
    """Of random weights."""
    width = 64 * case.heads
    changes = {
        "model.width": width, "model.heads": case.heads, "model.kv_heads": case.heads // 3,
        "model.mlp_width": width * 8 // 3, "model.attention": case.attention, "model.attention_block": BLOCK,
        "data.groups": case.groups, "data.candidates": case.candidates,
    }  # fmt: skip
    return configured(changes, layers=case.layers, rows=case.rows, row_tokens=case.row_tokens)


def random_groups(case: Case, vocab_size: int) -> Forest:
    """Full rows of groups in which everything is ranked."""
    random, ranks = np.random.default_rng(0), np.arange(case.candidates, dtype=np.float32)

    def tree(number: int) -> Tree:
        leaves = tuple(random.integers(1, vocab_size, (case.candidates, OWN), dtype=np.int32))
        return Tree(random.integers(1, vocab_size, SHARED, dtype=np.int32), leaves, ranks, record=number)

    rows = [[tree(r * case.groups + g) for g in range(case.groups)] for r in range(case.rows)]
    return fill(ForestShape(case.rows, case.row_tokens, case.groups, case.candidates), rows)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Speed of `rounds` steps, after one that is not counted."""
    config = config_of(case)
    mesh = make_mesh(config.mesh.to_dict())
    forest = random_groups(case, load_start(config.model).config.vocab_size)
    arm = Arm.make(config, placement.place(forest, placement.forest_shardings(mesh), Shard()))
    arm.seconds()
    seconds = [arm.seconds() for _ in range(rounds)]
    trained = parameters.count(arm.state.trainable)
    sizes = dataclasses.asdict(case) | {"row_tokens": case.row_tokens, "trained": trained}
    return {"pairs_per_second": spread([case.pairs / s for s in seconds])} | sizes | environment()


def point(case: Case, rounds: int, workdir: Path) -> dict[str, Any]:
    """Measured in a process of its own with so many devices, or read where it has been.

    Raises:
      RuntimeError: the process failed; the message has its last line.
    """
    path = workdir / f"{'.'.join(map(str, dataclasses.astuple(case)))}.json"
    if not path.exists():
        kept = re.sub(rf"{_DEVICES}=\d+", "", os.environ.get("XLA_FLAGS", ""))
        # NPROC is XLA's number of threads: with one a core, collectives may wait for each other for ever.
        simulated = {"XLA_FLAGS": f"{kept} {_DEVICES}={case.devices}", "JAX_PLATFORMS": "cpu", "NPROC": "64"}
        more = simulated if case.devices > 1 else {}
        command = [sys.executable, "-m", "experiments.benchmark_growth", f"--rounds={rounds}"]
        command += [f"--only={json.dumps(dataclasses.asdict(case))}", f"--out={path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ) | more)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(panels: Mapping[str, tuple[str, Sequence[Case]]], rounds: int, workdir: Path, out: Path) -> None:
    """All points, to `out` and, beside it, to a plot of the same name."""
    refuse_unwritable(out)
    workdir.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for label, (axis, cases) in panels.items():
        found[label] = []
        for case in cases:
            found[label].append(point(case, rounds, workdir))
            speed = found[label][-1]["pairs_per_second"]
            print(f"{label}: {found[label][-1][axis]:,}: {speed['median']:.3g} pairs/s", flush=True)
    shown = {label: [(p[axis], p["pairs_per_second"]) for p in found[label]] for label, (axis, _) in panels.items()}
    write_json(out, {"panels": found, **{name: next(iter(found.values()))[0][name] for name in ("device", "versions")}})
    write_text(out.with_suffix(".svg"), svg(growth(shown), "pairs per second against size, length, group and devices"))


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS

    def job() -> None:
        if given.only:
            write_json(Path(given.out), measure(Case(**json.loads(given.only)), given.rounds))
        else:
            run(PANELS, given.rounds, Path(given.workdir), Path(given.out))

    sys.exit(guarded(job))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/growth", "folder of the points")
    flags.DEFINE_string("out", "docs/speed/growth.json", "file to write; the plot beside it")
    flags.DEFINE_integer("rounds", 5, "steps that are counted", 1)
    flags.DEFINE_string("only", "", "a case as JSON: measure it in this process, to --out")
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main, flags_parser=parse_flags)
