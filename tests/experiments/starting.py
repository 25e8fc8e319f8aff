"""A tiny model to start runs from: random weights, byte tokens."""

from pathlib import Path

import flax.linen as nn
import jax
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, save_description
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.state import initial_params

SPECIAL = ["<file_sep>", "<empty_output>", "<|im_start|>", "<|im_end|>"]


def save_start(folder: Path, head: float = 0.0, objective: str = "preference") -> Path:
    """A run directory of two layers, of width 32, with a reward head of this standard deviation."""
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    config = TransformerConfig(tokenizer.vocab_size, width=32, depth=2, heads=4, kv_heads=2, head_width=8, mlp_width=64)
    save_description(folder, config, Format(**base.get_config().format.to_dict()), tokenizer, objective)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 0))())
    params["head"]["kernel"] = head * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": params}, {}, wait=True)
    return folder
