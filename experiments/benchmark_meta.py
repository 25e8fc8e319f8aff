"""What MetaRM costs: `python -m experiments.benchmark_meta --out=runs/benchmark_meta.json`.

A step of MetaRM needs two gradients: that of the preference loss, which the plain step takes too, and that of the difference
loss. In every round each arm takes one step, one after the other in an order that turns, and each mode's time is divided
by the sum of the two in the same round. Memory is what the compiler plans beside the arguments, above what it plans
for the plain step, as a share of the trainable parameters' bytes.

Random weights of SmolLM2's sizes and random answers: costs do not depend on either.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments import benchmarks
from experiments.start import guarded, parse_flags, prepare
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.evaluate import environment
from rmjax.files import refuse_unwritable, write_json
from rmjax.methods.metarm import MODES, discrimination
from rmjax.models import parameters
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer
from rmjax.start import load_start
from rmjax.train import gradient

PLAIN, RISING = "plain", "gradient of J"
ETA = 1e-3
"""In the unit of every mode: a time does not depend on it."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and both batches."""

    layers: int = 6
    frozen_layers: int = 0
    rows: int = 4
    row_tokens: int = 256
    samples: int = 5


def configured(changes: Mapping[str, Any], sizes: Sizes) -> ConfigDict:
    """The config of an arm."""
    config = benchmarks.configured(changes, layers=sizes.layers, rows=sizes.rows, row_tokens=sizes.row_tokens)
    config.model.frozen_layers = sizes.frozen_layers
    config.meta_data.update(rows=sizes.rows, row_tokens=sizes.row_tokens, samples=sizes.samples)
    return config


def arms() -> dict[str, dict[str, Any]]:
    """Name → changes of configs/base.py, for the plain step, every mode, and second order."""
    meta = {"gradient.name": "meta", "gradient.inner_learning_rate": ETA}
    modes = {f"meta {mode}": meta | {"gradient.mode": mode} for mode in MODES}
    second = meta | {"gradient.mode": "step_norm", "gradient.order": 2}
    return {PLAIN: {}} | modes | {"meta step_norm, second order": second}


def random_groups(config: Any, vocab_size: int) -> Forest:
    """Full rows of unlabeled answers, one group a row."""
    random, meta = np.random.default_rng(1), config.meta_data
    unranked, size = np.full(meta.samples, np.inf, np.float32), meta.row_tokens // (1 + meta.samples)

    def group(number: int) -> Tree:
        prefix, *leaves = random.integers(1, vocab_size, (1 + meta.samples, size), dtype=np.int32)
        return Tree(prefix, tuple(leaves), unranked, record=number)

    rows = [[group(number)] for number in range(meta.rows)]
    return fill(ForestShape(meta.rows, meta.row_tokens, meta.groups, meta.samples), rows)


def build(sizes: Sizes, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, benchmarks.Arm]:
    """The chosen arms, PLAIN among them, and that of the difference loss alone, compiled."""
    built = {}
    for name, changes in chosen.items():
        config = configured(changes, sizes)
        vocab_size = load_start(config.model).config.vocab_size
        pairs, groups = benchmarks.random_pairs(config, vocab_size), random_groups(config, vocab_size)
        built[name] = benchmarks.Arm.make(config, {"preference": pairs, "meta": groups} if name != PLAIN else pairs)
    built[RISING] = rising(configured({}, sizes), built[PLAIN], groups)
    return built


def rising(config: Any, plain: benchmarks.Arm, groups: Forest) -> benchmarks.Arm:
    """∇J alone, at the plain arm's parameters."""
    model = RewardTransformer(load_start(config.model).config)
    form = gradient.plain(discrimination(model))

    def step(params: Any, batch: Forest) -> tuple[Any, Any]:
        return params, form(params[0], params[1], batch, jax.random.key(0))

    params = jax.tree.map(
        jnp.copy, (plain.state.trainable, plain.state.frozen)
    )  # a step gives its own state's memory away
    return benchmarks.Arm(jax.jit(step, donate_argnums=0).lower(params, groups).compile(), params, groups)


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Mode → its time over that of the two gradients in the same round: median, and mean of logarithms with its interval."""
    both = np.asarray(seconds[PLAIN]) + np.asarray(seconds[RISING])
    return {
        name: benchmarks.factor(np.asarray(seconds[name]) / both) for name in seconds if name not in (PLAIN, RISING)
    }


def run(out: Path, sizes: Sizes, rounds: int) -> None:
    """Times and planned memory of all arms, to `out`."""
    refuse_unwritable(out)
    built = build(sizes, arms())
    seconds = benchmarks.timed(built, rounds)
    trainable = sum(x.nbytes for x in parameters.flat(built[PLAIN].state.trainable).values())
    planned = {name: arm.planned_bytes()["temporary"] for name, arm in built.items()}
    result: dict[str, Any] = {
        name: {"time_ratio": ratio, "planned_share": (planned[name] - planned[PLAIN]) / trainable}
        for name, ratio in ratios(seconds).items()
    }
    facts: dict[str, Any] = {"median_seconds": {name: float(np.median(values)) for name, values in seconds.items()}}
    facts |= {"planned_bytes": planned, "trainable_bytes": trainable, "sizes": dataclasses.asdict(sizes)}
    write_json(out, {"arms": result, **facts, **environment()})
    for name, row in result.items():
        ratio = row["time_ratio"]
        print(
            f"{name:30} {ratio['median']:.2f} x ({ratio['low']:.2f}-{ratio['high']:.2f}) of the two gradients, memory "
            f"{row['planned_share']:+.2f} of the trainable parameters"
        )


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sizes = Sizes(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Sizes)})
    sys.exit(guarded(functools.partial(run, Path(given.out), sizes, given.rounds)))


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmark_meta.json", "file to write")
    flags.DEFINE_integer("rounds", 20, "rounds that are counted", 2)
    flags.DEFINE_integer("layers", Sizes.layers, "of the model", 1)
    flags.DEFINE_integer("frozen_layers", Sizes.frozen_layers, "of them, from the bottom", 0)
    flags.DEFINE_integer("rows", Sizes.rows, "rows of either batch", 1)
    flags.DEFINE_integer("row_tokens", Sizes.row_tokens, "tokens a row", 12)
    flags.DEFINE_integer("samples", Sizes.samples, "k, samples a group", 2)
    prepare()
    app.run(main, flags_parser=parse_flags)
