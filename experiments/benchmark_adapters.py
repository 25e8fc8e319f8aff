"""What adapters cost: `python -m experiments.benchmark_adapters --out=runs/benchmark_adapters.json`.

Times are ratios: in every round each arm takes one training step, one after the other in an order that turns, and a ratio is
formed within a round, so that a machine that is slow for a while is slow for all. Memory is what the compiler plans for
the step, and the peak of a process of its own that takes the step.

Random weights of SmolLM2's sizes and random pairs: costs do not depend on either.
"""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments import benchmarks
from experiments.benchmarks import Arm, factor, timed
from experiments.start import guarded, parse_flags, prepare
from rmjax.evaluate import environment
from rmjax.files import refuse_unwritable, write_json
from rmjax.models import parameters

REFERENCES = {
    "lora_dropout": "lora_dropout",
    "loramoe_dropout": "lora_dropout",
}  # what an arm's time is divided by: lora else


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
    return benchmarks.configured(changes, layers=sizes.layers, rows=sizes.rows, row_tokens=sizes.row_tokens)


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Arm → its time over its reference's."""
    found: dict[str, Any] = {}
    for name, values in seconds.items():
        reference = REFERENCES.get(name, "lora")
        found[name] = {"reference": reference} | factor(np.asarray(values) / np.asarray(seconds[reference]))
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
    print(json.dumps({"peak_bytes": benchmarks.peak_bytes()}))


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
    sizes = Sizes(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Sizes)})
    if given.only:
        job = functools.partial(run_only, given.only, sizes)
    else:
        job = functools.partial(run, Path(given.out), sizes, given.rounds)
    sys.exit(guarded(job))


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
