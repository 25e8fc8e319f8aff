"""Preference learning: Bradley–Terry (1952) and its kin on ranked answers; POLAR's equations 7 and 8 are this objective."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.data import votes
from rmjax.data.sources import Records, comparisons
from rmjax.losses import ranking
from rmjax.losses.reduction import total
from rmjax.methods.method import Method
from rmjax.models.forest import Forest
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms, reward_terms


@dataclasses.dataclass(frozen=True)
class Loss:
    """`config.loss`."""

    name: str = choice("bradley_terry", *ranking.LOSSES)  # what a group's rewards are ranked by
    label_smoothing: float = number(0.0, low=0, below=0.5)  # fraction of flipped labels assumed (bradley_terry only)
    order: str = choice(
        "ranks", *votes.ORDERS
    )  # votes: the fraction of voters is a soft label | targets: `pair_target`
    strength: str = choice("none", *votes.STRENGTHS)  # votes: what the strength of a pair's preference becomes
    strength_measure: str = choice("fraction", *votes.MEASURES)  # fraction: 2p − 1 | values: mean difference of votes
    strength_scale: float = number(1.0, low=0)  # factor of the strength: of a margin in units of reward, or of a weight
    without_votes: str = choice("refuse", *votes.WITHOUT_VOTES)  # records without votes; their ranks count as unanimous
    penalty: str = choice("", "", *ranking.PENALTIES)  # on the rewards themselves; none when empty
    penalty_weight: float = number(0.01, low=0)  # factor of the penalty


def preference(
    model: Any,
    loss: str = "bradley_terry",
    *,
    label_smoothing: float = 0.0,
    penalty: str = "",
    penalty_weight: float = 0.0,
) -> Objective:
    """Ranks the branches of each group: Bradley–Terry, POLAR (eq. 7 and 8), listwise. `loss` and `penalty` name functions of
    `losses.ranking`."""
    ranking_loss = ranking.LOSSES[loss]
    extra: dict[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    penalize = ranking.PENALTIES[penalty] if penalty else None

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        rewards_RGN: Any = model.apply({"params": params}, forest, rngs={"dropout": rng})
        labels = ranking.labels(forest.columns)
        loss_RG = ranking_loss(rewards_RGN, labels.pairs_RGNN, labels.margin, **labels.soft, **extra)
        ranked_RG = jnp.any(labels.pairs_RGNN, axis=(-1, -2))
        terms = reward_terms(rewards_RGN, labels.order_RGNN, forest)
        preference_loss = total(loss_RG, ranked_RG * labels.weight_RG)
        terms["loss"] = preference_loss
        if penalize is not None:
            penalty_RG = penalize(rewards_RGN, forest.readout_RGN >= 0)
            terms["penalty"] = total(penalty_RG, ranked_RG * labels.weight_RG)
            terms["loss"] = (preference_loss[0] + penalty_weight * terms["penalty"][0], preference_loss[1])
        return terms

    return objective


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    loss: Loss = config.sections["loss"]
    if loss.label_smoothing and loss.name != "bradley_terry":
        raise ValueError(
            f"config.loss.label_smoothing is {loss.label_smoothing}, but only the loss bradley_terry has it, not {loss.name}; "
            "make it 0"
        )
    _order(config)


def _objective(config: Config, model: Any) -> Objective:
    return preference(model, **_arguments(config.sections["loss"]))


def _arguments(loss: Loss) -> dict[str, Any]:
    return {
        "loss": loss.name, "label_smoothing": loss.label_smoothing, "penalty": loss.penalty,
        "penalty_weight": loss.penalty_weight,
    }  # fmt: skip


def _order(config: Config) -> votes.Order:
    return votes.Order.of(config.sections["loss"])


def _ranked(config: Config) -> Records:
    return comparisons(config.data, _order(config))


METHOD = Method(
    "preference",
    sections={"loss": Loss},
    active=lambda config: config.objective == "preference",
    check=_check,
    columns=lambda config: _order(config).columns,
    kinds={"comparisons": _ranked},
    data=("pool", "comparisons"),
    objective=_objective,
)
