"""A tiny reward model with adapters, for the tests of several modules."""

import flax.linen as nn
import jax
import numpy as np

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import flat, nested
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.train.state import initial_params

EVERY = "(query|key|value|output|gate|up|down)$"
GEMMA = {
    "window": 2, "windowed": (True, False), "norm_offset": True, "post_norms": True, "qk_norm": True,
    "attention_softcap": 5.0, "activation": "gelu_tanh", "embedding_scale": 5.5, "mlp_bias": True, "output_bias": True,
}  # fmt: skip
"""What Gemma has, and biases that it has not."""
PAIRS = fill(
    ForestShape(2, 16, 2, 2),
    [[Tree(np.array([1, 2, 3]), (np.array([4]), np.array([5, 6])), np.array([0.0, 1.0]), type=r)] for r in range(2)],
)


def small(**changes) -> TransformerConfig:
    sizes = {"vocab_size": 97, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "head_width": 8, "mlp_width": 48}
    return TransformerConfig(**(sizes | changes))


def started(config, seed=0):
    """(model, parameters) with a random head."""
    model = RewardTransformer(config)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(model, seed))())
    return model, {**params, "head": {"kernel": jax.random.normal(jax.random.key(9), (config.width, 1))}}


def moved(params, seed=3, scale=0.1):
    """The parameters with noise on the adapter's, so that it adds something."""
    noise = np.random.default_rng(seed)
    leaves = flat(params)
    return nested(
        {
            p: x + scale * noise.standard_normal(x.shape).astype(np.float32) if "lora_" in p else x
            for p, x in leaves.items()
        }
    )


def rewards(model, params, **kwargs):
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, PAIRS, **kwargs))(params))


def experts(**changes) -> AdapterConfig:
    return AdapterConfig(**({"kind": "loramoe", "experts": 3, "alpha": 6.0, "rank": 2} | changes))
