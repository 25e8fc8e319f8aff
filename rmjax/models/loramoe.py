"""LoRAMoE (arXiv 2312.09979): o = W0 x + α/r Σ_n G(x)_n B_n A_n x with G(x) = softmax(x W_g), on one Dense.

Axis letters: R rows, T tokens a row, D inputs, O outputs, K rank, N experts.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmjax.models.lora import AdapterConfig, dropped, kernel_axes, parameter, uniform

ROUTING = "routing"
"""The collection that routers write to when it is mutable: `<path of the router's owner>/weights`, [L, R, T, N]."""
_expert_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))


def mixture(dense: nn.Dense, x: Array, base: Array, config: AdapterConfig, block: nn.Module, shared: dict) -> Array:
    """What an adapted `dense` gives for `x`, where it gave `base` alone.

    All experts are two matrix products, of inner width D and N·K. With one expert this is plain LoRA exactly.

    Args:
      block: the module that calls `dense`; it owns the router where `config.router` is "block".
      shared: kept between the adapted Dense of one call of `block`. The first of them routes, by its own input.
    """
    D, N, (row, column) = x.shape[-1], config.experts, kernel_axes(dense)
    a_NDK = parameter(dense, "lora_a", _expert_uniform, (N, D, config.rank), ("experts", row, None))
    b_NKO = parameter(
        dense, "lora_b", nn.initializers.zeros, (N, config.rank, dense.features), ("experts", None, column)
    )
    if config.router == "linear":
        weights_RTN = _route(dense, x, config, row)
    else:
        if "weights" not in shared:
            shared["weights"] = _route(block, x, config, row)
        weights_RTN = shared["weights"]
    if config.dropout and dense.has_rng("dropout"):  # each expert sees its own part of x
        apart = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], N, D))
        hidden_RTNK = jnp.einsum("...nd,ndk->...nk", dropped(dense, apart, config.dropout), a_NDK.astype(base.dtype))
    else:
        hidden_RTNK = jnp.einsum("...d,ndk->...nk", x, a_NDK.astype(base.dtype))
    hidden_RTNK = hidden_RTNK * (config.scale * weights_RTN[..., None]).astype(base.dtype)
    return base + jnp.einsum("...nk,nko->...o", hidden_RTNK, b_NKO.astype(base.dtype))


def _route(owner: nn.Module, x: Array, config: AdapterConfig, axis: Any) -> Float[Array, "R T N"]:
    """G(x), in fp32, without dropout; with top-k the softmax is over the k largest logits and 0 elsewhere."""
    router_DN = parameter(owner, "lora_router", uniform, (x.shape[-1], config.experts), (axis, None))
    logits_RTN = x.astype(jnp.float32) @ router_DN
    if config.top_k:
        _, chosen = jax.lax.top_k(logits_RTN, config.top_k)
        kept = jnp.any(jax.nn.one_hot(chosen, config.experts, dtype=bool), axis=-2)
        logits_RTN = jnp.where(kept, logits_RTN, -jnp.inf)
    weights_RTN = jax.nn.softmax(logits_RTN, axis=-1)
    owner.sow(ROUTING, "weights", weights_RTN)
    return weights_RTN
