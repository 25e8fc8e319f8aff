"""Objectives: (parameters, forest, rng) → named terms, each a (sum, count). `loss` is the one that is minimized."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.losses.reduction import Term, total
from rmjax.models.forest import Forest, unshared_tokens

Terms = dict[str, Term]
Objective = Callable[[Any, Forest, jax.Array], Terms]


def reward_terms(rewards_RGN: jax.Array, order_RGNN: jax.Array, forest: Forest) -> Terms:
    """Accuracy (ties count ½), ties, margin, reward moments and the batch's token counts."""
    difference = rewards_RGN[..., :, None] - rewards_RGN[..., None, :]
    tied = difference == 0
    present_RGN = forest.readout_RGN >= 0
    return {
        "accuracy": total(jnp.where(tied, 0.5, difference > 0), order_RGNN),
        "ties": total(tied, order_RGNN),
        "margin": total(difference, order_RGNN),
        "reward_mean": total(rewards_RGN, present_RGN),
        "reward_square": total(jnp.square(rewards_RGN), present_RGN),
        **batch_terms(forest),
    }


def batch_terms(forest: Forest) -> Terms:
    """`pad_fraction`, and `sharing_factor`: tokens of the unshared sequences over tokens processed."""
    real = jnp.sum(forest.group_RT > 0).astype(jnp.float32)
    cells = jnp.float32(forest.group_RT.size)
    return {
        "pad_fraction": (cells - real, cells),
        "sharing_factor": (unshared_tokens(forest).astype(jnp.float32), real),
    }
