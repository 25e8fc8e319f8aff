"""The training state and the compiled step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from rmjax.data.packing import ForestShape
from rmjax.models.parameters import split
from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import RULES, Rules, parameter_shardings, replicated
from rmjax.train.gradient import Gradient
from rmjax.train.objective import Terms


@flax.struct.dataclass
class State:
    """All that a step changes, and the frozen parameters beside it."""

    step: Any
    trainable: Any
    frozen: Any
    optimizer: Any  # state for the trainable parameters only
    rng: Any  # key data


def initial_params(model: Any, seed: ArrayLike) -> Any:
    """Random parameters of a `RewardTransformer` (or what wraps one), boxed with their logical axis names."""
    forest = ForestShape(1, 8, 1, 1).empty()
    return model.init(jax.random.key(seed), jax.tree.map(jnp.asarray, forest), method=_everything)["params"]


def _everything(model: RewardTransformer, forest):
    """Touches every parameter, the output projection of untied embeddings included where there is one."""
    if not model.config.tied_embeddings:
        model.logits(forest)
    return model(forest)


Trainable = str | Callable[[str], bool]
"""Which paths are trained, as `parameters.split` takes it."""


def make_state(params: Any, trainable: Trainable, optimizer: optax.GradientTransformation, seed: ArrayLike) -> State:
    """The state before the first step; `params` are unboxed."""
    moving, frozen = split(params, trainable)
    rng = jax.random.key_data(jax.random.key(seed))
    return State(jnp.int32(0), moving, frozen, optimizer.init(moving), rng)


def state_shardings(state: State, boxed: Any, trainable: Trainable, mesh: Mesh, rules: Rules = RULES) -> State:
    """Parameters by the sharding table; optimizer moments as the parameter of the same path; the rest replicated."""
    moving, frozen = split(nn.meta.unbox(parameter_shardings(boxed, mesh, rules)), trainable)
    structure: Any = jax.tree.structure(moving)

    def like_params(part: Any) -> Any:
        return moving if jax.tree.structure(part) == structure else jax.tree.map(lambda _: replicated(mesh), part)

    optimizer = jax.tree.map(like_params, state.optimizer, is_leaf=lambda x: jax.tree.structure(x) == structure)
    return State(replicated(mesh), moving, frozen, optimizer, replicated(mesh))


def make_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    shardings: State,
    mesh: Mesh,
    rules: Rules = RULES,
) -> Callable[[State, Any], tuple[State, Terms]]:
    """The function to jit: (state, batch) → (state, terms). Gradients are constrained to the parameters' sharding, which
    they do not inherit by themselves."""

    def step(state: State, batch: Any) -> tuple[State, Terms]:
        with nn.logical_axis_rules(rules):
            rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
            grads, terms = gradient(state.trainable, state.frozen, batch, rng, state)
            grads = jax.lax.with_sharding_constraint(grads, shardings.trainable)
            updates, moments = optimizer.update(grads, state.optimizer, state.trainable)
            moved = optax.apply_updates(state.trainable, updates)
        one = jnp.float32(1)
        terms = terms | {"gradient_norm": (optax.tree.norm(grads), one), "update_norm": (optax.tree.norm(updates), one)}
        return dataclasses.replace(state, step=state.step + 1, trainable=moved, optimizer=moments), terms

    return step


def compile_step(
    step: Callable, shardings: State, mesh: Mesh, options: Mapping[str, str] | None = None
) -> jax.stages.Wrapped:
    """(state, batch) → (state, terms): `jax.jit` with the state donated and its sharding given; the batch has that which
    `data.placement.place` gave it. `options` are the compiler's own, by name."""
    return jax.jit(
        step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=dict(options) if options else None,
    )
