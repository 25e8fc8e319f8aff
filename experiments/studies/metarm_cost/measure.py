"""What MetaRM costs: `python -m experiments.study metarm_cost`.

A step of MetaRM needs two gradients: that of the preference loss, which the plain step takes too, and that of the difference
loss. In every round each arm takes one step, one after the other in an order that turns, and each mode's time is divided by the
sum of the two in the same round. Memory is what the compiler plans beside the arguments, above what it plans for the plain step,
in copies of the trainable parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import benchmarks
from experiments.benchmarks import Arm
from experiments.studies import timing
from experiments.studies.metarm_cost.config import training
from experiments.studies.timing import RATIO, of_arms
from rmjax.data.packing import ForestShape
from rmjax.evaluate.rows import Row
from rmjax.methods.metarm import META, discrimination
from rmjax.models import parameters
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer
from rmjax.start import load_start
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, factor_cell
from rmjax.train import gradient

STEP, ASCENT = "step", "ascent"
"""The two gradients by themselves, as arms: the plain step, and ∇J."""
HEADS = [
    "mode",
    "time over the two gradients, median (interval of the mean); aim: 1.15",
    "memory above the plain step; aim: 1",
]


def cells(grid: Any) -> Iterator[Cell]:
    """One, since ratios are formed within a process."""
    arms = {STEP: training(grid)} | {name: training(grid, name) for name in grid.arms}
    yield Cell("steps", {}, ConfigDict({"arms": arms, "rounds": grid.rounds}))


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Seconds a round and planned bytes of each arm, and the bytes of the trainable parameters."""
    built = build(cell.config.arms)
    yield from timing.timing_rows(built, cell.config.rounds)
    trainable = sum(x.nbytes for x in parameters.flat(built[STEP].state.trainable).values())
    yield Row("model", "model", "trainable_bytes", trainable)


def build(arms: Mapping[str, Any]) -> dict[str, Arm]:
    """The arms, STEP among them, and ASCENT, compiled."""
    built = {}
    for name, config in arms.items():
        vocab_size = load_start(config.model).config.vocab_size
        pairs, groups = benchmarks.random_pairs(config, vocab_size), random_groups(config, vocab_size)
        built[name] = Arm.make(config, pairs if name == STEP else {"preference": pairs, META: groups})
    built[ASCENT] = ascent(arms[STEP], built[STEP], groups)
    return built


def random_groups(config: Any, vocab_size: int) -> Forest:
    """Full rows of unlabeled answers, one group a row."""
    meta = config.meta_data
    shape = ForestShape(meta.rows, meta.row_tokens, meta.groups, meta.samples)
    size, unranked_N = meta.row_tokens // (1 + meta.samples), np.full(meta.samples, np.inf, np.float32)
    return benchmarks.random_rows(shape, 1, (size, size), unranked_N, vocab_size)


def ascent(config: Any, step: Arm, groups: Forest) -> Arm:
    """∇J alone, at the plain arm's parameters."""
    form = gradient.plain(discrimination(RewardTransformer(load_start(config.model).config)))

    def take(params: Any, batch: Forest) -> tuple[Any, Any]:
        return params, form(params[0], params[1], batch, jax.random.key(0))

    # copies, since a step gives its own state's memory away
    params = jax.tree.map(jnp.copy, (step.state.trainable, step.state.frozen))
    return Arm(jax.jit(take, donate_argnums=0).lower(params, groups).compile(), params, groups)


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Each mode's time over that of the two gradients, and its memory; bytes."""
    lines = timing.timing_lines(results["steps"].rows, {name: (STEP, ASCENT) for name in grid.arms})
    planned, (trainable,) = of_arms(lines, "planned_temporary"), [x for x in lines if x["metric"] == "trainable_bytes"]
    above = {name: planned[name]["value"] - planned[STEP]["value"] for name in grid.arms}
    return lines + [
        {"arm": name, "metric": "copies", "value": size / trainable["value"]} for name, size in above.items()
    ]


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/claims/metarm.md."""
    copies = of_arms(lines, "copies")
    rows = [
        [arm, factor_cell(line, "median"), f"{copies[arm]['value']:+.1f}"]
        for arm, line in of_arms(lines, RATIO).items()
    ]
    return {"modes": table.markdown([HEADS, *rows])}


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study("metarm_cost", tuple(cells(grid)), timing.no_training, measure, code=(timing, benchmarks))
    return Claim(study, Path("docs/claims/metarm.md"), lambda results: summarize(grid, results), parts)
