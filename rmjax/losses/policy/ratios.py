"""Ratios of probabilities, the clipped surrogate, and the truncated correction of a sampler that differs from the trainer."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rmjax.losses.policy.sequences import per_sequence, per_token

LEVELS = ("token", "sequence")
PerToken = Float[Array, "R T"]


def log_ratios(
    new_RT: PerToken,
    old_RT: PerToken,
    mask_RT: Shaped[Array, "R T"],
    sequence_RT: Int[Array, "R T"],
    sequences: int,
    level: str,
) -> PerToken:
    """log π / π_old at every token, 0 without a mask.

    token: the token's own (PPO, GRPO). sequence: the mean over its sequence, the same at all of its tokens (GSPO, arXiv
    2507.18071, equation 7).
    """
    x_RT = jnp.where(mask_RT > 0, new_RT - old_RT, 0.0)
    if level == "token":
        return x_RT
    if level != "sequence":
        raise ValueError(f"the ratio's level is {level!r}; choose one of {', '.join(LEVELS)}")
    length_RS = per_sequence(jnp.ones_like(x_RT), mask_RT, sequence_RT, sequences)
    mean_RS = per_sequence(x_RT, mask_RT, sequence_RT, sequences) / jnp.maximum(length_RS, 1)
    return jnp.where(mask_RT > 0, per_token(mean_RS, sequence_RT), 0.0)


def clipped_surrogate(log_ratio_RT: PerToken, advantage_RT: PerToken, low: float, high: float) -> PerToken:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A), to be minimized.

    Source: PPO, arXiv 1707.06347, equation 7; with two bounds DAPO, arXiv 2503.14476.
    """
    ratio_RT = jnp.exp(log_ratio_RT)
    return -jnp.minimum(ratio_RT * advantage_RT, jnp.clip(ratio_RT, 1 - low, 1 + high) * advantage_RT)


def clipped(log_ratio_RT: PerToken, advantage_RT: PerToken, low: float, high: float) -> Shaped[Array, "R T"]:
    """Where the clip holds, so that the surrogate has no gradient."""
    ratio_RT = jnp.exp(log_ratio_RT)
    return ((ratio_RT < 1 - low) & (advantage_RT < 0)) | ((ratio_RT > 1 + high) & (advantage_RT > 0))


def correction(
    old_RT: PerToken,
    behavior_RT: PerToken,
    mask_RT: Shaped[Array, "R T"],
    sequence_RT: Int[Array, "R T"],
    sequences: int,
    level: str,
    cap: float,
) -> PerToken:
    """min(π_old / π_behavior, cap), a weight without a gradient (truncated importance sampling): the sampler's engine may give
    other probabilities than the trainer does for the same parameters.

    Args:
      old_RT: by the trainer, of the parameters that sampled.
      behavior_RT: by the sampler.
      level: token: of each token. sequence: of the whole sequence, the product over its tokens.
      cap: above 0.
    """
    if level not in LEVELS:
        raise ValueError(f"the correction's level is {level!r}; choose one of {', '.join(LEVELS)}")
    x_RT = jnp.where(mask_RT > 0, old_RT - behavior_RT, 0.0)
    if level == "sequence":
        x_RT = per_token(per_sequence(x_RT, mask_RT, sequence_RT, sequences), sequence_RT)
    # Cut before exp: a long sequence's product may be larger than fp32 can be.
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(x_RT, math.log(cap))))
