"""Forests of random comparisons for the tiny architecture, and one short training run on such a forest."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.methods.preference import preference
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import make_mesh
from rmjax.train import gradient, objective
from rmjax.train.state import State, compile_step, initial_params, make_state, make_step, state_shardings


@pytest.fixture(scope="session")
def model(tiny_config) -> RewardTransformer:
    return RewardTransformer(tiny_config)


@pytest.fixture(scope="session")
def boxed(model) -> Any:
    """Parameters of the reward model as they are at the start, with their logical axis names."""
    return jax.jit(lambda: initial_params(model, 0))()


@pytest.fixture(scope="session")
def params(boxed) -> Any:
    """The same with a head that is not zero."""
    params = nn.meta.unbox(boxed)
    return {**params, "head": {"kernel": 0.1 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)}}


def random_trees(groups: Sequence[int], branches: int = 2, seed: int = 0) -> list[list[Tree]]:
    """`groups[r]` trees in row r: random lengths, candidate i has rank i."""
    random = np.random.default_rng(seed)

    def ids(most: int) -> np.ndarray:
        return random.integers(1, 97, random.integers(1, most)).astype(np.int32)

    def tree(number: int) -> Tree:
        return Tree(
            ids(6), tuple(ids(5) for _ in range(branches)), np.arange(branches, dtype=np.float32), record=number
        )

    starts = np.cumsum([0, *groups])
    return [[tree(start + i) for i in range(count)] for start, count in zip(starts, groups, strict=False)]


@pytest.fixture(scope="session")
def lay_out() -> Callable[[list[list[Tree]]], Forest]:
    """Rows of trees -> forest with room for four groups of four branches a row."""
    return lambda rows: fill(ForestShape(len(rows), 64, 4, 4), rows)


@pytest.fixture(scope="session")
def trees() -> Callable[..., list[list[Tree]]]:
    return random_trees


@pytest.fixture(scope="session")
def forest(lay_out) -> Callable[..., Forest]:
    """As `random_trees`, laid out."""
    return lambda *args, **kwargs: lay_out(random_trees(*args, **kwargs))


@dataclasses.dataclass(frozen=True)
class Run:
    before: State
    after: State
    terms: list[objective.Terms]


@pytest.fixture(scope="session")
def learned(model, boxed, forest) -> Run:
    """60 steps of the compiled step, with the usual parts frozen, on one forest of 32 pairs."""
    update, mesh, trainable = optax.adamw(3e-3, weight_decay=0.01), make_mesh({}), "layers|final_norm|head"
    state = make_state(nn.meta.unbox(boxed), trainable, update, seed=0)
    before = jax.device_get(state)
    state = jax.tree.map(jax.numpy.array, state)  # a copy: the step donates it
    shardings = state_shardings(state, boxed, trainable, mesh)
    step = compile_step(make_step(gradient.plain(preference(model)), update, shardings, mesh), shardings, mesh)
    terms, batch = [], forest([4] * 8, seed=3)
    with jax.set_mesh(mesh):
        for _ in range(60):
            state, found = step(state, batch)
            terms.append(jax.device_get(found))
    return Run(before, jax.device_get(state), terms)
