"""From values per token to one loss, as a (sum, count) pair: counts are of the global batch, never a padded width."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rmjax.losses.policy.sequences import per_sequence, per_token
from rmjax.losses.reduction import Term, total

FORMS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


def aggregate(
    values_RT: Float[Array, "R T"],
    mask_RT: Shaped[Array, "R T"],
    weight_RS: Float[Array, "R S"],
    sequence_RT: Int[Array, "R T"],
    form: str = "token_mean",
    divisor: float = 1.0,
) -> Term:
    """(sum, count) of the values where `mask` is, each sequence with its weight w.

        token_mean     Σ w v / Σ w over tokens                      (DAPO)
        sequence_mean  mean over sequences of means over tokens     (GRPO's paper, GSPO)
        sequence_sum   mean over sequences of sums over tokens      (REINFORCE, RLOO)
        constant       the same with sums / `divisor`, in tokens    (Dr. GRPO: the longest answer allowed)

    A sequence counts where its mask has a token: what is masked out whole is in no denominator. Pairs add up over microbatches
    and devices.
    """
    S = weight_RS.shape[1]
    if form == "token_mean":
        return total(values_RT, jnp.where(mask_RT > 0, per_token(weight_RS, sequence_RT), 0.0))
    length_RS = per_sequence(jnp.ones_like(values_RT), mask_RT, sequence_RT, S)
    sum_RS = per_sequence(values_RT, mask_RT, sequence_RT, S)
    weight_RS = jnp.where(length_RS > 0, weight_RS, 0.0)
    if form == "sequence_mean":
        return total(sum_RS / jnp.maximum(length_RS, 1), weight_RS)
    if form == "sequence_sum":
        return total(sum_RS, weight_RS)
    if form == "constant":
        return total(sum_RS / divisor, weight_RS)
    raise ValueError(f"aggregation is {form!r}; choose one of {', '.join(FORMS)}")
