"""Ranking losses: pure functions of rewards and what is known of their order, one value a group, never a mean.

R rows, G groups a row, N branches a group. All is fp32. `order_RGNN[r, g, i, j]` says that branch i is better than j. Order may
be soft: a probability for each pair, `target_RGNN`. A plain order is the case of probability 1 with the same values bit for bit,
operation by operation; compiled, XLA may fuse the two forms differently and round a gradient's last bit otherwise.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Rewards = Float[Array, "R G N"]
PerGroup = Float[Array, "R G"]


def order(ranks_RGN: Float[Array, "R G N"]) -> Bool[Array, "R G N N"]:
    """Which pairs are ordered: better rank is smaller, ties and unknown ranks (inf) give none."""
    known = jnp.isfinite(ranks_RGN)
    return (ranks_RGN[..., :, None] < ranks_RGN[..., None, :]) & known[..., :, None] & known[..., None, :]


def pairs(target_RGNN: Float[Array, "R G N N"]) -> Bool[Array, "R G N N"]:
    """Which pairs have a target, each once: (i, j) where i is more probably better, and where chances are equal i < j.

    `target_RGNN` is the probability that i is better than j, −1 where it is unknown; target[i, j] + target[j, i] = 1.
    """
    N = target_RGNN.shape[-1]
    return (target_RGNN > 0.5) | ((target_RGNN == 0.5) & (jnp.arange(N)[:, None] < jnp.arange(N)))


class Labels(NamedTuple):
    """What a batch's columns say of the order of its branches, as losses and metrics take it."""

    order_RGNN: Bool[Array, "R G N N"]  # i counts as better than j: what accuracy and margin are measured on
    pairs_RGNN: Bool[Array, "R G N N"]  # what is trained on: the same, and pairs with equal chances once
    margin: Array  # "R G" or "R G N N", in units of reward
    weight_RG: PerGroup  # of a group's loss: its own times the mean of its pairs'
    soft: dict[str, Array]  # further arguments of a loss


def labels(columns: Mapping[str, Array]) -> Labels:
    """Ranks give pairs of probability 1; with a column target_RGNN that one counts instead, with margin_RGNN and weight_RGNN
    where the batch has them."""
    margin, weight_RG = columns["margin_RG"], columns["weight_RG"]
    if "target_RGNN" not in columns:
        order_RGNN = order(columns["ranks_RGN"])
        return Labels(order_RGNN, order_RGNN, margin, weight_RG, {})
    target_RGNN = columns["target_RGNN"]
    pairs_RGNN, soft = pairs(target_RGNN), {"target_RGNN": target_RGNN}
    if "margin_RGNN" in columns:
        margin = margin[..., None, None] + columns["margin_RGNN"]
    if "weight_RGNN" in columns:
        soft["weight_RGNN"] = columns["weight_RGNN"]
        weight_RG = weight_RG * average(columns["weight_RGNN"], pairs_RGNN)
    return Labels(target_RGNN > 0.5, pairs_RGNN, margin, weight_RG, soft)


def average(values_RGNN: Array, order_RGNN: Array, weight_RGNN: Array | None = None) -> PerGroup:
    """Mean over a group's ordered pairs, weighted where weights are given; 0 where there are none."""
    if weight_RGNN is not None:
        return _mean(values_RGNN, jnp.where(order_RGNN, weight_RGNN, 0.0), (-1, -2))
    pairs_RG = jnp.sum(order_RGNN, axis=(-1, -2))
    return jnp.sum(jnp.where(order_RGNN, values_RGNN, 0.0), axis=(-1, -2)) / jnp.maximum(pairs_RG, 1)


def _mean(values: Array, weights: Array, axis: int | tuple[int, ...]) -> Array:
    """Weighted mean, 0 where nothing weighs."""
    total = jnp.sum(weights, axis=axis)
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, axis=axis) / jnp.where(total > 0, total, 1.0)


