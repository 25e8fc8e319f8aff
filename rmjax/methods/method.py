"""What a method can say of itself. Everything but its name has a neutral default, so a method says only what makes it differ."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, Tree
from rmjax.data.pipeline import Source
from rmjax.data.record import Comparison
from rmjax.data.sources import Records
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.scorers import Scorer
from rmjax.models.forest import Forest
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import Rules
from rmjax.policy.local import LocalGenerator
from rmjax.policy.sampling import Decoding
from rmjax.roles import ONE, Roles
from rmjax.settings import Config
from rmjax.train.gradient import Gradient
from rmjax.train.objective import Objective

MAIN = "preference"
"""Name of the stream of `config.data` where a batch has several forests."""
Rewards = Callable[[Any, Forest], jax.Array]
"""(parameters, forest) → rewards_RGN; or an `rmjax.evaluate.scorers.OfMembers`."""
Build = Callable[[Any], Objective]
"""Model → objective."""


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A model as its method wraps it, from a description.

    Attributes:
      model: the model.
      rewards: what it is scored with.
      measures: further numbers for each candidate, by name.
    """

    model: Any
    rewards: Rewards
    measures: Mapping[str, Rewards] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a gradient is formed for.

    Attributes:
      model: the model, or what a method has made of it.
      rate: the outer learning rate by step.
      sharding: of the trainable parameters.
    """

    model: Any
    rate: optax.Schedule
    sharding: Any


@dataclasses.dataclass(frozen=True)
class SideStream:
    """Trees that stand beside the main stream in every batch.

    Attributes:
      records: what they are drawn from; None = the main stream's, in an order of its own.
      shape: of their forest.
      row_tokens: tokens that a group may take.
      seed: of their order.
    """

    records: Records | None
    shape: ForestShape
    row_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a run has that something made for it may ask: a source that samples from the model, an evaluation of what it writes.

    Attributes:
      architecture: of the main model.
      model: the main model, as methods wrap it.
      roles: the models that the parameters hold.
      tokenizer: of the model.
      form: how records become tokens.
      records: of the main stream.
      folder: of the run; None where nothing is written.
      compiled: a function of (parameters of all roles, forest) → the same, compiled for the mesh, its result on the host.
      scorer: a reward model's folder or name → a scorer.
      mesh, rules: devices, and how arrays are cut over them.
      rows: what the number of a batch's rows has to be a multiple of.
    """

    architecture: TransformerConfig
    model: Any
    roles: Roles
    tokenizer: Tokenizer
    form: Format
    records: Records
    folder: Path | None
    compiled: Callable[[Rewards], Rewards]
    scorer: Callable[[str], Scorer]
    mesh: Mesh
    rules: Rules
    rows: int = 1

    def encoder(self, row_tokens: int) -> Encoder:
        """Of the run's format, for rows of so many tokens."""
        return Encoder(self.tokenizer, self.form, row_tokens)

    def generator(self, params: Any, decoding: Decoding, max_new_tokens: int, stop: Sequence[str]) -> LocalGenerator:
        """The main model as a policy, of parameters of all roles; those of before are not compiled again."""
        encoder = self.encoder(self.architecture.max_positions)
        return LocalGenerator(
            self.architecture, self.roles.of(params)["backbone"], encoder, decoding, max_new_tokens, "policy", tuple(stop),
            mesh=self.mesh if self.mesh.size > 1 else None, rules=self.rules,
        )  # fmt: skip


def _same_architecture(config: Config, base: TransformerConfig) -> TransformerConfig:
    del config
    return base


def _same(config: Config, given: Any) -> Any:
    del config
    return given


def own_rewards(model: Any) -> Rewards:
    """The model's own."""
    return lambda params, forest: model.apply({"params": params}, forest)


