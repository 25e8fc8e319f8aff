"""A tiny model to start runs from, random weights, byte tokens; and a run with an adapter on it."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import first_layers, flat, nested
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, load_description, load_params, save_description
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.state import initial_params
from tests.models.adapting import moved

SPECIAL = ["<file_sep>", "<empty_output>", "<|im_start|>", "<|im_end|>"]


def save_start(folder: Path, head: float = 0.0, objective: str = "preference", seed: int = 0) -> Path:
    """A run directory of two layers, of width 32, with a reward head of this standard deviation."""
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    config = TransformerConfig(tokenizer.vocab_size, width=32, depth=2, heads=4, kv_heads=2, head_width=8, mlp_width=64)
    save_description(folder, config, Format(**base.get_config().format.to_dict()), tokenizer, objective)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), seed))())
    params["head"]["kernel"] = head * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": params}, {}, wait=True)
    return folder


def save_adapted(folder: Path, start: Path, layers: int = 2, frozen: int = 1, kind: str = "lora") -> Path:
    """What a run leaves that trained an adapter and a head on the first layers of `start`; both are noise."""
    config, form, tokenizer = load_description(start)
    adapter = AdapterConfig(kind, rank=2)
    config = dataclasses.replace(config, depth=layers, frozen_layers=frozen, adapter=adapter)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 1))())
    base = first_layers(load_params(start)["backbone"], layers, frozen)
    whole = moved({"backbone": _beside(params["backbone"], base), "head": params["head"]})
    whole["head"] = {"kernel": jax.random.normal(jax.random.key(2), params["head"]["kernel"].shape)}
    save_description(folder, config, form, tokenizer)
    (folder / "config.json").write_text(json.dumps({"model": {"init": str(start)}}))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(3, {"trainable": whole}, {}, wait=True)
    return folder


def _beside(adapted: dict, base: dict) -> dict:
    """The base's weights, with the adapter's of another tree beside them."""
    return nested({path: flat(base).get(path, leaf) for path, leaf in flat(adapted).items()})
