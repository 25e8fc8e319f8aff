"""Writes a trained model, or its adapter, in another form: `python -m experiments.export --model=DIR --to=peft --output=PATH`.

`--to=light` writes a folder of adapter and head, which `RewardModel.load` puts on the base that the run began with
(`rmjax.light`), `--to=peft` one for PEFT, `--to=adapter` one safetensors file (adapter and head) for
`RewardModel.with_adapter`, `--to=merged` a run directory whose weights have the adapter in them, for `--config.model.init` and
`RewardModel.load`. `--to=hugging_face` writes the whole model, its adapter merged, as a folder for transformers, TRL, vLLM and
others (`rmjax.hub.export`).
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.hub.adapters import export_peft, save_adapter
from rmjax.hub.export import export_hugging_face
from rmjax.hub.families import KINDS
from rmjax.hub.shipped import model_folder
from rmjax.light import hub_family, save_light
from rmjax.models.lora import merged
from rmjax.reward_model import (
    CHECKPOINTS,
    MODEL_FILE,
    is_language_model,
    load_description,
    load_params,
    refuse_wrapped,
    save_description,
)
from rmjax.train.checkpoint import Checkpoints

FORMS = ("light", "peft", "adapter", "merged", "hugging_face")


def export(model: Path, to: str, output: Path, base: str = "", dtype: str = "", pad: str = "") -> None:
    """Writes `output`, or says why that cannot be.

    Raises:
      ValueError: a model without adapter, or a form that its adapter does not have.
      FileExistsError: merged or hugging_face, and `output` is a model already.
    """
    if to not in FORMS:
        raise ValueError(f"--to is {to!r}; choose {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if to in ("light", "adapter") and dtype == "bfloat16":
        raise ValueError(f"--dtype=bfloat16 is for --to=hugging_face; --to={to} has float32 and float16")
    model = model_folder(model)
    config, form, tokenizer = load_description(model)
    refuse_wrapped(model)
    if to == "hugging_face":
        _whole(model, output, dtype, pad)
        return
    dtype = dtype or "float32"
    if config.adapter is None:
        raise ValueError(f"--model={model} has no adapter; it was trained with config.adapter.kind empty")
    if to == "light":
        print(f"wrote {output}, which goes onto {save_light(model, output, dtype)}; its card.md is yours to fill in")
        return
    params, writes = load_params(model), is_language_model(model)
    used = {"backbone": params["backbone"]} if writes else params  # a language model's head is none
    if to == "peft":
        if (family := hub_family(model)) and KINDS[family].names.fused:
            raise ValueError(
                f"the base is a {family} model, whose matrices are fused, and the adapter is on parts of them: PEFT cannot say "
                "that; write --to=hugging_face, which merges it"
            )
        export_peft(output, config, used, base)
    elif to == "adapter":
        save_adapter(output, config.adapter, used, dtype)
    else:
        if (output / MODEL_FILE).exists() or (output / CHECKPOINTS).exists():
            raise FileExistsError(
                f"--output={output} is a run already, or what a stopped export left; name a new folder"
            )
        params = merged(params, config.adapter)
        with Checkpoints(output / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, {"trainable": params}, {}, wait=True)
        objective = "language_model" if writes else "preference"
        save_description(output, dataclasses.replace(config, adapter=None), form, tokenizer, objective)


def _whole(model: Path, output: Path, dtype: str, pad: str) -> None:
    config, form, tokenizer = load_description(model)
    params, writes = load_params(model), is_language_model(model)
    if config.adapter:
        params, config = merged(params, config.adapter), dataclasses.replace(config, adapter=None)
    used = {name: part for name, part in params.items() if name == "backbone" or not writes}
    family = hub_family(model)
    found = export_hugging_face(output, config, used, tokenizer, form, model_type=family, dtype=dtype, pad=pad)
    said = f"{found.architecture}, {found.tensors} tensors, files of weights: {found.files}"
    print(f"wrote {output}: {said}; texts are padded with {found.pad_token}")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    paths = Path(flags.FLAGS.model), flags.FLAGS.to, Path(flags.FLAGS.output)
    sys.exit(guarded(functools.partial(export, *paths, flags.FLAGS.base, flags.FLAGS.dtype, flags.FLAGS.pad)))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "run directory, of a model with an adapter but for hugging_face; or a hub model")
    flags.DEFINE_string("to", "peft", "light | peft | adapter | merged | hugging_face")
    flags.DEFINE_string("output", None, "folder (light, peft, merged, hugging_face) or file (adapter) to write")
    flags.DEFINE_string("base", "", "peft: hub name or folder of the base model")
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "float16", "bfloat16"],
        "light, adapter: of the adapter's numbers in the file, float32 unless said; hugging_face: of all but the head, as "
        "they are unless said",
    )  # fmt: skip
    flags.DEFINE_string("pad", "", "hugging_face: the pad token; empty = a special one that texts are free of")
    flags.mark_flags_as_required(["model", "output"])
    prepare()
    app.run(main, flags_parser=parse_flags)
