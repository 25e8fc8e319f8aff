"""MetaRM: the gradient of the preference loss where the current policy's answers are told further apart.

One step (algorithm 1 of the paper), on a batch {"preference": forest, "meta": forest}:

    θ' = θ + η ∇J(θ)        J, the difference loss, on unlabeled groups of the policy's answers
    gradient = ∇L(θ')       L, any objective of the project, on the preference batch

The gradient goes to the optimizer, which applies it to θ; θ' is thrown away and the ascent never enters optimizer state.
Source: MetaRM, equations 3 to 5 and algorithm 1 (the same in arXiv 2401.06080). First order, as printed there.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmjax.data.packing import ForestShape
from rmjax.data.samples import require_form, take
from rmjax.data.sources import drawn, sample_groups
from rmjax.losses import difference
from rmjax.losses.reduction import total
from rmjax.methods.method import MAIN, Method, Setting, SideStream
from rmjax.models.forest import Forest
from rmjax.models.parameters import flat
from rmjax.models.reward import READOUT
from rmjax.sections import choice, number, one_of, pattern
from rmjax.settings import RECORD_SPLITS, ROOT, SPLITS, WRAPPERS, Config
from rmjax.train.gradient import Gradient
from rmjax.train.gradient import plain as plain_gradient
from rmjax.train.objective import Objective, Terms, batch_terms

MODES = ("plain", "parameter_norm", "step_norm", "preconditioned")
META = "meta"
"""Name of the forest of unlabeled samples in a batch."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GradientSection:
    """`config.gradient`."""

    name: str = choice("plain", "plain", META)  # meta: the gradient after an ascent on config.meta_data
    mode: str = choice("plain", *MODES)  # meta: unit of the ascent
    inner_learning_rate: float = number(
        5e-6, low=0
    )  # meta: η, length of the ascent in that unit (the paper's, for plain)
    order: int = one_of(1, 1, 2)  # meta: 1 as in the paper | 2 differentiates through the ascent as well
    warmup_steps: int = number(0, low=0)  # meta: steps without ascent at the start, for a head that starts at zero


@dataclasses.dataclass(frozen=True)
class MetaData:
    """`config.meta_data`: unlabeled groups of samples of the current policy."""

    kind: str = choice(
        "pool", "pool", "comparisons"
    )  # samples by policy | a file with `outputs`; their order is not read
    path: str = ""  # as data.path
    root: str = ROOT  # where the real sets lie
    split: str = choice("all", *RECORD_SPLITS)  # real sets
    policies: str = choice("seen", *SPLITS)  # pool: policies that may write
    prompts: str = choice("seen", *SPLITS)  # pool: prompts that may be answered
    names: str = pattern("")  # pool: regular expression that a policy's whole name must match; empty = all of these
    mixed: bool = False  # pool: True puts all these policies' samples for a prompt into one group
    samples: int = number(5, low=1)  # k, samples a group; groups with fewer take what they have
    references: int = number(0, low=0)  # pool: further samples of the group that become its references
    wrapper: str = choice("sft", *WRAPPERS)  # pool: POLAR wrapper
    rows: int = number(8, low=1)  # rows a batch (over all devices)
    row_tokens: int = number(512, low=1)  # tokens a row
    groups: int = number(8, low=1)  # groups a row at most


Factors = Callable[[Any, Any, Any], Any]
"""(θ, ∇J, training state) → a tree like θ of factors, scalars or arrays: θ' = θ + factor · ∇J, leaf by leaf."""
DAMPING = 0.1
"""Of `preconditioned`: share of a leaf's root mean square that is added to √v, so that no weight moves without bounds."""


