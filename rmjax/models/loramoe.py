"""LoRAMoE (arXiv 2312.09979): o = W0 x + α/r Σ_n G(x)_n B_n A_n x with G(x) = softmax(x W_g), on one Dense.

Axis letters: R rows, T tokens a row, D inputs, O outputs, K rank, N experts.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from rmjax.models.lora import ROUTING, AdapterConfig, kernel_axes, masked, parameter, uniform

WORD = 8
"""Experts whose dropout one random number decides. It has 23 random bits, and eight fair decisions take 8; the probability of a
rarer outcome is off by some 1e-7."""
_expert_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))


def mixture(dense: nn.Dense, x: Array, base: Array, config: AdapterConfig, block: nn.Module, shared: dict) -> Array:
    """What an adapted `dense` gives for `x`, where it gave `base` alone.

    All experts are two matrix products, of inner width D and N·K (under dropout the first is done for one after the other).
    With one expert this is plain LoRA exactly.

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
    if config.dropout and dense.has_rng("dropout"):
        hidden_RTNK = _hidden_of_parts(x, a_NDK.astype(base.dtype), config.dropout, dense.make_rng("dropout"))
    else:
        hidden_RTNK = jnp.einsum("...d,ndk->...nk", x, a_NDK.astype(base.dtype))
    hidden_RTNK = hidden_RTNK * (config.scale * weights_RTN[..., None]).astype(base.dtype)
    return base + jnp.einsum("...nk,nko->...o", hidden_RTNK, b_NKO.astype(base.dtype))


def kept_by(key: Array, shape: tuple[int, ...], experts: int, rate: float) -> UInt8[Array, "W R T D"]:
    """For every number of x, bit n % WORD of word n // WORD: whether expert n keeps it; each with 1 − rate, independently.

    A word is decided by one uniform number: given that it is below the threshold, or above, it is uniform again between the
    bounds that are left, so that it serves the next expert. (Numbers of their own for all would cost N times as much.)
    """
    count = -(-experts // WORD)
    left, words = jax.random.uniform(key, (count, *shape)), jnp.zeros((count, *shape), jnp.uint8)
    for bit in range(min(experts, WORD)):
        keep = left < 1 - rate
        words |= keep.astype(jnp.uint8) << bit
        left = jnp.where(keep, left / (1 - rate), (left - (1 - rate)) / rate)
    return words


def _hidden_of_parts(x: Float[Array, "R T D"], a_NDK: Array, rate: float, key: Array) -> Float[Array, "R T N K"]:
    """A_n times the part of x that dropout leaves to expert n; one after the other, so that one part exists at a time."""
    words = kept_by(key, x.shape, len(a_NDK), rate)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # its part of x is made again in the backward pass
    def hidden(n: Array, a_DK: Array) -> Array:
        kept = (words[n // WORD] >> (n % WORD).astype(words.dtype)) & 1
        return masked(x, kept, rate) @ a_DK

    _, hidden_NRTK = jax.lax.scan(lambda _, expert: (None, hidden(*expert)), None, (jnp.arange(len(a_NDK)), a_NDK))
    return jnp.moveaxis(hidden_NRTK, 0, -2)


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
