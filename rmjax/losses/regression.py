"""Regression on scores: a reward is the number that an annotator gave. One value a group, fp32.

R rows, G groups a row, N branches a group.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def regression(rewards_RGN: Float[Array, "R G N"], score_RGN: Float[Array, "R G N"]) -> Float[Array, "R G"]:
    """(r − s)² averaged over the branches with a score (finite ones); 0 in a group without any.

    Source: HelpSteer2 (arXiv 2406.08673), section 3: mean squared error on annotated scores.
    """
    known_RGN = jnp.isfinite(score_RGN)
    gaps_RGN = rewards_RGN.astype(jnp.float32) - jnp.where(known_RGN, score_RGN, 0.0)
    values_RGN = jnp.where(known_RGN, jnp.square(jnp.where(known_RGN, gaps_RGN, 0.0)), 0.0)
    return jnp.sum(values_RGN, axis=-1) / jnp.maximum(jnp.sum(known_RGN, axis=-1), 1)