def meta(
    outer: Gradient,
    inner: Gradient,
    factors: Factors,
    *,
    second_order: bool = False,
    warmup_steps: int = 0,
    sharding: Any = None,
) -> Gradient:
    """Wraps `outer`, the gradient of any objective, by an ascent along `inner`, that of `discrimination`.

    Args:
      factors: how far the ascent goes; one of the four below.
      second_order: differentiates through the ascent as well: ∇L(θ') + η H_J ∇L(θ') for `plain`. Not in the paper.
      warmup_steps: before this step θ' is θ: a head that starts at zero gives J no gradient.
      sharding: of the trainable parameters; ∇J and θ' are constrained to it, since neither inherits it by itself.

    The terms of the preference loss are those at θ'. Added are the terms of J with the prefix `meta_` (J itself is
    `meta_difference`), `meta_gradient_norm`, `meta_ascent` (‖θ' − θ‖, as it came out in the parameters' dtype) and
    `meta_cosine`, of ∇L(θ') and ∇J(θ). ∇J is read off θ' − θ there, which saves a copy of the parameters: where most of the
    ascent drowns in rounding, it is the cosine of what is left. Without an ascent there is none.
    """

    def ascend(trainable: Any, frozen: Any, batch: Any, rng: jax.Array, state: Any):
        rising, terms = inner(trainable, frozen, batch[META], jax.random.fold_in(rng, 1), state)
        rising = _constrained(rising, sharding)
        on = 1.0 if warmup_steps == 0 else jnp.where(state.step >= warmup_steps, 1.0, 0.0)
        factor = jax.tree.map(lambda f: on * f, factors(trainable, rising, state))
        ascended = jax.tree.map(lambda p, f, g: (p + f * g).astype(p.dtype), trainable, factor, rising)
        return _constrained(ascended, sharding), (factor, optax.tree.norm(rising), terms)

    def gradient(trainable: Any, frozen: Any, batch: Any, rng: jax.Array, state: Any = None):
        def from_here(trainable: Any):
            return ascend(trainable, frozen, batch, rng, state)

        if second_order:
            ascended, pull_back, (factor, norm, inner_terms) = jax.vjp(from_here, trainable, has_aux=True)
        else:
            ascended, (factor, norm, inner_terms) = from_here(trainable)
        # Without a barrier the sum would be computed again where it is used last, and ∇J be kept until then.
        ascended = jax.lax.optimization_barrier(ascended)
        descent, terms = outer(ascended, frozen, batch[MAIN], rng, state)
        terms = terms | _renamed(inner_terms) | _ascent_terms(trainable, ascended, factor, norm, descent)
        if second_order:
            (descent,) = pull_back(jax.tree.map(lambda g, q: g.astype(q.dtype), descent, ascended))
        return descent, terms

    return gradient


def _renamed(terms: Terms) -> Terms:
    return {f"meta_{'difference' if name == 'loss' else name}": term for name, term in terms.items()}


def _ascent_terms(trainable: Any, ascended: Any, factor: Any, norm: jax.Array, descent: Any) -> Terms:
    one = jnp.float32(1)
    moved = jax.tree.map(lambda q, p: q.astype(jnp.float32) - p.astype(jnp.float32), ascended, trainable)
    rising = jax.tree.map(lambda m, f: m / jnp.where(f > 0, f, 1.0), moved, factor)
    both = optax.tree.norm(rising) * optax.tree.norm(descent)
    defined = both > 0
    cosine = jnp.where(defined, optax.tree.vdot(descent, rising) / jnp.where(defined, both, 1.0), 0.0)
    return {
        "meta_gradient_norm": (norm, one),
        "meta_ascent": (optax.tree.norm(moved), one),
        "meta_cosine": (cosine, defined.astype(jnp.float32)),
    }


def _constrained(tree: Any, sharding: Any) -> Any:
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def describe(scalars: Mapping[str, float]) -> dict[str, float]:
    """`meta_ascent_share`: ‖θ' − θ‖ over the length of the step that the optimizer took; empty before it took one."""
    if not scalars.get("meta_ascent") or not scalars.get("update_norm"):
        return {}
    return {"meta_ascent_share": scalars["meta_ascent"] / scalars["update_norm"]}


