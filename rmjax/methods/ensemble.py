"""Reward-model ensembles: k heads, or k adapters, on one backbone, trained together by vmap.

Source: Coste et al. 2023 (arXiv 2310.02743) for mean and worst case; Lakshminarayanan et al. 2017 for ensembles that differ by
their start. Members start from different draws and may see different records, else they would stay equal for ever.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import Source
from rmjax.data.selection import Selecting
from rmjax.data.votes import Order
from rmjax.evaluate.scorers import OfMembers
from rmjax.losses.reduction import total
from rmjax.methods.method import MAIN, Build, Method, Rewards, SideStream, Wrapped
from rmjax.models.forest import Forest
from rmjax.models.members import Ensemble, combined, learned, member_pattern, repeated, spread
from rmjax.models.parameters import merge
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms

SCORES = ("mean", "minimum", "disagreement")


@dataclasses.dataclass(frozen=True)
class Section:
    """`config.ensemble`."""

    members: int = number(1, low=1)  # k; 1 = no ensemble
    over: str = choice(
        "head", "head", "adapter", "trainable"
    )  # what each member has of its own: a head | an adapter and a head | all that config.trainable names
    init_scale: float = number(1.0, above=0)  # heads start as N(0, (init_scale / √width)²)
    order: str = choice(
        "same", "same", "own"
    )  # of the records: one batch for all | each its own, as vote models have it; what is frozen is then run for each
    seen: float = number(
        1.0, above=0, high=1
    )  # fraction of the records that each member learns from, drawn once for all
    oversample: int = number(
        1, low=1
    )  # batches drawn for each; groups on which the members disagree most are trained on
    score: str = choice(
        "mean", *SCORES
    )  # of a candidate: over the members' rewards; but for the mean, each less its record's mean


class _Heard:
    """A model that keeps the rewards of its last call."""

    def __init__(self, model: Any):
        self.model, self.config = model, model.config
        self.rewards: Any = None

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        out = self.model.apply(*args, **kwargs)
        self.rewards = out[0] if kwargs.get("mutable") else out
        return out


def together(build: Build, ensemble: Ensemble, seen: float) -> Objective:
    """The mean over members of the objective that `build` makes; `disagreement` is their rewards' standard deviation.

    Args:
      seen: fraction of the records that each member learns from; which, depends on record and member alone.
    """
    heard = _Heard(ensemble.bare)
    one = build(heard)

    def objective(params: Any, batch: Any, rng: jax.Array) -> Terms:
        def of_member(own: Any, k: jax.Array, forest: Forest) -> tuple[Terms, Any]:
            kept_RG = learned(forest.record_RG, k, seen)
            kept = forest.replace(weight_RG=forest.weight_RG * kept_RG)
            terms = one(own, kept, jax.random.fold_in(rng, k))
            return terms, heard.rewards

        alike = isinstance(batch, Forest)
        given = (
            batch
            if alike
            else jax.tree.map(lambda *x: jnp.stack(x), *(batch[n] for n in _streams_of(ensemble.members)))
        )
        run = jax.vmap(of_member, in_axes=(ensemble.axes(params), 0, None if alike else 0))
        each, rewards_KRGN = run(params, jnp.arange(ensemble.members), given)
        if not alike:  # rewards of different records have nothing to differ in
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
        present_RGN = batch.readout_RGN >= 0
        spread_RGN = spread(jax.lax.stop_gradient(rewards_KRGN), present_RGN)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each) | {"disagreement": total(spread_RGN, present_RGN)}

    return objective


def _streams_of(members: int) -> list[str]:
    """Names of the forests of a batch, one a member."""
    return [MAIN, *(f"member{k}" for k in range(1, members))]


# --- from a config -----------------------------------------------------------------------------------------------------


def _section(config: Config) -> Section:
    found: Section = config.sections["ensemble"]
    return found


def _pattern(config: Config) -> str:
    return member_pattern(_section(config).over, config.trainable)


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    if config.objective != "preference":
        raise ValueError(
            f"config.ensemble.members is {_section(config).members}, and objective={config.objective} trains no reward head; "
            "make it 1"
        )
    if _section(config).oversample > 1 and (jax.process_count() > 1 or config.sections["gradient"].name != "plain"):
        raise ValueError(
            f"config.ensemble.oversample is {_section(config).oversample}, which needs one process and gradient.name=plain; "
            "make it 1"
        )
    if _section(config).order == "own" and (
        _section(config).oversample > 1 or config.sections["gradient"].name != "plain"
    ):
        raise ValueError(
            "config.ensemble.order is 'own', which goes with ensemble.oversample=1 and gradient.name=plain only"
        )
    if _section(config).over == "adapter" and not config.sections["adapter"].kind:
        raise ValueError("config.ensemble.over is 'adapter', but config.adapter.kind is empty; set it to lora")


def _loaded(config: Config, params: Any) -> Any:
    section = _section(config)
    return repeated(params, _pattern(config), section.members, config.run.seed)


def _model(config: Config, model: Any) -> Ensemble:
    section = _section(config)
    return Ensemble(model, section.members, _pattern(config), section.init_scale)


def _around(config: Config, build: Build, model: Any) -> Objective:
    return together(build, model, _section(config).seen)


def _wrap(ensemble: Ensemble, score: str) -> Wrapped:
    def by(name: str) -> Rewards:
        return OfMembers(ensemble.rewards, functools.partial(combined, score=name))

    return Wrapped(ensemble, by(score), {"disagreement": by("disagreement")})


def _wrapped(saved: Mapping[str, Any], model: Any) -> Wrapped:
    pattern = member_pattern(saved["over"], saved.get("trainable", ""))
    return _wrap(Ensemble(model, saved["members"], pattern, 1.0), saved["score"])


def _shape(config: Config) -> ForestShape:
    data = config.data
    columns = Order.of(config.sections["loss"]).columns
    return ForestShape(data.rows, data.row_tokens, data.groups, data.candidates, columns)


def _side_shapes(config: Config) -> dict[str, ForestShape]:
    if _section(config).order == "same":
        return {}
    return dict.fromkeys(_streams_of(_section(config).members)[1:], _shape(config))


def _side_streams(config: Config) -> dict[str, SideStream]:
    """The main stream's records, in another order for each further member."""
    seeds = np.random.default_rng(config.run.seed).integers(2**31, size=_section(config).members).tolist()
    found = zip(_side_shapes(config).items(), seeds, strict=False)
    return {name: SideStream(None, shape, config.data.row_tokens, seed) for (name, shape), seed in found}


