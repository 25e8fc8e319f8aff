"""The gradient: a plain reference, accumulation, frozen parameters, optimizer state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.data.forest import ForestShape
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.parallel.mesh import make_mesh
from rmjax.train import gradient, objective
from rmjax.train.parameters import flat, merge, split
from rmjax.train.state import compile_step, initial_params, make_state, make_step, state_shardings

KEY = jax.random.key(0)
TRAINABLE = "layers|final_norm|head"


@pytest.fixture(scope="module")
def model(tiny_config):
    return RewardTransformer(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    params = nn.meta.unbox(initial_params(model, 0))
    params["head"]["kernel"] = jax.random.normal(KEY, params["head"]["kernel"].shape)
    return params


def assert_close(one, other, tolerance=1e-6):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=tolerance, atol=tolerance, err_msg=path)


def reference_gradient(config, trainable, frozen, rows):
    """Every sequence alone, causal attention, no forest, no reducer: the mean of -log sigmoid over the pairs."""

    def reward(params, tree, leaf):
        ids = jnp.concatenate([tree.prefix, tree.leaves[leaf]])[None]
        positions = jnp.arange(ids.shape[1])[None]
        hidden = Transformer(config).apply({"params": params["backbone"]}, ids, positions, causal_mask(ids > 0))
        return (hidden[0, -1] @ params["head"]["kernel"])[0]

    def loss(trainable):
        params = merge(trainable, frozen)
        pairs = [(reward(params, tree, 0), reward(params, tree, 1)) for row in rows for tree in row]
        return sum(jnp.logaddexp(0.0, worse - better) for better, worse in pairs) / len(pairs)

    return jax.grad(loss)(trainable)


def test_is_that_of_a_plain_reference(tiny_config, model, params, random_trees, random_forest):
    trainable, frozen = split(params, TRAINABLE)
    found, terms = jax.jit(gradient.plain(objective.preference(model)))(trainable, frozen, random_forest([2, 1]), KEY)
    assert terms["loss"][1] == 3
    assert_close(found, reference_gradient(tiny_config, trainable, frozen, random_trees([2, 1])), 2e-6)
    assert all(float(jnp.abs(leaf).max()) > 1e-5 for leaf in flat(found).values())


@pytest.mark.parametrize("groups", [[2, 2, 2, 2], [3, 1, 0, 2]])
@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_add_up_to_the_whole_batch(model, params, random_forest, groups, parts):
    trainable, frozen = split(params, TRAINABLE)
    form, forest = objective.preference(model), random_forest(groups)
    whole, terms = jax.jit(gradient.plain(form))(trainable, frozen, forest, KEY)
    summed, part_terms = jax.jit(gradient.plain(form, parts))(trainable, frozen, forest, KEY)
    assert_close(summed, whole)
    assert terms["loss"][1] == sum(groups)
    for name in terms:
        np.testing.assert_allclose(part_terms[name], terms[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_unequal_counts_are_not_a_mean_of_means(model, params, random_forest):
    """What the accumulation test rules out: the mean of the parts' means is another gradient here."""
    trainable, frozen = split(params, "head")
    form, forest = jax.jit(gradient.plain(objective.preference(model))), random_forest([3, 1])
    whole = form(trainable, frozen, forest, KEY)[0]["head"]["kernel"]
    rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], forest) for r in range(2)]
    means = sum(form(trainable, frozen, row, KEY)[0]["head"]["kernel"] for row in rows) / 2
    assert float(jnp.abs(means - whole).max()) > 1e-3


def test_a_batch_without_pairs_has_no_gradient(model, params):
    trainable, frozen = split(params, TRAINABLE)
    empty = jax.tree.map(jnp.asarray, ForestShape(2, 8, 1, 2).empty())
    found, terms = jax.jit(gradient.plain(objective.preference(model)))(trainable, frozen, empty, KEY)
    assert terms["loss"] == (0, 0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(found))


def test_frozen_parameters_stay_bit_for_bit_and_have_no_optimizer_state(model, random_forest):
    update, mesh, boxed = optax.adamw(1e-2, weight_decay=0.1), make_mesh({}), initial_params(model, 0)
    state = make_state(nn.meta.unbox(boxed), "layers/mlp|head", update, seed=0)
    shardings = state_shardings(state, boxed, "layers/mlp|head", mesh)
    before = jax.device_get(state)
    step = compile_step(make_step(gradient.plain(objective.preference(model)), update, shardings, mesh), shardings, mesh)
    with jax.set_mesh(mesh):
        for seed in range(3):
            state, _ = step(state, random_forest([2, 2], seed=seed))
    after = jax.device_get(state)
    assert int(after.step) == 3
    frozen = flat(before.frozen)
    assert "backbone/embedding/embedding" in frozen and not any("mlp/" in path for path in frozen)
    assert {p: x.tobytes() for p, x in flat(after.frozen).items()} == {p: x.tobytes() for p, x in frozen.items()}
    moved = flat(before.trainable)
    assert sorted(moved) == ["backbone/layers/mlp/" + n + "/kernel" for n in ("down", "gate", "up")] + ["head/kernel"]
    assert all((flat(after.trainable)[path] != moved[path]).any() for path in moved)
    moments = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim]
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in moved.values()])


@pytest.mark.parametrize(("parts", "message"), [(0, "must be 1 or more"), (3, "4 rows do not divide into 3")])
def test_bad_microbatches(model, params, random_forest, parts, message):
    with pytest.raises(ValueError, match=message):
        gradient.plain(objective.preference(model), parts)(*split(params, TRAINABLE), random_forest([1] * 4), KEY)
