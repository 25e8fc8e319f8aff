"""Light copies of trained models: a folder with adapter and head alone, whose base lies elsewhere.

    adapter.safetensors    adapter and head, with the base's fingerprint and a SHA-256 of the numbers
    model.json             as training writes it, and what the base is called; the tokenizer is the base's
    card.md                what the model is and what it was measured on: a skeleton, to be filled in

`RewardModel.load(FOLDER)` and `config.model.init=FOLDER` take one, and `shipped:NAME` is one in the package.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from rmjax.files import write_json, write_text
from rmjax.hub.adapters import fingerprint, save_adapter
from rmjax.hub.config_json import read_config
from rmjax.hub.hugging_face import is_hub_folder
from rmjax.hub.shipped import model_folder
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import (
    ADAPTER_FILE,
    CHECKPOINTS,
    MODEL_FILE,
    base_model,
    base_params,
    is_language_model,
    load_description,
    load_params,
    refuse_wrapped,
)

CARD = "card.md"
_CARD = """# {name}

What it is: an adapter ({adapter}) and a reward head on the first {depth} layers of {base}; format {format}.
Rewards have no zero and no unit: only differences between answers to one prompt mean anything.

| | |
| --- | --- |
| data | … |
| recipe (config, seed, steps, device) | … |
| size of the file, storage | {size:.1f} MB, {dtype} |

| measure | model | length | word overlap | n |
| --- | --- | --- | --- | --- |
| … | … | … | … | … |

Limits: …
"""


def save_light(run: Path, folder: Path, dtype: str = "float32") -> str:
    """Writes the light copy of a trained reward model with an adapter; a `card.md` that is there stays.

    Args:
      run: directory of the run.
      folder: made if it is absent.
      dtype: of the adapter's numbers in the file: float32, or float16, which takes half the space.

    Returns:
      what the base is called: `smollm2`, or the path that the run's config has.

    Raises:
      FileExistsError: `folder` is a run.
      ValueError: the run has no adapter, or was trained beside it, so that its base lies nowhere else.
    """
    if (folder / CHECKPOINTS).exists():
        raise FileExistsError(f"{folder} is a run; name a new folder")
    config, form, tokenizer = load_description(run)
    if config.adapter is None:
        raise ValueError(
            f"{run} has no adapter; only a model that was trained with config.adapter.kind has a light copy"
        )
    refuse_wrapped(run)
    if is_language_model(run):
        raise ValueError(f"{run} is a language model and has no reward head; --to=adapter writes its adapter alone")
    params = load_params(run)
    base = _base_of(run, config, fingerprint(params))
    if base_model(base, weights=False)[1].fingerprint() != tokenizer.fingerprint():
        raise ValueError(f"{run} has another tokenizer than its base, {base}; copy the run as it is")
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder / ADAPTER_FILE, config.adapter, params, dtype)
    described = json.loads((run / MODEL_FILE).read_text(encoding="utf-8"))
    kept = {name: described[name] for name in ("transformer", "format", "objective") if name in described}
    write_json(folder / MODEL_FILE, {**kept, "base": {"name": base, "tokenizer": tokenizer.fingerprint()}})
    if not (folder / CARD).exists():
        a = config.adapter
        facts = {"adapter": f"{a.kind}, rank {a.rank}, on `{a.pattern}`", "depth": config.depth, "format": form.kind}
        size = (folder / ADAPTER_FILE).stat().st_size / 1e6
        write_text(folder / CARD, _CARD.format(name=folder.name, base=base, size=size, dtype=dtype, **facts))
    return base


def _base_of(run: Path, config: TransformerConfig, wanted: str) -> str:
    """The name of what the run began with that has the base's weights: of several the one farthest back."""
    for name in reversed(list(_begun_with(run))):
        try:
            if name != "random" and fingerprint(base_params(name, config)) == wanted:
                return name
        except FileNotFoundError:  # moved since: a nearer one may have the same base
            continue
    raise ValueError(
        f"{run}: its base is not what the run began with ({', '.join(_begun_with(run)) or 'no config.json says'}), so more than "
        "adapter and head was trained; use --to=merged, or copy the run as it is"
    )


def hub_family(run: Path) -> str:
    """`model_type` of the hub's model that a run, or what it began with, came from; "" where there is none."""
    folders = [run, *(model_folder(name) for name in _begun_with(run))]
    return next((read_config(folder).model_type for folder in folders if is_hub_folder(folder)), "")


def _begun_with(run: Path) -> Iterator[str]:
    """`model.init` of the run's config, of the run that this names, and so on; what is not there any more ends it."""
    described, config = run / MODEL_FILE, run / "config.json"
    if is_hub_folder(run):
        return
    if base := json.loads(described.read_text(encoding="utf-8")).get("base"):
        yield base["name"]
    elif config.is_file():
        name = json.loads(config.read_text(encoding="utf-8"))["model"]["init"]
        yield name
        if (model_folder(name) / MODEL_FILE).is_file():
            yield from _begun_with(model_folder(name))
