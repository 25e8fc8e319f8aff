"""Log-probabilities and entropies of tokens, in chunks of the vocabulary: logits of all of it are never in memory at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_FLOOR = -1e30
"""Logit of a column that is no token: of probability 0, and finite, so that 0 times it is 0."""


class TokenStatistics(NamedTuple):
    """What the model says of each token."""

    log_probability_RT: Float[Array, "R T"]
    entropy_RT: Float[Array, "R T"]  # of the distribution that it was drawn from, in nats


def token_statistics(
    hidden_RTD: Float[Array, "R T D"],
    table_VD: Float[Array, "V D"],
    tokens_RT: Int[Array, "R T"],
    temperature: float = 1.0,
    chunk: int = 8192,
    softcap: float = 0.0,
) -> TokenStatistics:
    """log softmax(h · Eᵀ / temperature) at each token, and the entropy there, in fp32.

    The vocabulary is run in chunks with a running maximum, and each chunk's logits are made again in the backward pass: memory is
    R · T · `chunk` numbers instead of R · T · V. Values and gradients are those of the plain form but for rounding.

    Args:
      hidden_RTD: the hidden states that predict the tokens.
      table_VD: the vocabulary's projection.
      temperature: that of the samples, above 0.
      softcap: c, where logits x become c · tanh(x / c) before they are divided (Gemma 2); 0 = they stay.

    Raises:
      ValueError: a temperature that is not above 0: greedy samples have no policy gradient.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0: greedy samples have no policy gradient")
    V, D = table_VD.shape
    chunk = min(chunk, V)
    parts = -(-V // chunk)
    table_CvD = jnp.pad(table_VD, ((0, parts * chunk - V), (0, 0))).reshape(parts, chunk, D)
    hidden = hidden_RTD.astype(jnp.float32)

    @jax.checkpoint
    def add(carry: Any, part: Any) -> tuple[Any, None]:
        highest_RT, sum_RT, weighted_RT, own_RT = carry
        table_vD, start = part
        logits_RTv = jnp.dot(hidden, table_vD.astype(jnp.float32).T)
        logits_RTv = (softcap * jnp.tanh(logits_RTv / softcap) if softcap else logits_RTv) / temperature
        logits_RTv = jnp.where(start + jnp.arange(chunk) < V, logits_RTv, _FLOOR)
        new_RT = jnp.maximum(highest_RT, jax.lax.stop_gradient(jnp.max(logits_RTv, axis=-1)))
        shrunk_RT = jnp.exp(highest_RT - new_RT)
        mass_RTv = jnp.exp(logits_RTv - new_RT[..., None])
        at_RT = tokens_RT - start
        found = jnp.take_along_axis(logits_RTv, jnp.clip(at_RT, 0, chunk - 1)[..., None], axis=-1)[..., 0]
        return (
            new_RT,
            sum_RT * shrunk_RT + jnp.sum(mass_RTv, axis=-1),
            weighted_RT * shrunk_RT + jnp.sum(mass_RTv * logits_RTv, axis=-1),
            own_RT + jnp.where((at_RT >= 0) & (at_RT < chunk), found, 0.0),
        ), None

    zeros_RT = jnp.zeros(tokens_RT.shape, jnp.float32)
    start = (jnp.full(tokens_RT.shape, _FLOOR, jnp.float32), zeros_RT, zeros_RT, zeros_RT)
    (highest_RT, sum_RT, weighted_RT, own_RT), _ = jax.lax.scan(add, start, (table_CvD, jnp.arange(parts) * chunk))
    normal_RT = highest_RT + jnp.log(sum_RT)
    return TokenStatistics(own_RT - normal_RT, normal_RT - weighted_RT / sum_RT)
