"""Preference learning: Bradley–Terry (1952) and its kin on ranked answers; POLAR's equations 7 and 8 are this objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rmjax.data import strength, votes
from rmjax.data.sources import Records, comparisons
from rmjax.losses import ranking
from rmjax.methods.method import Method
from rmjax.models.forest import Forest
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import LOSSES, Objective, Ranked, check_loss, preference_terms, terms_of


@dataclasses.dataclass(frozen=True)
class Loss:
    """`config.loss`."""

    name: str = choice("bradley_terry", *LOSSES)  # what a group's rewards are ranked by; regression: fitted to `scores`
    label_smoothing: float = number(0.0, low=0, below=0.5)  # fraction of flipped labels assumed (not of regression)
    tie: float = number(0.5, above=0)  # rao_kupper: the log of its θ, in units of reward | davidson: its ν
    regression_weight: float = number(0.0, low=0)  # factor of (reward − score)² beside a loss on the order
    order: str = choice(
        "ranks", *votes.ORDERS
    )  # votes: the fraction of voters is a soft label | targets: `pair_target` | strength: `config.strength`
    strength: str = choice("none", *votes.STRENGTHS)  # votes: what the strength of a pair's preference becomes
    strength_measure: str = choice("fraction", *votes.MEASURES)  # fraction: 2p − 1 | values: mean difference of votes
    strength_scale: float = number(1.0, low=0)  # factor of the strength: of a margin in units of reward, or of a weight
    without_votes: str = choice("refuse", *votes.WITHOUT_VOTES)  # records without votes; their ranks count as unanimous
    penalty: str = choice("", "", *ranking.PENALTIES)  # on the rewards themselves; none when empty
    penalty_weight: float = number(0.01, low=0)  # factor of the penalty


@dataclasses.dataclass(frozen=True)
class StrengthSection:
    """`config.strength`: what vote models' strengths of the records are used for, with loss.order=strength."""

    of: str = choice(
        strength.IN_SAMPLE, *strength.KINDS
    )  # of models that learned from a record | of those that did not
    below: float = number(0.0, low=0)  # a record or pair is suspect below this strength, in units of reward
    flip: float = number(0.0, low=0, high=1)  # so many of the records, the weakest suspects, are turned round
    filter: float = number(0.0, low=0, high=1)  # so many are left out
    smooth: float = number(
        0.0, low=0, below=0.5
    )  # suspect pairs that are not flipped: probability that the label is wrong
    soft: str = choice("none", *strength.SOFT)  # all targets: the models' votes | the sigmoid of the strength
    margin: float = number(0.0, low=0)  # factor of the strength, which makes it a margin
    margin_limit: float = number(0.0, low=0)  # largest margin, in units of reward; 0 = none


def preference(model: Any, loss: str = "bradley_terry", **options: Any) -> Ranked:
    """Ranks the branches of each group: Bradley–Terry, POLAR (eq. 7 and 8), listwise; arguments as `preference_terms`."""
    return Ranked(_rewards(model), preference_terms(loss, **options))


def _rewards(model: Any) -> Callable[[Any, Forest, jax.Array], jax.Array]:
    def rewards(params: Any, forest: Forest, rng: jax.Array) -> jax.Array:
        found: jax.Array = model.apply({"params": params}, forest, rngs={"dropout": rng})
        return found

    return rewards


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    check_loss(config.sections["loss"])
    _order(config)
    if config.sections["loss"].order == "strength":
        strength.check(_rules(config))


def _objective(config: Config, model: Any) -> Objective:
    return Ranked(_rewards(model), terms_of(config.sections["loss"]))


def _order(config: Config) -> votes.Order:
    return votes.Order.of(config.sections["loss"])


def _rules(config: Config) -> strength.Rules:
    return strength.Rules(**dataclasses.asdict(config.sections["strength"]))


def _ranked(config: Config) -> Records:
    order = _order(config)
    rules = _rules(config) if order.kind == "strength" else None
    return comparisons(config.data, dataclasses.replace(order, rules=rules))


METHOD = Method(
    "preference",
    sections={"loss": Loss, "strength": StrengthSection},
    active=lambda config: config.objective == "preference",
    check=_check,
    columns=lambda config: _order(config).columns,
    kinds={"comparisons": _ranked},
    data=("pool", "comparisons"),
    objective=_objective,
)
