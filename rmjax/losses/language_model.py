"""Next-token loss on forest rows, for tuning the policies that a corpus is sampled from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def next_token(logits_RTV: Float[Array, "R T V"], target_RT: Int[Array, "R T"]) -> Float[Array, "R T"]:
    """−log p(target) at every column, in fp32; the caller weighs columns with `target_weight_RT`."""
    log_probability = jax.nn.log_softmax(logits_RTV.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probability, target_RT[..., None], axis=-1)[..., 0]
