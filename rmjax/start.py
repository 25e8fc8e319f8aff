"""What a run starts from: a language model's file, a run directory, or random weights."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from rmjax.data.formats import CHAT_FIELDS, Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.gguf import gguf_path, load_gguf
from rmjax.hub.hugging_face import is_hub_folder, open_folder, read_tokenizer
from rmjax.hub.shipped import fetching, model_folder
from rmjax.methods import Chosen
from rmjax.models import parameters
from rmjax.models.presets import PRESETS
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import is_language_model, load_description, load_params
from rmjax.settings import Model

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from."""

    config: TransformerConfig
    tokenizer: Tokenizer
    params: Any  # loaded ones; None = random
    may_miss: str  # paths that the loaded parameters may lack


def load_start(model: Model) -> Start:
    """From `config.model`: a GGUF language model, a run directory, a shipped model, one of the hub, or random weights of the
    given sizes."""
    folder = model_folder(model.init)
    if is_hub_folder(folder):
        found = open_folder(folder)
        tokenizer = read_tokenizer(folder, found.described)
        return _changed(Start(found.config, tokenizer, found.params, may_miss="" if found.head else "^head/"), model)
    if folder.is_dir():
        config, _, tokenizer = load_description(folder)
        return _changed(Start(config, tokenizer, load_params(folder), may_miss=""), model)
    path = gguf_path("smollm2" if model.init == "random" else model.init)
    if not path.is_file():
        raise FileNotFoundError(
            f"config.model.init={model.init}: no such run directory or .gguf file; see `rmjax.settings.Model`"
            + fetching(model.init)
        )
    config, params, tokenizer = load_gguf(path, weights=model.init != "random")
    if model.preset:
        config = preset(model)
    return _changed(Start(config, tokenizer, {"backbone": params} if params else None, may_miss="^head/"), model)


def preset(model: Model) -> TransformerConfig:
    """The architecture that `config.model.preset` names, for random weights only."""
    if model.init != "random":
        raise ValueError(f"config.model.preset is {model.preset!r}, but loaded weights have their own; use init=random")
    return PRESETS[model.preset]


def check_format(model: Model, form: Format) -> None:
    """ValueError where `config.model.init` is the run directory of a reward model that reads another format; lengths may
    differ. A language model's head is not trained yet."""
    folder = model_folder(model.init)
    if not folder.is_dir() or is_language_model(folder):
        return
    theirs = load_description(folder)[1]
    of_kind = {
        "polar": ("split_token", "reward_token", "bos_token"),
        "plain": ("reward_token", "bos_token"),
        "chat": CHAT_FIELDS,
    }
    for field in ("kind", *of_kind[form.kind]):
        before, now = getattr(theirs, field), getattr(form, field)
        if before != now:
            raise ValueError(
                f"config.format.{field} is {now!r}, but {model.init} was trained with {before!r}; use that one"
            )
    for field in ("max_length", "max_response_length", "response_cut_side"):
        before, now = getattr(theirs, field), getattr(form, field)
        if before != now:
            _log.warning("config.format.%s is %s; %s was trained with %s", field, now, model.init, before)


def _changed(start: Start, model: Model) -> Start:
    """First k layers, which of them lie below all that is trained, other sizes (random weights only), dtypes."""
    sizes = {name: getattr(model, name) for name in ("width", "heads", "kv_heads", "mlp_width") if getattr(model, name)}
    if sizes and start.params is not None:
        raise ValueError(f"config.model.{next(iter(sizes))} is set, but loaded weights have their own; use init=random")
    if model.layers > start.config.depth and start.params is not None:
        raise ValueError(f"config.model.layers is {model.layers}; the loaded model has {start.config.depth}")
    depth = model.layers or start.config.depth
    if not 0 <= model.frozen_layers < depth:
        raise ValueError(
            f"config.model.frozen_layers is {model.frozen_layers}; it must leave one of the {depth} layers"
        )
    if sizes:
        sizes["head_width"] = _head_width(vars(start.config) | sizes)
    config = start.config.with_layers(
        range(depth), frozen_layers=model.frozen_layers, dtype=model.dtype, param_dtype=model.param_dtype, remat=model.remat,
        attention=model.attention, attention_block=model.attention_block, **sizes,
    )  # fmt: skip
    params = start.params
    if start.config.adapter and (depth, config.frozen_layers) != (start.config.depth, start.config.frozen_layers):
        raise ValueError(
            f"config.model.init has an adapter on {start.config.depth} layers, {start.config.frozen_layers} of them frozen; "
            "keep model.layers and model.frozen_layers as they are, or merge the adapter first"
        )
    if params is not None and not start.config.adapter:
        params = {**params, "backbone": parameters.first_layers(params["backbone"], depth, model.frozen_layers)}
    return dataclasses.replace(start, config=config, params=params)


def _head_width(sizes: Mapping[str, Any]) -> int:
    """From the sizes of an architecture; ValueError where its heads cannot be of equal, even width."""
    width, heads, kv_heads = (sizes[name] for name in ("width", "heads", "kv_heads"))
    if width % heads:
        raise ValueError(f"config.model.heads is {heads}; it must divide config.model.width, {width}")
    if width // heads % 2:
        raise ValueError(
            f"config.model.width is {width} for {heads} heads of {width // heads}; rotary embeddings need an even head width, "
            f"so make it a multiple of {2 * heads}"
        )
    if heads % kv_heads:
        raise ValueError(f"config.model.kv_heads is {kv_heads}; it must divide config.model.heads, {heads}")
    return int(width // heads)


def start_of(chosen: Chosen) -> Start:
    """What a config's run starts from, in the architecture of its methods.

    Raises:
      FileNotFoundError, ValueError: there is no such model, or it does not go together with the config.
    """
    start = load_start(chosen.config.model)
    # Parameters that a loaded model has already, such as those of its adapter, may not be missing.
    may_miss = start.may_miss if start.config.adapter else chosen.may_miss(start.may_miss)
    params = None if start.params is None else chosen.loaded(start.params)
    return dataclasses.replace(start, config=chosen.architecture(start.config), params=params, may_miss=may_miss)
