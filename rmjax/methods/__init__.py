"""The registry: which methods there are, and what those that a config asks for say together.

One file a method; nothing else in the library imports them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax
from jax.sharding import Mesh

from rmjax.data.formats import Encoder
from rmjax.data.packing import ForestShape, Tree
from rmjax.data.pipeline import Source
from rmjax.data.sources import Records
from rmjax.methods import adapters, crm, dpo, ensemble, language_model, metarm, polar, policy_gradient, preference
from rmjax.methods.method import MAIN, Method, Rewards, Scene, Setting, SideStream, Wrapped, own_rewards
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import Rules
from rmjax.roles import ONE, Roles
from rmjax.sections import listed
from rmjax.settings import Config
from rmjax.train import gradient
from rmjax.train.objective import Objective

__all__ = [
    "MAIN", "METHODS", "Chosen", "Method", "Rewards", "Scene", "SideStream", "choose", "named", "register", "sections",
]  # fmt: skip

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        preference.METHOD,
        polar.METHOD,
        language_model.METHOD,
        dpo.METHOD,
        policy_gradient.METHOD,
        adapters.METHOD,
        ensemble.METHOD,
        crm.METHOD,
        metarm.METHOD,
    )
}
"""Name → method. Where several wrap the same thing, a later one stands outside."""


def register(method: Method) -> None:
    """Adds a method: its sections appear in `config.get_config()`, and configs may ask for it.

    Raises:
      ValueError: its name or a section of it is taken.
    """
    taken = {name for known in METHODS.values() for name in known.sections} & set(method.sections)
    if method.name in METHODS or taken:
        raise ValueError(f"method {method.name!r}: its name or its sections {sorted(taken)} are taken; choose others")
    METHODS[method.name] = method


def sections() -> dict[str, type]:
    """Config section → its dataclass, of all methods."""
    return {name: kind for method in METHODS.values() for name, kind in method.sections.items()}


def objectives() -> dict[str, Method]:
    """Value of `config.objective` → the method."""
    return {name: method for name, method in METHODS.items() if method.objective}


def kinds() -> dict[str, Callable[[Config], Records]]:
    """Value of `config.data.kind` → what opens it."""
    return {kind: opener for method in METHODS.values() for kind, opener in method.kinds.items()}


def named(objective: str) -> Method:
    """The method of an objective. ValueError for one that there is not."""
    known = objectives()
    if objective not in known:
        raise ValueError(f"config.objective is {objective!r}; choose {listed(list(known))}")
    return known[objective]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What the methods that a config asks for say together."""

    config: Config
    main: Method
    others: tuple[Method, ...]

    @property
    def all(self) -> tuple[Method, ...]:
        """The objective's method, then the others in the registry's order."""
        return (self.main, *self.others)

    def check(self, mesh: Mesh, rules: Rules) -> None:
        """ValueError for values that no run can have."""
        kind = self.config.data.kind
        if kind not in kinds():
            raise ValueError(f"config.data.kind is {kind!r}; choose {listed(list(kinds()))}")
        if self.main.data and kind not in self.main.data:
            raise ValueError(
                f"config.data.kind is {kind!r}, but objective={self.main.name} learns from {listed(self.main.data)}; change "
                "one of them"
            )
        for method in self.all:
            method.check(self.config, mesh, rules)
        parts = self.config.optimizer.microbatches
        if parts > 1 and (other := [method.name for method in self.all if method.in_parts(self.config) == "other"]):
            raise ValueError(
                f"config.optimizer.microbatches is {parts}, and the loss of {listed(other)} is no sum over parts of a batch; "
                "make it 1"
            )

    @functools.cached_property
    def in_parts(self) -> str:
        """The worst of what the methods say: exact, random, other."""
        return max((method.in_parts(self.config) for method in self.all), key=("exact", "random", "other").index)

    @property
    def language_model(self) -> bool:
        """Whether the model is trained to write."""
        return self.main.language_model

    @property
    def roles(self) -> Roles:
        """The models of the program."""
        return next((roles for method in self.all if (roles := method.roles(self.config)) is not ONE), ONE)

    @functools.cached_property
    def trainable(self) -> str:
        """Pattern of the main model's paths that are trained."""
        return functools.reduce(
            lambda found, method: method.trainable(self.config, found), self.all, self.config.trainable
        )

    def architecture(self, base: TransformerConfig) -> TransformerConfig:
        """That of the run, from the one that it starts from. All methods are heard: what one of them made of the base may not be
        there where it is not asked for."""
        return functools.reduce(lambda found, method: method.architecture(self.config, found), METHODS.values(), base)

    def may_miss(self, before: str) -> str:
        """Pattern of the paths that loaded parameters may lack."""
        return "|".join(filter(None, (before, *(method.may_miss(self.config) for method in self.all))))

    def loaded(self, params: Any) -> Any:
        """What the run starts from, of loaded parameters."""
        return functools.reduce(lambda found, method: method.loaded(self.config, found), self.all, params)

    def model(self, bare: Any) -> Any:
        """The model, as methods wrap it."""
        return functools.reduce(lambda found, method: method.model(self.config, found), self.all, bare)

    def objective(self, model: Any) -> Objective:
        """The loss, with what other methods add to it."""
        assert self.main.objective

        def build(model: Any) -> Objective:
            assert self.main.objective
            return self.main.objective(self.config, model)

        for method in self.others:
            build = functools.partial(method.around_objective, self.config, build)
        return build(model)

    def gradient(self, model: Any, rate: optax.Schedule, sharding: Any) -> gradient.Gradient:
        """How the gradient of `objective` is formed."""
        formed = gradient.plain(self.objective(model), self.config.optimizer.microbatches)
        setting = Setting(model, rate, sharding)
        return functools.reduce(
            lambda found, method: method.around_gradient(self.config, found, setting), self.all, formed
        )

    def rewards(self, model: Any) -> Rewards:
        """What evaluations score with: (parameters, forest) → rewards_RGN."""
        found = [method.rewards for method in self.all if method.rewards]
        return found[-1](self.config, model) if found else own_rewards(model)

    def measures(self, model: Any) -> dict[str, Rewards]:
        """Further numbers for each candidate that evaluations report."""
        return {name: rewards for method in self.all for name, rewards in method.measures(self.config, model).items()}

    def saved(self) -> dict[str, Any]:
        """Method → what its `wrapped` needs: a part of the model's description."""
        return {method.name: dict(facts) for method in self.all if (facts := method.saved(self.config))}

    def records(self) -> Records:
        """Those of the main stream, each checked by the methods."""
        found = kinds()[self.config.data.kind](self.config)
        checks = [check for method in self.all if (check := method.require(self.config))]
        for record in found.each() if checks else ():
            for check in checks:
                check(record)
        return found

    def encode(self, encoder: Encoder) -> Callable[[Any, int], list[Tree]]:
        """(record, index) → trees of the main stream."""
        return self.main.encode(self.config, encoder)

    def shapes(self) -> ForestShape | dict[str, ForestShape]:
        """Sizes of a batch, of each forest by name where there are several."""
        data = self.config.data
        columns = tuple(dict.fromkeys(name for method in self.all for name in method.columns(self.config)))
        main = ForestShape(data.rows, data.row_tokens, data.groups, data.candidates, columns)
        sides = {name: shape for method in self.all for name, shape in method.side_shapes(self.config).items()}
        return {MAIN: main} | sides if sides else main

    def side_streams(self, main: Records) -> dict[str, SideStream]:
        """The streams beside the main one, by name."""
        sides = {name: stream for method in self.all for name, stream in method.side_streams(self.config).items()}
        for method in self.all:
            method.check_streams(self.config, main, sides)
        return sides

    def source(self, source: Source, measure: Callable[[str], Rewards]) -> Source:
        """The source of batches, as methods wrap it; `measure` gives one of `measures` by its name, compiled for the mesh."""
        return functools.reduce(
            lambda found, method: method.around_source(self.config, found, measure), self.all, source
        )

    def own_source(self, scene: Scene) -> Source | None:
        """The source that the objective's method makes in place of the stream's batches."""
        return self.main.own_source(self.config, scene)

    def check_start(self, params: Any, rate: optax.Schedule) -> None:
        """ValueError where nothing could be learned from these parameters."""
        for method in self.all:
            method.check_start(self.config, params, rate, self.trainable)

    def describe(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """What is derived from the logged metrics."""
        return {name: value for method in self.all for name, value in method.describe(scalars).items()}


def choose(config: Config) -> Chosen:
    """The methods that a config asks for. ValueError for an objective that there is not."""
    main = named(config.objective)
    others = tuple(m for m in METHODS.values() if m is not main and not m.objective and m.active(config))
    return Chosen(config, main, others)


def wrapped(saved: Mapping[str, Mapping[str, Any]], model: Any) -> Wrapped:
    """The model of a description whose methods saved this.

    Raises:
      ValueError: a method that there is not.
    """
    found = Wrapped(model, own_rewards(model))
    for name, facts in saved.items():
        method = METHODS.get(name)
        if method is None or method.wrapped is None:
            raise ValueError(
                f"the model was made by the method {name!r}, which is not here; use the version that made it"
            )
        found = method.wrapped(facts, found.model)
    return found
