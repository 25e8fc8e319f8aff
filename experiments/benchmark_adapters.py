"""What adapters cost: `python -m experiments.benchmark_adapters --out=runs/benchmark_adapters.json`.

Times are ratios: in every round each arm takes one training step, one after the other in an order that turns, and a ratio is
formed within a round, so that a machine that is slow for a while is slow for all. Memory is what the compiler plans for
the step, and the peak of a process of its own that takes the step.

Random weights of SmolLM2's sizes and random pairs: costs do not depend on either.
"""

import dataclasses
import functools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import base
from experiments import train
from experiments.adapters import adapted_architecture, trainable_paths
from experiments.gradients import make_gradient
from experiments.start import parse_flags, prepare
from rmjax.data.forest import Forest, ForestShape, Tree, fill
from rmjax.evaluate import environment, interval
from rmjax.evaluate.files import refuse_unwritable, write_json
from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import make_mesh
from rmjax.train import optimizer, parameters
from rmjax.train.state import State, compile_step, initial_params, make_state, make_step, state_shardings

REFERENCES = {
    "lora_dropout": "lora_dropout",
    "loramoe_dropout": "lora_dropout",
}  # what an arm's time is divided by: lora else
WARMUP = 2  # rounds that are not counted


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model, the batch and the adapters."""

    layers: int = 6
    rows: int = 4
    row_tokens: int = 256
    experts: int = 6
    rank: int = 4  # of an expert; the single LoRA has experts · rank


def arms(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Name → changes of configs/base.py."""
    lora = {"adapter.kind": "lora", "adapter.rank": sizes.rank * sizes.experts}
    mixture = {"adapter.kind": "loramoe", "adapter.rank": sizes.rank, "adapter.experts": sizes.experts}
    low = {"model.param_dtype": "bfloat16"}
    return {
        "lora": lora,
        "loramoe": mixture,
        "loramoe_block": mixture | {"adapter.router": "block"},
        "loramoe_balanced": mixture | {"adapter.beta": 0.1},
        "lora_dropout": lora | {"adapter.dropout": 0.05},
        "loramoe_dropout": mixture | {"adapter.dropout": 0.05},
        "loramoe_bf16_base": mixture | low,
        "full": {},
    }


def configured(changes: Mapping[str, Any], sizes: Sizes) -> ConfigDict:
    """The config of an arm."""
    config = base.get_config()
    shape = {"model.init": "random", "model.layers": sizes.layers, "data.rows": sizes.rows}
    config.update_from_flattened_dict(shape | {"data.row_tokens": sizes.row_tokens} | dict(changes))
    return config


@dataclasses.dataclass
class Arm:
    """A compiled step with the state that it goes on from."""

    step: Any
    state: State
    batch: Forest

    @classmethod
    def make(cls, config: Any) -> "Arm":
        mesh = make_mesh(config.mesh.to_dict())
        architecture = adapted_architecture(train.load_start(config.model).config, config.adapter)
        model, rate = RewardTransformer(architecture), optimizer.schedule(1e-4, 1000, 0.0, 0.1)
        update = optimizer.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.0, clip=1.0)
        boxed = jax.eval_shape(functools.partial(initial_params, model, 0))
        params = nn.meta.unbox(jax.jit(functools.partial(initial_params, model, 0))())
        state = make_state(params, trainable_paths(config), update, 0)
        shardings = state_shardings(state, boxed, trainable_paths(config), mesh)
        gradient = make_gradient(config, train.make_objective(config, model), model, rate, shardings.trainable)
        batch = random_pairs(config, architecture.vocab_size)
        with jax.set_mesh(mesh):
            state = jax.device_put(state, shardings)
            jitted: Any = compile_step(make_step(gradient, update, shardings, mesh), shardings, mesh)
            return cls(jitted.lower(state, batch).compile(), state, batch)

    def seconds(self) -> float:
        """Takes one step."""
        started = time.perf_counter()
        self.state, terms = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, terms))
        return time.perf_counter() - started

    def planned_bytes(self) -> dict[str, int]:
        """What the compiler plans: the state and the batch, and what the step needs beside them."""
        plan = self.step.memory_analysis()
        return {"arguments": int(plan.argument_size_in_bytes), "temporary": int(plan.temp_size_in_bytes)}