@dataclasses.dataclass(frozen=True)
class Method:
    """A published method, or a part of one.

    A method is an *objective* where `config.objective` names it; otherwise `active` says whether a config asks for it.

    Attributes:
      sections: config sections that it owns: name → dataclass with defaults, units and ranges.
      active: whether a config asks for it.
      check: ValueError for values that go together with no run. Gets the mesh and the sharding rules.
      kinds: values of `config.data.kind` that it brings: name → (config → records).
      data: the kinds of data that its objective takes; empty = any.
      language_model: the objective trains the model to write: the vocabulary head runs and the reward head takes no part.
      columns: full names of the on-demand columns (`models.columns`) that the main stream's batches need.
      require: config → a check of every record of the main stream, or None.
      encode: config, encoder → (record, index) → trees of the main stream.
      side_shapes: config → the shapes of the forests that stand beside the main one, by name.
      side_streams: config → the streams of these names.
      architecture: changes the architecture that the run starts from.
      trainable: config, pattern → which parameters are trained; the pattern is what was said before.
      may_miss: a pattern of paths that loaded parameters may lack.
      loaded: config, loaded parameters → what the run starts from.
      model: wraps the model.
      roles: config → the models of the program beside the main one.
      objective: config, model → objective.
      around_objective: wraps the function that builds the objective.
      around_gradient: wraps the gradient.
      around_source: wraps the source of batches; gets what gives one of `measures` by its name, compiled for the mesh.
      own_source: config, scene → a source of batches in place of the main stream's; None = the stream's.
      rewards: config, model → what evaluations score with; None = the model's own rewards.
      measures: config, model → further numbers for each candidate that evaluations report, by name.
      saved: what `wrapped` needs, for the model's description (JSON).
      wrapped: what `saved` gave, the bare model → the model as this method wraps it.
      check_streams: config, main records, side streams: an error where they do not go together.
      check_start: config, loaded parameters (None = random), rate, what is trained: ValueError where nothing could be learned.
      describe: adds what is derived from the logged metrics.
      example: changes of a config that make a small run use it, for the test that all methods have to pass.
      in_parts: what microbatches do to the gradient: "exact" (that of the whole batch), "random" (the same but for draws made
        anew for each part), or "other" (an objective that is no sum over parts of a batch: they are refused).
    """

    name: str
    sections: Mapping[str, type] = dataclasses.field(default_factory=dict)
    active: Callable[[Config], bool] = lambda config: False
    check: Callable[[Config, Mesh, Rules], None] = lambda config, mesh, rules: None
    kinds: Mapping[str, Callable[[Config], Records]] = dataclasses.field(default_factory=dict)
    data: Sequence[str] = ()
    language_model: bool = False
    columns: Callable[[Config], tuple[str, ...]] = lambda config: ()
    require: Callable[[Config], Callable[[Comparison], None] | None] = lambda config: None
    encode: Callable[[Config, Encoder], Callable[[Any, int], list[Tree]]] = lambda config, encoder: encoder.trees
    side_shapes: Callable[[Config], Mapping[str, ForestShape]] = lambda config: {}
    side_streams: Callable[[Config], Mapping[str, SideStream]] = lambda config: {}
    architecture: Callable[[Config, TransformerConfig], TransformerConfig] = _same_architecture
    trainable: Callable[[Config, str], str] = lambda config, pattern: pattern
    may_miss: Callable[[Config], str] = lambda config: ""
    loaded: Callable[[Config, Any], Any] = _same
    model: Callable[[Config, Any], Any] = _same
    roles: Callable[[Config], Roles] = lambda config: ONE
    objective: Callable[[Config, Any], Objective] | None = None
    around_objective: Callable[[Config, Build, Any], Objective] = lambda config, build, model: build(model)
    around_gradient: Callable[[Config, Gradient, Setting], Gradient] = lambda config, gradient, setting: gradient
    around_source: Callable[[Config, Source, Callable[[str], Rewards]], Source] = lambda config, source, measure: source
    own_source: Callable[[Config, Scene], Source | None] = lambda config, scene: None
    rewards: Callable[[Config, Any], Rewards] | None = None
    measures: Callable[[Config, Any], Mapping[str, Rewards]] = lambda config, model: {}
    saved: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    wrapped: Callable[[Mapping[str, Any], Any], Wrapped] | None = None
    check_streams: Callable[[Config, Records, Mapping[str, SideStream]], None] = lambda config, main, sides: None
    check_start: Callable[[Config, Any, optax.Schedule, str], None] = lambda config, params, rate, trainable: None
    describe: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda scalars: {}
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    in_parts: Callable[[Config], str] = lambda config: "exact"
