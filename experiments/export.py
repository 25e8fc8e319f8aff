"""Takes the adapter out of a trained model: `python -m experiments.export --model=DIR --to=peft --output=PATH`.

`--to=peft` writes a folder for PEFT, `--to=adapter` one safetensors file (adapter and head) for `RewardModel.with_adapter`,
`--to=merged` a run directory whose weights have the adapter in them, for `--config.model.init` and `RewardModel.load`.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.sources import choose
from experiments.start import parse_flags, prepare
from experiments.train import guarded
from rmjax.hub.adapters import export_peft, save_adapter
from rmjax.reward_model import CHECKPOINTS, RewardModel, save_description
from rmjax.train.checkpoint import Checkpoints

FORMS = ("peft", "adapter", "merged")


def export(model: Path, to: str, output: Path, base: str = "") -> None:
    """ValueError for a model without adapter, and for a form that its adapter does not have."""
    choose("to", to, FORMS)
    loaded = RewardModel.load(model)
    if loaded.config.adapter is None:
        raise ValueError(f"--model={model} has no adapter; it was trained with config.adapter.kind empty")
    if to == "peft":
        export_peft(output, loaded.config, loaded.params, base)
    elif to == "adapter":
        save_adapter(output, loaded.config.adapter, loaded.params)
    else:
        plain = loaded.merged()
        save_description(output, plain.config, plain.format, plain.tokenizer)
        with Checkpoints(output / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, {"trainable": plain.params}, {}, wait=True)


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    paths = Path(flags.FLAGS.model), flags.FLAGS.to, Path(flags.FLAGS.output)
    sys.exit(guarded(functools.partial(export, *paths, flags.FLAGS.base)))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "run directory of a model with an adapter")
    flags.DEFINE_string("to", "peft", "peft | adapter | merged")
    flags.DEFINE_string("output", None, "folder (peft, merged) or file (adapter) to write")
    flags.DEFINE_string("base", "", "peft: hub name or folder of the base model")
    flags.mark_flags_as_required(["model", "output"])
    prepare()
    app.run(main, flags_parser=parse_flags)
