"""Sampled sequences inside the rows of a batch: sums over each, and values of each at its tokens.

A row holds several sequences side by side; `sequence_RT` numbers them from 0 and is −1 at prompts and in padding.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def of_forest(group_RT: Int[Array, "R T"], branch_RT: Int[Array, "R T"], branches: int) -> Int[Array, "R T"]:
    """Number of the branch that each token is of, among the G · N of its row; −1 on prefixes and in padding."""
    own = (group_RT > 0) & (branch_RT > 0)
    return jnp.where(own, (group_RT - 1) * branches + branch_RT - 1, -1)


def per_sequence(
    values_RT: Shaped[Array, "R T"], mask_RT: Shaped[Array, "R T"], sequence_RT: Int[Array, "R T"], sequences: int
) -> Float[Array, "R S"]:
    """Sums of `values` over the tokens of each sequence that `mask` has; what stands elsewhere, NaN too, is not read."""
    kept_RT = jnp.where(mask_RT > 0, values_RT.astype(jnp.float32), 0.0)
    member_RTS = (sequence_RT[..., None] == jnp.arange(sequences)).astype(jnp.float32)
    return jnp.einsum("rt,rts->rs", kept_RT, member_RTS, precision="highest")  # else a TPU multiplies in bf16


def per_token(values_RS: Shaped[Array, "R S"], sequence_RT: Int[Array, "R T"]) -> Shaped[Array, "R T"]:
    """The value of its sequence at every token; 0 at tokens of none."""
    values_RT = jnp.take_along_axis(values_RS, jnp.maximum(sequence_RT, 0), axis=1)
    return jnp.where(sequence_RT >= 0, values_RT, jnp.zeros((), values_RS.dtype))


def at_last(
    values_RS: Float[Array, "R S"], mask_RT: Shaped[Array, "R T"], sequence_RT: Int[Array, "R T"]
) -> Float[Array, "R T"]:
    """The value of each sequence at its last token that `mask` has, 0 elsewhere: a reward for the whole, per token."""
    S, T = values_RS.shape[1], sequence_RT.shape[1]
    own_RTS = (sequence_RT[..., None] == jnp.arange(S)) & (mask_RT > 0)[..., None]
    last_RS = jnp.max(jnp.where(own_RTS, jnp.arange(T)[:, None], -1), axis=1)
    is_last_RT = jnp.arange(T) == jnp.take_along_axis(last_RS, jnp.maximum(sequence_RT, 0), axis=1)
    return jnp.where(is_last_RT & (sequence_RT >= 0), per_token(values_RS, sequence_RT), 0.0)
