"""Collaborative reward modeling: two models review each other's data, so that mislabeled pairs are left out.

    losses of both models on a batch → each keeps the pairs of smallest loss → the other one learns from these

Source: CRM, Two Minds Better Than One (arXiv 2505.10597). Its full text was not at hand: peer review by small loss and the
curriculum by margin are the paper's, the rest (exchange, ramp, estimate) is said in docs/methods/crm.md to be a reconstruction.

The two models share all that is frozen and are run together (`models.members`). With `objective=dpo` they are two policies
with one reference: CRM-DPO.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data.curriculum import Curriculum, Schedule
from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import Source
from rmjax.data.votes import Order
from rmjax.evaluate.scorers import OfMembers
from rmjax.losses import ranking, ties
from rmjax.losses.review import REVIEWS, diagnostics, flipped_fraction, selections
from rmjax.methods import dpo
from rmjax.methods.method import Build, Method, Rewards, Wrapped
from rmjax.models.forest import Forest
from rmjax.models.members import Ensemble, combined, member_pattern, repeated
from rmjax.models.parameters import flat, merge, nested
from rmjax.roles import ONE, Roles
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import Objective, Ranked, Terms

MODELS = 2
SCORES = ("mean", "first", "second", "minimum")
COLUMNS = ("discard_RG", "flipped_RG")
OfParams = Callable[[Any, Forest], jax.Array]


@dataclasses.dataclass(frozen=True)
class Section:
    """`config.crm`."""

    review: str = choice(
        "", "", *REVIEWS
    )  # who selects a model's pairs: peer, self, random | none: two models of all pairs | empty: one model
    noise: float = number(0.2, low=0, high=0.5)  # fraction of labels assumed to be flipped, and so discarded of a batch
    estimate: bool = False  # True: the fraction is what the margins of a window look like; `noise` until the first one
    ramp: int = number(0, low=0)  # steps in which the discarded fraction grows from 0 to all of it
    window: int = number(1, low=1)  # batches drawn, scored and given in order, easy pairs first; 1 = no curriculum
    start: int = number(
        0, low=0
    )  # steps before the first window is sorted and estimated from: margins mean nothing yet
    apart: float = number(
        0.0, low=0
    )  # what the second model starts with beside its own head: noise, as a fraction of each trained leaf's deviation
    score: str = choice("mean", *SCORES)  # of a candidate: both models' mean, one of them, or the worse


def collaborative(build: Build, pair: Ensemble, review: str, roles: Roles = ONE) -> Objective:
    """The objective that `build` makes, for both models, each on the groups that the review selects for it.

    The loss is the mean of the two models' mean losses. Groups are selected by their Bradley–Terry loss without smoothing and
    margin, so of a pair by the difference of its rewards; a group of several pairs is kept or left as a whole.

    Raises:
      ValueError: an objective that shows no rewards.
    """
    one = build(pair.bare)
    if not isinstance(one, Ranked):
        raise ValueError(
            "config.crm.review needs rewards to review by; set adapter.beta to 0, and objective to preference or dpo"
        )

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        params, axes = _both(params, pair, roles)
        each = jax.vmap(lambda own, k: one.rewards(own, forest, jax.random.fold_in(rng, k)), in_axes=(axes, 0))
        rewards_KRGN = each(params, jnp.arange(MODELS))
        usable_RG, losses_KRG = _reviewed(rewards_KRGN, forest)
        discard = jnp.max(forest.discard_RG)
        kept_KRG = selections(losses_KRG, usable_RG, discard, review, jax.random.fold_in(rng, MODELS))
        terms = jax.vmap(lambda r, kept: one.terms(r, forest.replace(weight_RG=forest.weight_RG * kept)))
        found = terms(rewards_KRGN, kept_KRG)
        sums, counts = found["loss"]
        loss = jnp.mean(sums / jnp.where(counts > 0, counts, 1.0))
        together = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        noise = {"discard": (discard, jnp.float32(1.0))}
        return (
            together | diagnostics(kept_KRG, usable_RG, forest.flipped_RG) | noise | {"loss": (loss, jnp.float32(1.0))}
        )

    return objective


def _reviewed(rewards_KRGN: jax.Array, forest: Forest) -> tuple[jax.Array, jax.Array]:
    """(groups that can be learned from, each model's loss on them)."""
    labels = ranking.labels(forest.columns)
    usable_RG = jnp.any(labels.pairs_RGNN, axis=(-1, -2)) & (labels.weight_RG > 0)
    no_margin = jnp.zeros_like(forest.weight_RG)

    def loss(rewards_RGN: jax.Array) -> jax.Array:
        return ranking.bradley_terry(rewards_RGN, labels.pairs_RGNN, no_margin, 0.0, **labels.soft)

    return usable_RG, jax.vmap(loss)(jax.lax.stop_gradient(rewards_KRGN))


def _both(params: Any, pair: Ensemble, roles: Roles) -> tuple[Any, Any]:
    """Parameters and which of their leaves `jax.vmap` maps over; the reference is the first model's start, for both."""
    if not roles.others:
        return params, pair.axes(params)
    others = {
        name: nested({path: leaf[0] if pair.is_own(path) else leaf for path, leaf in flat(params[name]).items()})
        for name in roles.others
    }
    axes = {name: jax.tree.map(lambda _: None, other) for name, other in others.items()}
    return {roles.main: params[roles.main], **others}, {roles.main: pair.axes(params[roles.main]), **axes}


def member_rewards(pair: Ensemble, of_one: OfParams, roles: Roles = ONE) -> Rewards:
    """(parameters, forest) → [R, G, N, K]."""

    def rewards(params: Any, forest: Forest) -> jax.Array:
        params, axes = _both(params, pair, roles)
        return jax.vmap(lambda own: of_one(own, forest), in_axes=(axes,), out_axes=-1)(params)

    return rewards


def scored(rewards_NK: np.ndarray, score: str) -> np.ndarray:
    """One number for each of a record's N candidates, of both models' rewards."""
    if score in ("first", "second"):
        return rewards_NK[:, SCORES.index(score) - 1]
    return combined(rewards_NK, score)


# --- from a config -----------------------------------------------------------------------------------------------------


def _section(config: Config) -> Section:
    found: Section = config.sections["crm"]
    return found


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    section = _section(config)
    if config.objective not in ("preference", "dpo"):
        raise ValueError(
            f"config.crm.review is {section.review!r}, and objective={config.objective} ranks no answers; use preference or dpo"
        )
    if (name := config.sections["loss"].name) in (*ties.TIES, "regression"):
        raise ValueError(
            f"config.loss.name is {name!r}, and crm.review compares ordered pairs only; use bradley_terry, focal, listwise or "
            "k_way"
        )
    if config.objective == "dpo" and not section.apart:
        raise ValueError(
            "config.crm.apart is 0, and two policies that start equal stay equal; set it above 0, to 0.01 say"
        )
    if config.sections["ensemble"].members > 1 or config.sections["gradient"].name != "plain":
        raise ValueError(
            f"config.crm.review is {section.review!r}, which goes with ensemble.members=1 and gradient.name=plain only; change "
            "one of them"
        )
    if section.estimate and section.window == 1:
        raise ValueError("config.crm.estimate needs the margins of a window; set config.crm.window to 8 or more")
    if section.window > 1 and jax.process_count() > 1:
        raise ValueError(f"config.crm.window is {section.window}, which needs one process; make it 1")


def _pattern(config: Config) -> str:
    over = "adapter" if config.sections["adapter"].kind else "trainable"
    return member_pattern(over, config.trainable)


def _roles(config: Config) -> Roles:
    return dpo.ROLES if config.objective == "dpo" else ONE


def _model(config: Config, model: Any) -> Ensemble:
    return Ensemble(model, MODELS, _pattern(config), 1.0)


def _loaded(config: Config, params: Any) -> Any:
    return repeated(params, _pattern(config), MODELS, config.run.seed, _section(config).apart)


def _around(config: Config, build: Build, model: Any) -> Objective:
    return collaborative(build, model, _section(config).review, _roles(config))


def _facts(config: Config) -> dict[str, Any]:
    """What scoring needs of a config; also what is saved."""
    facts = {"trainable": _pattern(config), "score": _section(config).score}
    return facts | ({"beta": config.sections["dpo"].beta} if config.objective == "dpo" else {})


def _wrap(facts: Mapping[str, Any], pair: Ensemble) -> Wrapped:
    def of_head(params: Any, forest: Forest) -> jax.Array:
        found: jax.Array = pair.bare.apply({"params": params}, forest)
        return found

    policies = "beta" in facts
    of_one = dpo.implicit_rewards(pair.bare, facts["beta"]) if policies else of_head
    rewards = member_rewards(pair, of_one, dpo.ROLES if policies else ONE)
    apart = OfMembers(rewards, functools.partial(combined, score="disagreement"))
    return Wrapped(pair, OfMembers(rewards, functools.partial(scored, score=facts["score"])), {"disagreement": apart})


def _wrapped(saved: Mapping[str, Any], model: Any) -> Wrapped:
    return _wrap(saved, Ensemble(model, MODELS, saved["trainable"], 1.0))


def _around_source(config: Config, source: Source, measure: Callable[[str], Rewards]) -> Source:
    section, data, both = _section(config), config.data, measure("disagreement")

    def margins(state: Any, forest: Forest) -> np.ndarray:
        rewards_RGN = jnp.mean(both(merge(state.trainable, state.frozen), forest), axis=-1)
        labels = ranking.labels(jax.tree.map(jnp.asarray, forest).columns)
        gaps_RGNN = ranking.differences(rewards_RGN, jnp.zeros_like(labels.weight_RG))
        return np.asarray(ranking.average(gaps_RGNN, labels.pairs_RGNN))

    columns = (*Order.of(config.sections["loss"]).columns, *COLUMNS)
    shape = ForestShape(data.rows, data.row_tokens, data.groups, data.candidates, columns)
    schedule = Schedule(section.noise, section.ramp, section.window, section.start)
    return Curriculum(source, shape, margins, schedule, flipped_fraction if section.estimate else None)


METHOD = Method(
    "crm",
    sections={"crm": Section},
    active=lambda config: bool(_section(config).review),
    check=_check,
    columns=lambda config: COLUMNS,
    loaded=_loaded,
    model=_model,
    may_miss=lambda config: "^head/",
    around_objective=_around,
    around_source=_around_source,
    rewards=lambda config, model: _wrap(_facts(config), model).rewards,
    measures=lambda config, model: _wrap(_facts(config), model).measures,
    saved=_facts,
    wrapped=_wrapped,
    in_parts=lambda config: "other",
    example={"crm.review": "peer", "crm.noise": 0.3, "crm.window": 2, "crm.ramp": 2},
)
