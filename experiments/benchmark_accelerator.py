"""What only an accelerator can show: `python -m experiments.benchmark_accelerator --out=docs/speed/accelerator/NAME.json`.

MFU of a training step of POLAR-1.8B's sizes (configs/polar/pretrain_1_8b.py) on one device, by kernels where there are some, and
at several row lengths attention in blocks and by kernels against attention under a dense mask, SmolLM2's sizes in bf16. Random
weights, full rows of random pairs. So far this has run on a CPU alone, at sizes of a test.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from configs.polar import pretrain_1_8b
from experiments.benchmarks import Arm, configured, factor, timed
from experiments.start import guarded, parse_flags, prepare
from experiments.trainers.results import spread
from rmjax.evaluate import environment
from rmjax.files import refuse_unwritable, write_json
from rmjax.models.attention import PLATFORMS
from rmjax.program import flops_per_token
from rmjax.train.flops import mfu


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of both measurements."""

    rows: int = 4  # of the 1.8B step
    row_tokens: int = 4096
    tokens: int = 16384  # of a batch, where attention is compared
    layers: int = 30  # there
    rounds: int = 10


def large(sizes: Sizes) -> Any:
    """The config of the 1.8B step."""
    config = pretrain_1_8b.get_config("1")
    config.data.rows, config.data.row_tokens, config.optimizer.microbatches = sizes.rows, sizes.row_tokens, 1
    config.model.attention = tiled()[-1]
    return config


def tiled() -> list[str]:
    """Forms of attention in tiles that run here, kernels last."""
    return ["blockwise", "pallas"] if jax.default_backend() in PLATFORMS else ["blockwise"]


def utilization(config: Any, rounds: int) -> dict[str, Any]:
    """Seconds of a step and its MFU; a token counts as attending to half a row, as in docs/pods.md."""
    data, arm = config.data, Arm.make(config)
    per_token = flops_per_token(arm.program, arm.state, data.row_tokens / 2, False)
    arm.seconds()
    seconds = [arm.seconds() for _ in range(rounds)]
    speeds = [data.rows * data.row_tokens / s for s in seconds]
    facts = {"rows": data.rows, "row_tokens": data.row_tokens, "planned_bytes": arm.planned_bytes()}
    found = {"seconds": spread(seconds), "mfu": spread([mfu(per_token * x, dtype=config.model.dtype) for x in speeds])}
    return facts | found


def attention(row_tokens: int, sizes: Sizes) -> dict[str, Any]:
    """Seconds of a step with each form of attention, and the ratios of dense to the others within a round."""
    devices = jax.device_count()  # each has a row at least, and as many as the others
    rows = max(1, sizes.tokens // row_tokens // devices) * devices
    shape = {"layers": sizes.layers, "rows": rows, "row_tokens": row_tokens}
    built = {
        kind: Arm.make(
            configured({"model.attention": kind, "model.dtype": "bfloat16", "model.remat": "attention"}, **shape)
        )
        for kind in ("dense", *tiled())
    }
    seconds = timed(built, sizes.rounds)
    ratio = {kind: factor(np.divide(seconds["dense"], seconds[kind])) for kind in tiled()}
    planned = {kind: arm.planned_bytes() for kind, arm in built.items()}
    medians = {kind: spread(values) for kind, values in seconds.items()}
    return {"ratio": ratio, "seconds": medians, "planned_bytes": planned} | shape


def run(out: Path, config: Any, lengths: Sequence[int], sizes: Sizes) -> None:
    """Both, to `out`."""
    refuse_unwritable(out)
    found: dict[str, Any] = {"step": utilization(config, sizes.rounds), "attention": {}}
    print(f"1.8B step: MFU {found['step']['mfu']['median']:.3f}", flush=True)
    for length in lengths:
        found["attention"][str(length)] = attention(length, sizes)
        for kind, ratio in found["attention"][str(length)]["ratio"].items():
            print(f"rows of {length}: dense takes {ratio['median']:.2f} times as long as {kind}", flush=True)
    write_json(out, found | environment())


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sizes = Sizes(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Sizes)})
    sys.exit(guarded(lambda: run(Path(given.out), large(sizes), [int(n) for n in given.lengths], sizes)))


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmark_accelerator.json", "file to write")
    flags.DEFINE_list("lengths", "1024,2048,4096,8192", "tokens a row, where attention is compared")
    flags.DEFINE_integer("rows", Sizes.rows, "of the 1.8B step", 1)
    flags.DEFINE_integer("row_tokens", Sizes.row_tokens, "tokens a row of the 1.8B step", 12)
    flags.DEFINE_integer("tokens", Sizes.tokens, "tokens a batch, where attention is compared", 12)
    flags.DEFINE_integer("layers", Sizes.layers, "of the model there", 1)
    flags.DEFINE_integer("rounds", Sizes.rounds, "that are counted", 2)
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main, flags_parser=parse_flags)
