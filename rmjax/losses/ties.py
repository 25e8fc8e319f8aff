"""Bradley–Terry with ties: a pair has three outcomes, and equal ranks are the third. One value a group, fp32.

R rows, G groups a row, N branches a group. d is r_i − r_j − m where i is better, r_i − r_j where the two are tied.

Source: Rao and Kupper 1967 (JASA 62, 194–204); Davidson 1970 (JASA 65, 317–328).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmjax.losses.ranking import Rewards, average, differences


def tied(columns: Mapping[str, Array]) -> Bool[Array, "R G N N"]:
    """Which pairs (i, j), i < j, are tied: of equal known ranks; in a batch with targets those of exactly ½."""
    if "target_RGNN" in columns:
        equal_RGNN = columns["target_RGNN"] == 0.5
    else:
        ranks_RGN = columns["ranks_RGN"]
        equal_RGNN = (ranks_RGN[..., :, None] == ranks_RGN[..., None, :]) & jnp.isfinite(ranks_RGN)[..., :, None]
    return jnp.triu(equal_RGNN, k=1)


def rao_kupper(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array, ties_RGNN: Bool[Array, "R G N N"], tie: float,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> Float[Array, "R G"]:  # fmt: skip
    """−log P(i better) = −log σ(d − ν), −log P(tie) = −log (e^2ν − 1) − log σ(d − ν) − log σ(−d − ν); mean over pairs and ties.

    Args:
      ties_RGNN: tied pairs, each once.
      tie: ν = ln θ above 0, in units of reward: the gap below which a tie is likely.
      target_RGNN: t of an ordered pair: −t log P(i better) − (1−t) log P(j better).
    """

    def better(d_RGNN: Array) -> Array:
        return -jax.nn.log_sigmoid(d_RGNN - tie)

    def equal(d_RGNN: Array) -> Array:
        return better(d_RGNN) + better(-d_RGNN) - jnp.log(jnp.expm1(2 * tie))

    return _mean(rewards_RGN, order_RGNN, margin, ties_RGNN, better, equal, target_RGNN, weight_RGNN)


def davidson(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array, ties_RGNN: Bool[Array, "R G N N"], tie: float,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> Float[Array, "R G"]:  # fmt: skip
    """P(i better) = e^d/2 / Z and P(tie) = ν / Z with Z = e^d/2 + e^−d/2 + ν; as `rao_kupper` otherwise.

    Args:
      tie: ν above 0; between equals a tie has the probability ν / (2 + ν).
    """

    def log_total(d_RGNN: Array) -> Array:
        return jnp.logaddexp(jnp.logaddexp(d_RGNN / 2, -d_RGNN / 2), jnp.log(tie))

    def better(d_RGNN: Array) -> Array:
        return log_total(d_RGNN) - d_RGNN / 2

    def equal(d_RGNN: Array) -> Array:
        return log_total(d_RGNN) - jnp.log(tie)

    return _mean(rewards_RGN, order_RGNN, margin, ties_RGNN, better, equal, target_RGNN, weight_RGNN)


def _mean(
    rewards_RGN: Rewards, order_RGNN: Array, margin: Array, ties_RGNN: Array, better: Callable[[Array], Array],
    equal: Callable[[Array], Array], target_RGNN: Array | None, weight_RGNN: Array | None,
) -> Float[Array, "R G"]:  # fmt: skip
    d_RGNN = differences(rewards_RGN, margin)
    won_RGNN = better(d_RGNN)
    if target_RGNN is not None:
        won_RGNN = target_RGNN * won_RGNN + (1 - target_RGNN) * better(-d_RGNN)
    drawn_RGNN = equal(differences(rewards_RGN, jnp.zeros_like(margin)))
    values_RGNN = jnp.where(ties_RGNN, drawn_RGNN, won_RGNN)
    return average(values_RGNN, order_RGNN | ties_RGNN, weight_RGNN)


TIES = {"rao_kupper": rao_kupper, "davidson": davidson}
