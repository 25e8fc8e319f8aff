"""Objectives: (parameters, forest, rng) → named terms, each a (sum, count). `loss` is the one that is minimized."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.losses import difference, ranking
from rmjax.losses.language_model import next_token
from rmjax.losses.reduction import Term, total
from rmjax.models.forest import Forest, unshared_tokens
from rmjax.models.reward import RewardTransformer

Terms = dict[str, Term]
Objective = Callable[[Any, Forest, jax.Array], Terms]


def preference(
    model: RewardTransformer,
    loss: str = "bradley_terry",
    *,
    label_smoothing: float = 0.0,
    penalty: str = "",
    penalty_weight: float = 0.0,
) -> Objective:
    """Ranks the branches of each group: Bradley–Terry, POLAR (eq. 7 and 8), listwise. `loss` and `penalty` name functions of
    `losses.ranking`; an unknown name is a ValueError that lists the known ones."""
    ranking_loss = _named(ranking.LOSSES, "loss", loss)
    if label_smoothing and loss != "bradley_terry":
        raise ValueError(f"label_smoothing is {label_smoothing}, but only the loss bradley_terry has it, not {loss}")
    extra = {"label_smoothing": label_smoothing} if label_smoothing else {}
    penalize = _named(ranking.PENALTIES, "penalty", penalty) if penalty else None

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        rewards_RGN: Any = model.apply({"params": params}, forest, rngs={"dropout": rng})
        order_RGNN = ranking.order(forest.ranks_RGN)
        loss_RG = ranking_loss(rewards_RGN, order_RGNN, forest.margin_RG, **extra)
        ranked_RG = jnp.any(order_RGNN, axis=(-1, -2))
        terms = reward_terms(rewards_RGN, order_RGNN, forest)
        preference_loss = total(loss_RG, ranked_RG * forest.weight_RG)
        terms["loss"] = preference_loss
        if penalize is not None:
            penalty_RG = penalize(rewards_RGN, forest.readout_RGN >= 0)
            terms["penalty"] = total(penalty_RG, ranked_RG * forest.weight_RG)
            terms["loss"] = (preference_loss[0] + penalty_weight * terms["penalty"][0], preference_loss[1])
        return terms

    return objective


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


def discrimination(model: RewardTransformer) -> Objective:
    """MetaRM's J (`losses.difference`) over the groups with at least two branches; its `loss` is to be maximized.

    `lower` and `upper` are J's bounds, `rescaled` is J between them, `gap` the mean |Δr| of two answers to one prompt, and
    `tied` the share of groups whose answers all have the same reward: they have no gradient.
    """

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        rewards_RGN: Any = model.apply({"params": params}, forest, rngs={"dropout": rng})
        present_RGN = forest.readout_RGN >= 0
        counted_RG = difference.several(present_RGN)
        value_RG = difference.difference(rewards_RGN, present_RGN)
        lower_RG, upper_RG = difference.bounds(present_RGN)
        gaps_RGNN, pairs_RGNN = difference.gaps(rewards_RGN), difference.pairs(present_RGN)
        tied_RG = ~jnp.any((gaps_RGNN > 0) & pairs_RGNN, axis=(-1, -2))
        return {
            "loss": total(value_RG, counted_RG),
            "lower": total(lower_RG, counted_RG),
            "upper": total(upper_RG, counted_RG),
            "rescaled": total(difference.rescaled(value_RG, present_RGN), counted_RG),
            "gap": total(gaps_RGNN, pairs_RGNN),
            "tied": total(tied_RG, counted_RG),
            **batch_terms(forest),
        }

    return objective


def language_model(model: RewardTransformer) -> Objective:
    """Next-token loss on the tokens with a target weight; the reward head takes no part."""

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        logits_RTV: Any = model.apply({"params": params}, forest, rngs={"dropout": rng}, method="logits")
        loss = total(next_token(logits_RTV, forest.target_RT), forest.target_weight_RT)
        return {"loss": loss, **batch_terms(forest)}

    return objective


def _named(table: dict[str, Any], kind: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{kind} {name!r} is unknown; choose one of {', '.join(sorted(table))}")
    return table[name]