def differences(rewards_RGN: Rewards, margin: Array) -> Float[Array, "R G N N"]:
    """r_i − r_j − m in fp32; m of a group, [R, G], or of a pair."""
    rewards = rewards_RGN.astype(jnp.float32)
    return rewards[..., :, None] - rewards[..., None, :] - (margin[..., None, None] if margin.ndim == 2 else margin)


def bradley_terry(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array, label_smoothing: float = 0.0,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> PerGroup:  # fmt: skip
    """−log σ(r_i − r_j − m), averaged over the ordered pairs (i better than j) of a group; 0 in a group without any.

    With one reference, one positive and one negative this is POLAR's pre-training loss (eq. 7) and fine-tuning loss
    (eq. 8); `label_smoothing` α gives −(1−α) log σ(Δ) − α log σ(−Δ) (Secrets of RLHF II, section 2.3).

    Args:
      margin: m of a group, [R, G], or of a pair, [R, G, N, N].
      target_RGNN: t, the probability that i is better than j; the loss of a pair is −t log σ(Δ) − (1−t) log σ(−Δ), and
        smoothing makes t + α (1 − 2t) of it. None: 1.
      weight_RGNN: factors of the average over pairs. None: 1.
    """
    d_RGNN = differences(rewards_RGN, margin)
    if target_RGNN is not None:
        t = target_RGNN + label_smoothing * (1 - 2 * target_RGNN)
        # log σ(−Δ) = log σ(Δ) − Δ; exact where t is 1.
        return average((1 - t) * d_RGNN - jax.nn.log_sigmoid(d_RGNN), order_RGNN, weight_RGNN)
    values = -(1 - label_smoothing) * jax.nn.log_sigmoid(d_RGNN)
    if label_smoothing:
        values = values - label_smoothing * jax.nn.log_sigmoid(-d_RGNN)
    return average(values, order_RGNN, weight_RGNN)


def focal(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array, gamma: float = 2.0,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> PerGroup:  # fmt: skip
    """(1 − 2 relu(σ(d) − ½))^γ · (−log σ(d)): pairs already right weigh less (the InternLM2-Reward trainer, γ = 2).

    With a target t it is t f(d) + (1−t) f(−d), f being the above. Other arguments as in `bradley_terry`.
    """

    def of(d_RGNN: Array) -> Array:
        easy = jax.nn.relu(jax.nn.sigmoid(d_RGNN) - 0.5)
        return (1 - 2 * easy) ** gamma * -jax.nn.log_sigmoid(d_RGNN)

    d_RGNN = differences(rewards_RGN, margin)
    values = of(d_RGNN) if target_RGNN is None else target_RGNN * of(d_RGNN) + (1 - target_RGNN) * of(-d_RGNN)
    return average(values, order_RGNN, weight_RGNN)


def listwise(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> PerGroup:  # fmt: skip
    """Plackett–Luce: each branch with someone below it against all of those, −log softmax, averaged over such branches.

    With two branches it equals `bradley_terry`; with one positive and K negatives it is the K + 1 way softmax (InfoNCE).
    With targets, each choice is a cross entropy with the probabilities that Luce's axiom gives from them: those below it are
    chosen with odds (1−t) : t against branch i. Weights average over pairs, then over choices.
    """
    below_RGNN = -differences(rewards_RGN, margin)  # r_j − r_i + m
    competing = jnp.where(order_RGNN, below_RGNN, -jnp.inf)
    # log(1 + Σ_j exp(r_j − r_i + m)) in a form whose gradient is finite where nothing competes.
    beaten_RGN = jnp.any(order_RGNN, axis=-1)
    safe = jnp.where(beaten_RGN[..., None], competing, 0.0)
    values_RGN = jax.nn.softplus(jax.nn.logsumexp(safe, axis=-1))
    if target_RGNN is not None:
        odds_RGNN = jnp.where(order_RGNN, (1 - target_RGNN) / jnp.where(order_RGNN, target_RGNN, 1.0), 0.0)
        chosen_RGNN = odds_RGNN / (1 + jnp.sum(odds_RGNN, axis=-1, keepdims=True))
        values_RGN = values_RGN - jnp.sum(jnp.where(order_RGNN, chosen_RGNN * below_RGNN, 0.0), axis=-1)
    if weight_RGNN is not None:
        return _mean(values_RGN, _mean(weight_RGNN, order_RGNN.astype(jnp.float32), -1), -1)
    return jnp.sum(jnp.where(beaten_RGN, values_RGN, 0.0), axis=-1) / jnp.maximum(jnp.sum(beaten_RGN, axis=-1), 1)


def k_way(
    rewards_RGN: Rewards, order_RGNN: Bool[Array, "R G N N"], margin: Array,
    *, target_RGNN: Array | None = None, weight_RGNN: Array | None = None,
) -> PerGroup:  # fmt: skip
    """The first choice of `listwise` alone: the branch that none is better than, against all below it, −log softmax.

    How the others are ordered among themselves says nothing. Of several first branches each makes its choice, averaged.
    """
    first_RGN = ~jnp.any(order_RGNN, axis=-2)
    order_RGNN = order_RGNN & first_RGN[..., :, None]
    return listwise(rewards_RGN, order_RGNN, margin, target_RGNN=target_RGNN, weight_RGNN=weight_RGNN)


LOSSES = {"bradley_terry": bradley_terry, "focal": focal, "listwise": listwise, "k_way": k_way}


def smoothed(found: Labels, label_smoothing: float) -> Labels:
    """Labels of which a fraction α is assumed to be flipped: a target t becomes t + α (1 − 2t), for any loss of `LOSSES`."""
    if not label_smoothing:
        return found
    hard_RGNN = found.order_RGNN.astype(jnp.float32)
    target_RGNN = found.soft.get("target_RGNN", hard_RGNN)
    soft_RGNN = jnp.where(target_RGNN >= 0, target_RGNN + label_smoothing * (1 - 2 * target_RGNN), target_RGNN)
    return found._replace(soft={**found.soft, "target_RGNN": soft_RGNN})


def log_barrier(rewards_RGN: Rewards, present_RGN: Bool[Array, "R G N"], bound: float = 5.0) -> PerGroup:
    """−log(b − z) − log(b + z), z the reward clamped inside ±b, averaged over branches.

    xtuner sums it over a pair, which is twice this. Not for POLAR, whose rewards run from about 0 to −11.
    """
    z = jnp.clip(rewards_RGN.astype(jnp.float32), -bound + 1e-3, bound - 1e-3)
    return _branch_mean(-jnp.log(bound - z) - jnp.log(bound + z), present_RGN)


def squared(rewards_RGN: Rewards, present_RGN: Bool[Array, "R G N"]) -> PerGroup:
    """r², averaged over branches: keeps rewards centered."""
    return _branch_mean(jnp.square(rewards_RGN.astype(jnp.float32)), present_RGN)


def centering(rewards_RGN: Rewards, present_RGN: Bool[Array, "R G N"]) -> PerGroup:
    """(2 · the mean reward of the group)²: with two branches the (r_i + r_j)² of TRL's `center_rewards_coefficient`.

    Source: Eisenstein et al. 2023 (arXiv 2312.09244), section 3.
    """
    return jnp.square(2 * _branch_mean(rewards_RGN.astype(jnp.float32), present_RGN))


def _branch_mean(values_RGN: Array, present_RGN: Array) -> PerGroup:
    return jnp.sum(jnp.where(present_RGN, values_RGN, 0.0), axis=-1) / jnp.maximum(jnp.sum(present_RGN, axis=-1), 1)


PENALTIES = {"log_barrier": log_barrier, "squared": squared, "centering": centering}
