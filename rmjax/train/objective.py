"""Objectives: (parameters, forest, rng) → named terms, each a (sum, count). `loss` is the one that is minimized."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.losses import ranking, ties
from rmjax.losses.reduction import Term, total
from rmjax.losses.regression import regression
from rmjax.models.forest import Forest, unshared_tokens

Terms = dict[str, Term]
Objective = Callable[[Any, Forest, jax.Array], Terms]
REGRESSION = "regression"
LOSSES = (*ranking.LOSSES, *ties.TIES, REGRESSION)
"""Names that `preference_terms` knows."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """An objective in its two halves, so that others may look at the rewards before they are trained on.

    Attributes:
      rewards: (parameters, forest, rng) → rewards_RGN.
      terms: (rewards_RGN, forest) → terms; the groups' weights are `forest.weight_RG`.
    """

    rewards: Callable[[Any, Forest, jax.Array], jax.Array]
    terms: Callable[[jax.Array, Forest], Terms]

    def __call__(self, params: Any, forest: Forest, rng: jax.Array) -> Terms:
        return self.terms(self.rewards(params, forest, rng), forest)


def preference_terms(
    name: str = "bradley_terry", *, label_smoothing: float = 0.0, tie: float = 0.5, regression_weight: float = 0.0,
    penalty: str = "", penalty_weight: float = 0.0,
) -> Callable[[jax.Array, Forest], Terms]:  # fmt: skip
    """(rewards_RGN, forest) → terms of a loss on the branches' order, scores or both, with a penalty on the rewards.

    Args:
      name: of `LOSSES`.
      label_smoothing: α, for every loss on an order.
      tie: ν of the losses with ties.
      regression_weight: factor of (r − s)² beside a loss on an order; the batch needs the column score_RGN.
      penalty: of `ranking.PENALTIES`, or none.
    """

    def terms(rewards_RGN: jax.Array, forest: Forest) -> Terms:
        labels = ranking.labels(forest.columns)
        loss_RG, used_RG = _loss(name, label_smoothing, tie, rewards_RGN, labels, forest)
        found = reward_terms(rewards_RGN, labels.order_RGNN, forest)
        summed, count = total(loss_RG, used_RG * labels.weight_RG)
        if regression_weight:
            found[REGRESSION] = total(regression(rewards_RGN, forest.score_RGN), used_RG * labels.weight_RG)
            summed = summed + regression_weight * found[REGRESSION][0]
        if penalty:
            penalty_RG = ranking.PENALTIES[penalty](rewards_RGN, forest.readout_RGN >= 0)
            found["penalty"] = total(penalty_RG, used_RG * labels.weight_RG)
            summed = summed + penalty_weight * found["penalty"][0]
        return found | {"loss": (summed, count)}

    return terms


def terms_of(loss: Any) -> Callable[[jax.Array, Forest], Terms]:
    """`preference_terms` of `config.loss`."""
    return preference_terms(
        loss.name, label_smoothing=loss.label_smoothing, tie=loss.tie, regression_weight=loss.regression_weight,
        penalty=loss.penalty, penalty_weight=loss.penalty_weight,
    )  # fmt: skip


def check_loss(loss: Any) -> None:
    """ValueError for values of `config.loss` that contradict each other."""
    for field in ("label_smoothing", "regression_weight") if loss.name == REGRESSION else ():
        if getattr(loss, field):
            raise ValueError(
                f"config.loss.{field} is {getattr(loss, field)}, but loss.name is regression, which reads no order; make it 0"
            )


def _loss(
    name: str, label_smoothing: float, tie: float, rewards_RGN: jax.Array, labels: ranking.Labels, forest: Forest
) -> tuple[jax.Array, jax.Array]:
    """(loss_RG, whether a group has one)."""
    if name == REGRESSION:
        return regression(rewards_RGN, forest.score_RGN), jnp.any(jnp.isfinite(forest.score_RGN), axis=-1)
    used_RGNN = labels.pairs_RGNN
    loss: Callable[..., jax.Array] = (ranking.LOSSES | ties.TIES)[name]
    if name in ties.TIES:
        tied_RGNN = ties.tied(forest.columns)
        used_RGNN = used_RGNN | tied_RGNN
        loss = functools.partial(loss, ties_RGNN=tied_RGNN, tie=tie)
    if name == "bradley_terry" and label_smoothing:  # its own form, which has no array of targets
        loss = functools.partial(loss, label_smoothing=label_smoothing)
    else:
        labels = ranking.smoothed(labels, label_smoothing)
    loss_RG = loss(rewards_RGN, labels.pairs_RGNN, labels.margin, **labels.soft)
    return loss_RG, jnp.any(used_RGNN, axis=(-1, -2))


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
