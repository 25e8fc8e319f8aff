"""The one reducer: every term is a (sum, count) pair, and it is divided once, by the global count."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Term = tuple[jax.Array, jax.Array]
"""(sum, count), both fp32 scalars; the mean is their quotient once all rows and microbatches are added up."""


def total(values: Float[Array, "..."], where: Shaped[Array, "..."]) -> Term:
    """Adds up `values` with weights `where` (booleans or non-negative numbers); masked-out NaN cannot leak."""
    weights = where.astype(jnp.float32)
    kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
    return jnp.sum(kept * weights), jnp.sum(weights)


def mean(term: Term) -> jax.Array:
    """sum / count, 0 where nothing was counted."""
    return term[0] / jnp.where(term[1] > 0, term[1], 1.0)