def _around_source(config: Config, source: Source, measure: Callable[[str], Rewards]) -> Source:
    """Uncertainty sampling (Lewis and Gale 1994) by the members' disagreement on a group, a mean over its candidates."""
    if _section(config).oversample == 1:
        return source
    disagreement = measure("disagreement")

    def value(state: Any, forest: Forest) -> np.ndarray:
        rewards_RGNK = np.asarray(disagreement(merge(state.trainable, state.frozen), forest))
        present_RGN = np.asarray(forest.readout_RGN) >= 0
        spread_RGN = np.asarray(spread(np.moveaxis(rewards_RGNK, -1, 0), present_RGN))
        return np.sum(spread_RGN * present_RGN, axis=-1) / np.maximum(np.sum(present_RGN, axis=-1), 1)

    return Selecting(source, _shape(config), value, _section(config).oversample)


METHOD = Method(
    "ensemble",
    sections={"ensemble": Section},
    active=lambda config: _section(config).members > 1,
    check=_check,
    loaded=_loaded,
    model=_model,
    may_miss=lambda config: "^head/",
    side_shapes=_side_shapes,
    side_streams=_side_streams,
    around_objective=_around,
    around_source=_around_source,
    rewards=lambda config, model: _wrap(model, _section(config).score).rewards,
    measures=lambda config, model: _wrap(model, _section(config).score).measures,
    saved=lambda config: (
        {
            "members": _section(config).members,
            "over": _section(config).over,
            "score": _section(config).score,
        }
        | ({"trainable": config.trainable} if _section(config).over == "trainable" else {})
    ),
    wrapped=_wrapped,
    example={"ensemble.members": 3, "ensemble.oversample": 2},
)
