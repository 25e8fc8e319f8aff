"""Reward-model ensembles: k heads, or k adapters, on one backbone, trained together by vmap.

Source: Coste et al. 2023 (arXiv 2310.02743) for mean and worst case; Lakshminarayanan et al. 2017 for ensembles that differ by
their start. Members start from different draws and may see different records, else they would stay equal for ever.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import Source
from rmjax.data.selection import Selecting
from rmjax.data.votes import Order
from rmjax.evaluate.scorers import OfMembers
from rmjax.losses.reduction import total
from rmjax.methods.method import Build, Method, Rewards, Wrapped
from rmjax.models.forest import Forest
from rmjax.models.lora import ADAPTER_PATH
from rmjax.models.parameters import flat, merge, nested
from rmjax.models.reward import READOUT
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms

LOADED_NOISE = 0.1
"""Standard deviation of what members differ by from a loaded head, as a fraction of its own."""
SCORES = ("mean", "minimum", "disagreement")


@dataclasses.dataclass(frozen=True)
class Section:
    """`config.ensemble`."""

    members: int = number(1, low=1)  # k; 1 = no ensemble
    over: str = choice("head", "head", "adapter")  # what each member has of its own: a head | an adapter and a head
    init_scale: float = number(1.0, above=0)  # heads start as N(0, (init_scale / √width)²)
    seen: float = number(
        1.0, above=0, high=1
    )  # fraction of the records that each member learns from, drawn once for all
    oversample: int = number(
        1, low=1
    )  # batches drawn for each; groups on which the members disagree most are trained on
    score: str = choice(
        "mean", *SCORES
    )  # of a candidate: over the members' rewards; but for the mean, each less its record's mean


def member_pattern(over: str) -> str:
    """Of the paths whose leaves have a leading axis of members."""
    return "^head/" if over == "head" else rf"^head/|{ADAPTER_PATH}"


class Ensemble:
    """A model whose members share all but the leaves that match a pattern; those have the members as their first axis."""

    def __init__(self, model: Any, members: int, pattern: str, init_scale: float):
        self.bare, self.config = model, getattr(model, "config", None)
        self.members, self.pattern, self.init_scale = members, pattern, init_scale

    def init(self, key: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Linen's `init`; the members' leaves are drawn apart."""
        drawn = [
            flat(self.bare.init(jax.random.fold_in(key, k), *args, **kwargs)["params"]) for k in range(self.members)
        ]
        first = flat(self.bare.init(key, *args, **kwargs)["params"])
        own = {
            path: self._stacked(path, [leaves[path] for leaves in drawn], key) for path in first if self._is_own(path)
        }
        return {"params": nested(first | own)}

    def _is_own(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None

    def _stacked(self, path: str, leaves: list[Any], key: Any) -> Any:
        boxed = leaves[0]
        values = jnp.stack([nn.meta.unbox(leaf) for leaf in leaves])
        if path.startswith("head/"):  # the bare head starts at zero, and equal members would stay equal
            noise = jax.random.normal(jax.random.fold_in(key, self.members), values.shape, values.dtype)
            values = noise * (self.init_scale * values.shape[-2] ** -0.5)
        return boxed.replace(value=values, names=(None, *boxed.names)) if isinstance(boxed, nn.Partitioned) else values

    def axes(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Which leaves `jax.vmap` maps over: 0 or None."""
        return nested({path: 0 if self._is_own(path) else None for path in flat(params)})

    def rewards(self, params: Any, forest: Forest) -> Float[Array, "R G N K"]:
        """Every member's rewards. Members differ by a constant that means nothing (`centered`)."""
        each = jax.vmap(lambda p: self.bare.apply({"params": p}, forest), in_axes=(self.axes(params),), out_axes=-1)
        return each(params)

    def apply(self, variables: Mapping[str, Any], forest: Forest, **kwargs: Any) -> Any:
        """As Linen's `apply`, of the mean reward."""
        del kwargs
        return jnp.mean(self.rewards(variables["params"], forest), axis=-1)


def combined(rewards_NK: np.ndarray, score: str) -> np.ndarray:
    """One number for each of a record's N candidates, from the rewards of K members: their mean; the minimum, or the standard
    deviation (disagreement), of their rewards less each member's mean over the candidates.

    Raises:
      ValueError: the minimum of a single candidate, which has nothing that members' constants could be measured against.
    """
    if score == "mean":
        return rewards_NK.mean(axis=1)
    if score == "minimum" and len(rewards_NK) == 1:
        raise ValueError("an ensemble's minimum compares the candidates of a prompt; give two or more of each prompt")
    apart = rewards_NK - rewards_NK.mean(axis=0)
    return apart.std(axis=1) if score == "disagreement" else apart.min(axis=1)


def centered(rewards_KRGN: Float[Array, "K R G N"], present_RGN: Array) -> Float[Array, "K R G N"]:
    """Rewards less their group's mean; 0 where a branch is absent."""
    count_RG1 = jnp.maximum(jnp.sum(present_RGN, axis=-1, keepdims=True), 1)
    mean_KRG1 = jnp.sum(jnp.where(present_RGN, rewards_KRGN, 0.0), axis=-1, keepdims=True) / count_RG1
    return jnp.where(present_RGN, rewards_KRGN - mean_KRG1, 0.0)


def spread(rewards_KRGN: Any, present_RGN: Any) -> Float[Array, "R G N"]:
    """The members' disagreement on each candidate of a group: the standard deviation of their centered rewards."""
    return jnp.std(centered(rewards_KRGN, present_RGN), axis=0)


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

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        def of_member(own: Any, k: jax.Array) -> tuple[Terms, Any]:
            kept_RG = _kept(forest.record_RG, k, seen)
            kept = forest.replace(weight_RG=forest.weight_RG * kept_RG)
            terms = one(own, kept, jax.random.fold_in(rng, k))
            return terms, heard.rewards

        each, rewards_KRGN = jax.vmap(of_member, in_axes=(ensemble.axes(params), 0))(
            params, jnp.arange(ensemble.members)
        )
        present_RGN = forest.readout_RGN >= 0
        spread_RGN = spread(jax.lax.stop_gradient(rewards_KRGN), present_RGN)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each) | {"disagreement": total(spread_RGN, present_RGN)}

    return objective


def _kept(record_RG: Array, member: jax.Array, seen: float) -> Float[Array, "R G"]:
    if seen == 1:
        return jnp.ones(record_RG.shape, jnp.float32)
    key = jax.random.fold_in(jax.random.key(0), member)
    draws = jax.vmap(jax.vmap(lambda record: jax.random.uniform(jax.random.fold_in(key, record))))(record_RG)
    return (draws < seen).astype(jnp.float32)


# --- from a config -----------------------------------------------------------------------------------------------------


def _section(config: Config) -> Section:
    found: Section = config.sections["ensemble"]
    return found


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
    if _section(config).over == "adapter" and not config.sections["adapter"].kind:
        raise ValueError("config.ensemble.over is 'adapter', but config.adapter.kind is empty; set it to lora")


def _loaded(config: Config, params: Any) -> Any:
    """What a loaded model has once and members have each, repeated for them, with noise that tells them apart."""
    head: Any = next((leaf for path, leaf in flat(params).items() if re.search(READOUT, path)), None)
    if np.ndim(head) == 3:  # of an ensemble already
        return params
    if head is None or not np.any(np.asarray(head)):  # a language model's: members draw their own
        params = {name: part for name, part in params.items() if name != "head"}
    own, members, random = (
        member_pattern(_section(config).over),
        _section(config).members,
        np.random.default_rng(config.run.seed),
    )

    def repeated(leaf: Any) -> np.ndarray:
        leaf = np.asarray(jax.device_get(leaf))
        noise = random.standard_normal((members, *leaf.shape)) * (LOADED_NOISE * leaf.std())
        return (leaf + noise).astype(leaf.dtype)

    return nested({path: repeated(x) if re.search(own, path) else x for path, x in flat(params).items()})


def _model(config: Config, model: Any) -> Ensemble:
    section = _section(config)
    return Ensemble(model, section.members, member_pattern(section.over), section.init_scale)


def _around(config: Config, build: Build, model: Any) -> Objective:
    return together(build, model, _section(config).seen)


def _wrap(ensemble: Ensemble, score: str) -> Wrapped:
    def by(name: str) -> Rewards:
        return OfMembers(ensemble.rewards, functools.partial(combined, score=name))

    return Wrapped(ensemble, by(score), {"disagreement": by("disagreement")})


def _wrapped(saved: Mapping[str, Any], model: Any) -> Wrapped:
    return _wrap(Ensemble(model, saved["members"], member_pattern(saved["over"]), 1.0), saved["score"])


def _around_source(config: Config, source: Source, measure: Callable[[str], Rewards]) -> Source:
    """Uncertainty sampling (Lewis and Gale 1994) by the members' disagreement on a group, a mean over its candidates."""
    if _section(config).oversample == 1:
        return source
    disagreement, data = measure("disagreement"), config.data

    def value(state: Any, forest: Forest) -> np.ndarray:
        rewards_RGNK = np.asarray(disagreement(merge(state.trainable, state.frozen), forest))
        present_RGN = np.asarray(forest.readout_RGN) >= 0
        spread_RGN = np.asarray(spread(np.moveaxis(rewards_RGNK, -1, 0), present_RGN))
        return np.sum(spread_RGN * present_RGN, axis=-1) / np.maximum(np.sum(present_RGN, axis=-1), 1)

    shape = ForestShape(
        data.rows, data.row_tokens, data.groups, data.candidates, Order.of(config.sections["loss"]).columns
    )
    return Selecting(source, shape, value, _section(config).oversample)


METHOD = Method(
    "ensemble",
    sections={"ensemble": Section},
    active=lambda config: _section(config).members > 1,
    check=_check,
    loaded=_loaded,
    model=_model,
    may_miss=lambda config: "^head/",
    around_objective=_around,
    around_source=_around_source,
    rewards=lambda config, model: _wrap(model, _section(config).score).rewards,
    measures=lambda config, model: _wrap(model, _section(config).score).measures,
    saved=lambda config: {
        "members": _section(config).members,
        "over": _section(config).over,
        "score": _section(config).score,
    },
    wrapped=_wrapped,
    example={"ensemble.members": 3, "ensemble.oversample": 2},
)