def refuse_zero_head(params: Any) -> None:
    """ValueError where the reward head is zero: all rewards are equal, and J has no gradient at all."""
    heads = [leaf for path, leaf in flat(params).items() if re.search(READOUT, path)]
    if not any(np.any(np.asarray(leaf)) for leaf in heads):
        raise ValueError(
            "the reward head is zero, so all rewards are equal and the difference loss has no gradient; start from a "
            "trained reward model (config.model.init) or train plainly first (config.gradient.warmup_steps, so many "
            "that the learning rate has left 0)"
        )


# --- how far the ascent goes -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Adam:
    """What the outer optimizer makes of its moments."""

    learning_rate: optax.Schedule
    b1: float
    b2: float
    eps: float = 1e-8


def plain(rate: float) -> Factors:
    """θ' = θ + η ∇J, as printed. The paper's η is 5e-6, which is far below what Adam moves a weight by."""
    return lambda trainable, rising, state: jax.tree.map(lambda _: jnp.float32(rate), rising)


def parameter_norm(rate: float) -> Factors:
    """Every leaf moves by the share η of its own norm. Leaves that are zero stay where they are."""

    def factors(trainable: Any, rising: Any, state: Any) -> Any:
        return jax.tree.map(lambda p, g: rate * _over(_norm(p), _norm(g)), trainable, rising)

    return factors


def step_norm(rate: float, adam: Adam) -> Factors:
    """All leaves together move by the share η of the outer step's length.

    The step itself is known only after ∇L(θ'), so its length is that which the moments of the steps before give at this
    step's learning rate (without weight decay). At the first step there are none, and no ascent.
    """

    def factors(trainable: Any, rising: Any, state: Any) -> Any:
        moments = _moments(state)
        first = optax.tree.bias_correction(moments.mu, adam.b1, jnp.maximum(moments.count, 1))
        second = optax.tree.bias_correction(moments.nu, adam.b2, jnp.maximum(moments.count, 1))
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + adam.eps), first, second)
        length = adam.learning_rate(state.step) * optax.tree.norm(direction)
        factor = rate * _over(length, _norm(rising))
        return jax.tree.map(lambda _: factor, rising)

    return factors


def preconditioned(rate: float, adam: Adam) -> Factors:
    """θ' = θ + η ∇J / (√v + d), v the outer optimizer's second moment and d = `DAMPING` times the leaf's root mean
    square of √v. At the first step v is 0, and there is no ascent."""

    def factor(v: jax.Array) -> jax.Array:
        return rate * _over(1.0, jnp.sqrt(v) + DAMPING * jnp.sqrt(jnp.mean(v)))

    def factors(trainable: Any, rising: Any, state: Any) -> Any:
        moments = _moments(state)
        second = optax.tree.bias_correction(moments.nu, adam.b2, jnp.maximum(moments.count, 1))
        return jax.tree.map(factor, second)

    return factors


def _moments(state: Any) -> optax.ScaleByAdamState:
    def is_adam(part: Any) -> bool:
        return isinstance(part, optax.ScaleByAdamState)

    found = [part for part in jax.tree.leaves(state.optimizer, is_leaf=is_adam) if is_adam(part)]
    if len(found) != 1:
        raise ValueError(
            "this ascent needs the moments of one Adam in the optimizer's state; use plain or parameter_norm"
        )
    return found[0]


def _over(numerator: Any, denominator: Any) -> jax.Array:
    """Their quotient, 0 where the denominator is."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)


def _norm(tree: Any) -> jax.Array:
    """L2 over all leaves, of derivative 0 at 0 (that of a plain root is NaN there)."""
    square = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


# --- from a config -----------------------------------------------------------------------------------------------------


def discrimination(model: Any) -> Objective:
    """MetaRM's J (`losses.difference`) over the groups with at least two branches; its `loss` is to be maximized.

    `lower` and `upper` are J's bounds, `rescaled` is J between them, `gap` the mean |Δr| of two answers to one prompt, and
    `tied` the fraction of groups whose answers all have the same reward: they have no gradient.
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


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    chosen, data = _sections(config)
    if config.objective != "preference":
        raise ValueError(f"config.objective is {config.objective!r}; gradient.name=meta needs preference")
    if data.samples < 2:
        raise ValueError(f"config.meta_data.samples is {data.samples}; a difference needs 2 or more")
    if chosen.order == 2 and config.model.attention == "pallas":
        raise ValueError(
            "config.gradient.order is 2, and pallas kernels have no second derivative; use attention=blockwise"
        )
    if chosen.warmup_steps >= config.run.steps:
        raise ValueError(
            f"config.gradient.warmup_steps is {chosen.warmup_steps} of {config.run.steps} steps; give fewer than run.steps: "
            "else no step has an ascent"
        )


