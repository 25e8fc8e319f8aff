"""The balancing constraint: golden values, direction, padding, and what it does to an objective."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.losses.balance import Balance, balance, coefficients, equal_groups, mass, variation
from rmjax.methods.adapters import balance_of, balanced
from rmjax.methods.language_model import language_model
from rmjax.methods.preference import preference
from rmjax.models.parameters import flat, merge, split
from rmjax.train import gradient
from tests.models.adapting import experts, moved, small, started

HALVES = (0, 0, 0, 0, 1, 1, 1, 1)


def uniform_case(T, normalized):
    """Four samples of T tokens, types 0 1 0 1, eight experts of equal weight, δ = 0.1."""
    group_RT = np.repeat([[1, 2, 3, 4]], T, axis=1).reshape(1, 4 * T)
    mass_MRGN = mass(np.full((1, 1, 4 * T, 8), 1 / 8), np.sort(group_RT), 4, normalized)
    return mass_MRGN, coefficients(np.array([[0, 1, 0, 1]]), HALVES, 0.1), np.ones((1, 4), bool)


@pytest.mark.parametrize("T", [1, 7, 64])
@pytest.mark.parametrize("normalized", [True, False])
def test_golden_values(T, normalized):
    """Sections 3.2 and 3.7 of the specification: code 0.010322580645 for any T, paper 0.00125 · T."""
    case = uniform_case(T, normalized)
    assert float(balance(*case, "code")[0]) == pytest.approx(0.010322580645, rel=1e-5)
    assert float(balance(*case, "paper")[0]) == pytest.approx(0.00125 * (1 if normalized else T), rel=1e-5)


def test_the_coefficients_are_those_of_the_official_code():
    """task_type 1 has 1 + δ on the first half of the experts, task_type 0 on the second."""
    found = coefficients(np.array([[1, 0]]), equal_groups(4), 0.25)
    np.testing.assert_allclose(found[0], [[1.25, 1.25, 0.75, 0.75], [0.75, 0.75, 1.25, 1.25]])
    assert equal_groups(6) == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_direction(form):
    """Minimized, experts with 1 + δ get 9 for 11 of the others: each type's own experts get 55 % of its mass."""
    type_RG, types = np.array([[0, 1]]), equal_groups(4)
    coefficient = coefficients(type_RG, types, 0.1)

    def loss(logits):
        return balance(jax.nn.softmax(logits)[None], coefficient, np.ones((1, 2), bool), form)[0]

    logits = jax.random.normal(jax.random.key(0), (1, 2, 4))
    update = optax.adam(0.05)
    state, step = update.init(logits), jax.jit(jax.value_and_grad(loss))
    for _ in range(400):
        value, slope = step(logits)
        change, state = update.update(slope, state)
        logits = optax.apply_updates(logits, change)
    share = np.asarray(jax.nn.softmax(logits))[0]
    assert float(value) < 1e-4
    np.testing.assert_allclose(share[0, :2].sum() / share[0, 2:].sum(), 1.1 / 0.9, rtol=2e-2)
    np.testing.assert_allclose(share[1, :2].sum() / share[1, 2:].sum(), 0.9 / 1.1, rtol=2e-2)


def test_padding_and_length_take_no_part():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (3, 1, 10)).astype(np.float32)
    group = np.array([[1, 1, 2, 2, 2, 2, 0, 0, 0, 0]])
    found = np.asarray(mass(weights, group, 3))
    np.testing.assert_allclose(found[:, 0, 0], weights[:, 0, :2].mean(1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 0, 1], weights[:, 0, 2:6].mean(1), rtol=1e-5)
    assert not found[:, 0, 2].any()
    np.testing.assert_allclose(mass(weights, group, 3, False)[:, 0, 1], weights[:, 0, 2:6].sum(1), rtol=1e-5)
    other = weights.copy()
    other[:, :, 6:] = 7.0
    np.testing.assert_array_equal(mass(other, group, 3), found)
    # The same routing in samples of other lengths is as well balanced.
    even = np.full((1, 1, 10, 4), 0.25)
    labeled, ones = np.array([[True, True, False]]), np.ones((1, 3, 4))
    assert float(balance(mass(even, group, 3), ones, labeled)[0]) < 1e-9
    assert float(balance(mass(even, group, 3, False), ones, labeled)[0]) > 0.1


