"""Ranking losses: pure functions of rewards and what is known of their order, one value a group, never a mean.

R rows, G groups a row, N branches a group. All is fp32. `order_RGNN[r, g, i, j]` says that branch i is better than j.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Rewards = Float[Array, "R G N"]
PerGroup = Float[Array, "R G"]


def order(ranks_RGN: Float[Array, "R G N"]) -> Bool[Array, "R G N N"]:
    """Which pairs are ordered: better rank is smaller, ties and unknown ranks (inf) give none."""
    known = jnp.isfinite(ranks_RGN)
    return (ranks_RGN[..., :, None] < ranks_RGN[..., None, :]) & known[..., :, None] & known[..., None, :]


def _pair_mean(values_RGNN: Array, order_RGNN: Array) -> PerGroup:
    pairs_RG = jnp.sum(order_RGNN, axis=(-1, -2))
    return jnp.sum(jnp.where(order_RGNN, values_RGNN, 0.0), axis=(-1, -2)) / jnp.maximum(pairs_RG, 1)


def _differences(rewards_RGN: Rewards, margin_RG: PerGroup) -> Float[Array, "R G N N"]:
    rewards = rewards_RGN.astype(jnp.float32)
    return rewards[..., :, None] - rewards[..., None, :] - margin_RG[..., None, None]


def bradley_terry(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin_RG: PerGroup, label_smoothing: float = 0.0
) -> PerGroup:
    """−log σ(r_i − r_j − m), averaged over the ordered pairs (i better than j) of a group; 0 in a group without any.

    With one reference, one positive and one negative this is POLAR's pre-training loss (eq. 7) and fine-tuning loss
    (eq. 8); `label_smoothing` α gives −(1−α) log σ(Δ) − α log σ(−Δ) (Secrets of RLHF II, section 2.3).
    """
    d_RGNN = _differences(rewards_RGN, margin_RG)
    values = -(1 - label_smoothing) * jax.nn.log_sigmoid(d_RGNN)
    if label_smoothing:
        values = values - label_smoothing * jax.nn.log_sigmoid(-d_RGNN)
    return _pair_mean(values, order_RGNN)


def focal(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin_RG: PerGroup, gamma: float = 2.0
) -> PerGroup:
    """(1 − 2 relu(σ(d) − ½))^γ · (−log σ(d)): pairs already right weigh less (the InternLM2-Reward trainer, γ = 2)."""
    d_RGNN = _differences(rewards_RGN, margin_RG)
    easy = jax.nn.relu(jax.nn.sigmoid(d_RGNN) - 0.5)
    return _pair_mean((1 - 2 * easy) ** gamma * -jax.nn.log_sigmoid(d_RGNN), order_RGNN)


def listwise(rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin_RG: PerGroup) -> PerGroup:
    """Plackett–Luce: each branch with someone below it against all of those, −log softmax, averaged over such branches.

    With two branches it equals `bradley_terry`; with one positive and K negatives it is the K + 1 way softmax (InfoNCE).
    """
    below_RGNN = -_differences(rewards_RGN, margin_RG)  # r_j − r_i + m
    competing = jnp.where(order_RGNN, below_RGNN, -jnp.inf)
    # log(1 + Σ_j exp(r_j − r_i + m)) in a form whose gradient is finite where nothing competes.
    beaten_RGN = jnp.any(order_RGNN, axis=-1)
    safe = jnp.where(beaten_RGN[..., None], competing, 0.0)
    values_RGN = jax.nn.softplus(jax.nn.logsumexp(safe, axis=-1))
    return jnp.sum(jnp.where(beaten_RGN, values_RGN, 0.0), axis=-1) / jnp.maximum(jnp.sum(beaten_RGN, axis=-1), 1)


LOSSES = {"bradley_terry": bradley_terry, "focal": focal, "listwise": listwise}


def log_barrier(rewards_RGN: Rewards, present_RGN: Bool[Array, "R G N"], bound: float = 5.0) -> PerGroup:
    """−log(b − z) − log(b + z), z the reward clamped inside ±b, averaged over branches.

    xtuner sums it over a pair, which is twice this. Not for POLAR, whose rewards run from about 0 to −11.
    """
    z = jnp.clip(rewards_RGN.astype(jnp.float32), -bound + 1e-3, bound - 1e-3)
    return _branch_mean(-jnp.log(bound - z) - jnp.log(bound + z), present_RGN)


def squared(rewards_RGN: Rewards, present_RGN: Bool[Array, "R G N"]) -> PerGroup:
    """r², averaged over branches: keeps rewards centered."""
    return _branch_mean(jnp.square(rewards_RGN.astype(jnp.float32)), present_RGN)


def _branch_mean(values_RGN: Array, present_RGN: Array) -> PerGroup:
    return jnp.sum(jnp.where(present_RGN, values_RGN, 0.0), axis=-1) / jnp.maximum(jnp.sum(present_RGN, axis=-1), 1)


PENALTIES = {"log_barrier": log_barrier, "squared": squared}