def _sections(config: Config) -> tuple[GradientSection, MetaData]:
    return config.sections["gradient"], config.sections["meta_data"]


def _shapes(config: Config) -> dict[str, ForestShape]:
    data = _sections(config)[1]
    return {META: ForestShape(data.rows, data.row_tokens, data.groups, data.samples)}


def _streams(config: Config) -> dict[str, SideStream]:
    data = _sections(config)[1]
    groups = sample_groups(data, data.kind, "meta_data")
    smaller = sum(len(group.outputs) - data.references < data.samples for group in groups)
    if smaller:
        _log.warning(
            "meta set: %d of %d groups have fewer than %d answers (config.meta_data.samples)%s",
            smaller, len(groups), data.samples,
            "; meta_data.mixed=True puts a prompt's policies together" if data.kind == "pool" and not data.mixed else "",
        )  # fmt: skip
    draw = functools.partial(take, samples=data.samples, references=data.references)
    # Endless: one epoch is one of the preference data.
    return {META: SideStream(drawn(groups, draw), _shapes(config)[META], data.row_tokens, config.run.seed + 1)}


def _same_form(config: Config, main: Any, sides: Mapping[str, SideStream]) -> None:
    """RecordError where the samples have another form than the preference records: J would be about another input."""
    known, references = main.forms(), _sections(config)[1].references
    records = sides[META].records
    assert records
    for group in records.each():
        require_form(dataclasses.replace(group, references=("",) if references else group.references), known)


def _around(config: Config, outer: Gradient, setting: Setting) -> Gradient:
    chosen, _ = _sections(config)
    inner = plain_gradient(discrimination(setting.model), config.optimizer.microbatches)
    return meta(
        outer, inner, _factors(config, setting.rate), second_order=chosen.order == 2, warmup_steps=chosen.warmup_steps,
        sharding=setting.sharding,
    )  # fmt: skip


def _factors(config: Config, rate: optax.Schedule) -> Factors:
    chosen, _ = _sections(config)
    eta, adam = chosen.inner_learning_rate, Adam(rate, config.optimizer.b1, config.optimizer.b2)
    if chosen.mode == "step_norm":
        return step_norm(eta, adam)
    if chosen.mode == "preconditioned":
        return preconditioned(eta, adam)
    return plain(eta) if chosen.mode == "plain" else parameter_norm(eta)


def _check_start(config: Config, params: Any, rate: optax.Schedule, trainable: str) -> None:
    """ValueError where J would begin at a reward head that is zero: that of `params` (None = random weights), unless it is
    trained and the warm-up moves it."""
    warmup = _sections(config)[0].warmup_steps
    warmed = any(re.search(trainable, path) for path in ("head/kernel", "head/output/kernel")) and any(
        np.asarray(rate(step)) > 0 for step in range(warmup)
    )
    if not warmed:
        refuse_zero_head(params or {})


METHOD = Method(
    "metarm",
    sections={"gradient": GradientSection, "meta_data": MetaData},
    active=lambda config: config.sections["gradient"].name == META,
    check=_check,
    side_shapes=_shapes,
    side_streams=_streams,
    check_streams=_same_form,
    around_gradient=_around,
    check_start=_check_start,
    describe=describe,
    example={
        "gradient.name": META,
        "gradient.mode": "parameter_norm",
        "meta_data.kind": "comparisons",
        "meta_data.samples": 2,
    },
)