def test_unlabeled_groups_take_no_part():
    mass_MRGN = np.random.default_rng(0).dirichlet(np.ones(4), (2, 1, 3)).astype(np.float32)
    coefficient = np.ones((1, 3, 4), np.float32)
    some = balance(mass_MRGN, coefficient, np.array([[True, False, True]]))
    np.testing.assert_allclose(
        some, balance(mass_MRGN[:, :, [0, 2]], coefficient[:, :2], np.ones((1, 2), bool)), rtol=1e-5
    )
    z = mass_MRGN[0, 0, [0, 2]].ravel()
    assert float(some[0]) == pytest.approx(z.var(ddof=1) / z.mean() ** 2, rel=1e-5)
    none = jax.value_and_grad(lambda m: jnp.sum(balance(m, coefficient, np.zeros((1, 3), bool))))(mass_MRGN)
    assert float(none[0]) == 0 and not np.any(none[1])


def test_variation():
    share = np.array(
        [[[[0.25] * 4, [0.25] * 4]], [[[1, 0, 0, 0], [1, 0, 0, 0]]], [[[1, 0, 0, 0], [0, 1, 0, 0]]]], np.float32
    )
    np.testing.assert_allclose(variation(share, np.ones((1, 2), bool)), [0, np.sqrt(3), 1], atol=1e-6)
    np.testing.assert_allclose(variation(share, np.array([[True, False]]))[2], np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "squared"}, "balance form is 'squared'; choose paper or code"),
        ({"reduce": "max"}, "balance reduce is 'max'; choose mean or sum"),
        ({"beta": -1.0}, "beta is -1.0 and delta 0.1; beta is at least 0, delta from 0 to 1"),
        ({"delta": 1.5}, "delta 1.5"),
        ({"expert_types": ()}, r"expert_types is \(\); give the type that each expert serves"),
    ],
)
def test_values_that_no_constraint_can_have(arguments, message):
    with pytest.raises(ValueError, match=message):
        Balance(**({"expert_types": (0, 1)} | arguments))


def test_an_odd_number_of_experts_makes_no_equal_groups():
    with pytest.raises(
        ValueError, match="adapter.experts is 7, which does not make two equal groups; make it even or set"
    ):
        equal_groups(7)
    assert equal_groups(3, exactly=False) == (0, 0, 1) and equal_groups(1, exactly=False) == (0,)


# --- in an objective ---------------------------------------------------------------------------------------------------


def labeled_forest(seed=0):
    """Eight pairs of two types in four rows, with padding."""
    random = np.random.default_rng(seed)

    def ids(most):
        return random.integers(1, 97, random.integers(2, most)).astype(np.int32)

    rows = [
        [Tree(ids(5), (ids(6), ids(6)), np.array([0.0, 1.0]), type=(r + g) % 2) for g in range(2)] for r in range(4)
    ]
    return fill(ForestShape(4, 32, 2, 2), rows)


TWO = Balance((0, 0, 1, 1), beta=0.5, delta=0.2)


@pytest.fixture(scope="module")
def adapted_model():
    model, params = started(small(adapter=experts(experts=4)))
    return model, moved(params, scale=0.3)


FOCAL, SMOOTHED = ({"loss": "focal", "penalty": "squared", "penalty_weight": 0.1}, {"label_smoothing": 0.2})


@pytest.mark.parametrize(
    "build",
    [
        preference,
        language_model,
        functools.partial(preference, **FOCAL),
        functools.partial(preference, loss="listwise"),
        functools.partial(preference, **SMOOTHED),
    ],
    ids=["preference", "language_model", "focal, penalty", "listwise", "smoothed"],
)
def test_the_constraint_stands_beside_the_mean_loss(adapted_model, build):
    model, params = adapted_model
    forest = labeled_forest()
    if build is language_model:
        forest = forest.replace(target_weight_RT=(forest.group_RT > 0).astype(np.float32))
    key = jax.random.key(0)
    plain = jax.jit(build(model))(params, forest, key)
    full = jax.jit(balanced(build, model, TWO))(params, forest, key)
    value = float(full["balance"][0] / full["balance"][1])
    assert value > 1e-3
    assert float(full["loss"][0] / full["loss"][1]) == pytest.approx(
        float(plain["loss"][0] / plain["loss"][1]) + 0.5 * value
    )
    assert plain.keys() < full.keys()
    for t in range(2):
        shares = [full[f"routing/type{t}/expert{n}"] for n in range(4)]
        assert [float(count) for _, count in shares] == [4.0] * 4
        assert sum(float(total) for total, _ in shares) == pytest.approx(4.0, rel=1e-5)