def random_pairs(config: Any, vocab_size: int) -> Forest:
    """Full rows of pairs, of both types in turn."""
    random, data = np.random.default_rng(0), config.data
    third = data.row_tokens // (3 * 2)  # two groups a row, each a prefix and two leaves of one size

    def tree(number: int) -> Tree:
        prefix, *leaves = random.integers(1, vocab_size, (3, third), dtype=np.int32)
        return Tree(prefix, tuple(leaves), np.array([0.0, 1.0], np.float32), type=number % 2, record=number)

    rows = [[tree(2 * r), tree(2 * r + 1)] for r in range(data.rows)]
    return fill(ForestShape(data.rows, data.row_tokens, data.groups, data.leaves), rows)


def timed(built: Mapping[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Arm → seconds of its step in each round."""
    names = list(built)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARMUP + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = built[name].seconds()
            if number >= WARMUP:
                found[name].append(seconds)
    return found


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Arm → its time over its reference's: median over rounds, and the mean of logarithms with its interval, as a factor."""
    found = {}
    for name, values in seconds.items():
        reference = REFERENCES.get(name, "lora")
        logs = np.log(np.asarray(values) / np.asarray(seconds[reference]))
        bounds: dict[str, Any] = {**interval(logs)}
        factors = {side: float(np.exp(bounds[side])) for side in ("value", "low", "high")}
        found[name] = {
            "reference": reference,
            "median": float(np.exp(np.median(logs))),
            **factors,
            "rounds": len(values),
        }
    return found


def peak_of(name: str, sizes: Sizes) -> int:
    """Peak resident bytes of a process that takes three steps of an arm."""
    command = [sys.executable, "-m", "experiments.benchmark_adapters", f"--only={name}"]
    command += [f"--{field}={value}" for field, value in dataclasses.asdict(sizes).items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def run_only(name: str, sizes: Sizes) -> None:
    """Takes three steps of one arm and prints the peak of this process."""
    arm = Arm.make(configured(arms(sizes)[name], sizes))
    for _ in range(3):
        arm.seconds()
    print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def run(out: Path, sizes: Sizes, rounds: int) -> None:
    """Times and memory of all arms, to `out`."""
    refuse_unwritable(out)
    built = {name: Arm.make(configured(changes, sizes)) for name, changes in arms(sizes).items()}
    seconds = timed(built, rounds)
    memory = {name: arm.planned_bytes() for name, arm in built.items()}
    trained = {name: parameters.count(arm.state.trainable) for name, arm in built.items()}
    del built
    peaks = {name: peak_of(name, sizes) for name in memory}
    result = {
        name: {
            "time_ratio": ratio, "median_seconds": float(np.median(seconds[name])), "planned_bytes": memory[name],
            "peak_bytes": peaks[name], "trained": trained[name],
        }
        for name, ratio in ratios(seconds).items()
    }  # fmt: skip
    write_json(out, {"arms": result, "sizes": dataclasses.asdict(sizes), **environment()})
    for name, row in result.items():
        ratio, planned = row["time_ratio"], sum(row["planned_bytes"].values())
        time_text = f"{ratio['median']:.2f} x {ratio['reference']} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        memory_text = f"planned {planned / 2**20:,.0f} MiB, peak {row['peak_bytes'] / 2**20:,.0f} MiB"
        print(f"{name:18} {time_text}, trained {row['trained']:,}, {memory_text}")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sizes = Sizes(given.layers, given.rows, given.row_tokens, given.experts, given.rank)
    if given.only:
        job = functools.partial(run_only, given.only, sizes)
    else:
        job = functools.partial(run, Path(given.out), sizes, given.rounds)
    sys.exit(train.guarded(job))


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmark_adapters.json", "file to write")
    flags.DEFINE_integer("rounds", 20, "rounds that are counted", 2)
    flags.DEFINE_integer("layers", Sizes.layers, "of the model, all of them adapted or trained", 1)
    flags.DEFINE_integer("rows", Sizes.rows, "rows a batch", 1)
    flags.DEFINE_integer("row_tokens", Sizes.row_tokens, "tokens a row", 12)
    flags.DEFINE_integer("experts", Sizes.experts, "of LoRAMoE", 2)
    flags.DEFINE_integer("rank", Sizes.rank, "of an expert", 1)
    flags.DEFINE_string("only", "", "one arm: take its step and print the peak of this process")
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)  # every arm compiles anew, so that peaks can be compared
    app.run(main, flags_parser=parse_flags)