def test_forms_and_reductions_reach_the_loss(adapted_model):
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (6, 4, 32)).astype(np.float32)
    forest = labeled_forest()

    def value(**changes):
        return float(balance_of(weights, forest, Balance((0, 0, 1, 1), **changes)))

    assert value(reduce="sum") == pytest.approx(6 * value(), rel=1e-5)
    assert value(form="paper") < value() and value(form="paper", length_normalized=False) > value(form="paper")
    assert value(delta=0.9) > value(delta=0.0)


def test_unlabeled_data_is_measured_and_not_constrained(adapted_model):
    model, params = adapted_model
    forest = labeled_forest()
    forest = forest.replace(type_RG=np.full_like(forest.type_RG, -1))
    terms = jax.jit(balanced(preference, model, TWO))(params, forest, jax.random.key(0))
    assert float(terms["balance"][0]) == 0 and float(terms["routing/variation"][0]) > 0
    assert float(terms["routing/type0/expert0"][1]) == 0


def test_gradients_are_those_of_adapter_and_head_only(adapted_model):
    model, params = adapted_model
    trainable, frozen = split(params, r"/lora_\w+$|^head/")
    form = gradient.plain(balanced(preference, model, TWO))
    found, _ = jax.jit(form)(trainable, frozen, labeled_forest(), jax.random.key(0))
    assert {p.split("/")[-1] for p in flat(found)} == {"lora_a", "lora_b", "lora_router", "kernel"}
    assert [p for p in flat(found) if p.endswith("kernel")] == ["head/kernel"]
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(found))
    moments = optax.adamw(1e-3).init(trainable)
    assert sum(x.size for x in jax.tree.leaves(moments)) == 2 * sum(x.size for x in jax.tree.leaves(trainable)) + 1
    assert flat(merge(trainable, frozen)).keys() == flat(params).keys()


@pytest.mark.slow
def test_the_constraint_moves_the_routers_at_the_start():
    """At B = 0 the task gives them no gradient."""
    model, params = started(small(adapter=experts(experts=4)))

    def slope(balance):
        form = gradient.plain(balanced(preference, model, balance))
        found, _ = jax.jit(form)(*split(params, "lora_router|head"), labeled_forest(), jax.random.key(0))
        return max(float(jnp.abs(x).max()) for p, x in flat(found).items() if p.endswith("lora_router"))

    assert slope(Balance((0, 0, 1, 1), beta=0.0)) == 0 < slope(TWO)


@pytest.mark.slow
def test_training_tilts_the_routers_toward_the_experts_that_serve_a_type(adapted_model):
    model, params = adapted_model
    build = functools.partial(preference, loss="bradley_terry")
    form = gradient.plain(balanced(build, model, Balance((0, 0, 1, 1), beta=10.0, delta=0.5)))
    moving, frozen = split(params, "lora_router")
    update, forest = optax.adam(0.02), labeled_forest()

    @jax.jit
    def step(moving, state):
        found, terms = form(moving, frozen, forest, jax.random.key(0))
        change, state = update.update(found, state)
        return optax.apply_updates(moving, change), state, terms

    state = update.init(moving)
    for _ in range(200):  # to 0.73 of 0.75; at larger rates the path depends on rounding
        moving, state, terms = step(moving, state)
    share = {name: float(a / b) for name, (a, b) in terms.items() if name.startswith("routing/type")}
    for t in range(2):
        own = sum(share[f"routing/type{t}/expert{n}"] for n in range(4) if n // 2 == t)
        assert own > 0.65


def test_another_number_of_experts_than_of_their_types(adapted_model):
    model, _ = adapted_model
    with pytest.raises(ValueError, match="a LoRAMoE adapter with 6 experts"):
        balanced(preference, model, Balance(equal_groups(6)))
    with pytest.raises(ValueError, match="the model's adapter is None"):
        balanced(preference, SimpleNamespace(config=small()), TWO)
