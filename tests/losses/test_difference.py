"""The difference loss: values by hand, its bounds, what changes nothing, and where it has no gradient."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmjax.losses.difference import bounds, difference, gaps, pairs, rescaled, several
from rmjax.losses.reduction import mean, total


def group(rewards, present=None) -> tuple[jax.Array, jax.Array]:
    """One group, as [1, 1, N] arrays."""
    present = [True] * len(rewards) if present is None else present
    return jnp.asarray([[rewards]], jnp.float32), jnp.asarray([[present]])


def value(rewards, present=None) -> float:
    return float(difference(*group(rewards, present))[0, 0])


def slopes(rewards, present=None) -> np.ndarray:
    rewards, present = group(rewards, present)
    return np.asarray(jax.grad(lambda r: jnp.sum(difference(r, present)))(rewards))[0, 0]


def as_printed(rewards) -> float:
    """Equation 2, in Python's own arithmetic."""
    k = len(rewards)
    return 2 / k**2 * sum(1 / (1 + math.exp(-abs(a - b))) for a, b in itertools.combinations(rewards, 2))


# --- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([0.0, math.log(3)], 0.375),  # 2/4 · ¾
        ([math.log(3), 0.0], 0.375),
        ([0.0, 0.0], 0.25),
        ([1.0, 1.0, 1.0], 1 / 3),  # 2/9 · 3 · ½
        ([0.0, math.log(3), math.log(9)], 2 / 9 * (0.75 + 0.75 + 0.9)),
        ([0.0] * 5, 0.4),
        ([0.0, 0.5, -1.0, 2.0, 3.5], 0.68415100),
        ([7.0], 0.0),
    ],
)
def test_by_hand(rewards, wanted):
    assert value(rewards) == pytest.approx(wanted, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(rewards=st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=2, max_size=5))
def test_is_the_printed_formula_for_any_k(rewards):
    assert value(rewards) == pytest.approx(as_printed(rewards), rel=1e-5)


def test_gradient_by_hand():
    # 2/4 · σ'(ln 3) = ½ · ¾ · ¼
    np.testing.assert_allclose(slopes([math.log(3), 0.0]), [0.09375, -0.09375], rtol=1e-5)


def test_ascent_moves_rewards_apart():
    """It is maximized: one step along the gradient raises it."""
    rewards = np.float32([0.1, -0.3, 0.2, 0.8])
    assert value(rewards + 0.1 * slopes(rewards)) > value(rewards)


# --- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "lower", "upper"), [(2, 0.25, 0.5), (3, 1 / 3, 2 / 3), (5, 0.4, 0.8), (1, 0, 0), (0, 0, 0)]
)
def test_bounds_by_hand(k, lower, upper):
    found = bounds(jnp.arange(5)[None, None] < k)
    assert [float(bound[0, 0]) for bound in found] == pytest.approx([lower, upper])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_bounds_are_those_of_equal_and_of_far_rewards(k):
    present = jnp.ones((1, 1, k), bool)
    lower, upper = (float(bound[0, 0]) for bound in bounds(present))
    assert value([1.5] * k) == pytest.approx(lower, rel=1e-6)
    assert value([100.0 * i for i in range(k)]) == pytest.approx(upper, rel=1e-6)
    for rewards, wanted in (([1.5] * k, 0.0), ([100.0 * i for i in range(k)], 1.0)):
        assert float(rescaled(difference(*group(rewards)), present)[0, 0]) == pytest.approx(wanted, abs=1e-5)


def test_the_rescaled_value_does_not_depend_on_k():
    """Pairwise equal gaps exist for k = 2 and 3 only up to sign; take groups of equal rewards and one outlier each."""
    two, three = group([0.0, 50.0]), group([0.0, 50.0, -50.0])
    for rewards, present in (two, three):
        assert float(rescaled(difference(rewards, present), present)[0, 0]) == pytest.approx(1.0, abs=1e-5)
    assert value([0.0, 50.0]) != pytest.approx(value([0.0, 50.0, -50.0]), abs=0.1)


def test_fewer_than_two_have_no_value_and_are_not_counted():
    present = jnp.asarray([[[True, False, False], [False] * 3, [True, True, False]]])
    rewards = jnp.asarray([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, math.log(3), 9.0]]])
    assert several(present).tolist() == [[False, False, True]]
    summed = total(difference(rewards, present), several(present))
    assert summed[1] == 1 and float(mean(summed)) == pytest.approx(0.375)
    for values in (difference(rewards, present), rescaled(difference(rewards, present), present)):
        assert values[0, :2].tolist() == [0.0, 0.0]


# --- what changes nothing ----------------------------------------------------------------------------------------------

some_rewards = hnp.arrays(np.float32, (2, 3, 4), elements=st.integers(-40, 40).map(lambda x: x / 8))
some_present = hnp.arrays(bool, (2, 3, 4))


@settings(deadline=None, max_examples=25)
@given(rewards=some_rewards, present=some_present, shift=st.integers(-16, 16))
def test_a_constant_added_to_all_rewards(rewards, present, shift):
    np.testing.assert_allclose(difference(rewards + shift, present), difference(rewards, present), rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(rewards=some_rewards, present=some_present, permutation=st.permutations(range(4)))
def test_the_order_of_the_leaves(rewards, present, permutation):
    mixed = difference(rewards[..., permutation], present[..., permutation])
    np.testing.assert_allclose(mixed, difference(rewards, present), rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(rewards=some_rewards, present=some_present)
def test_absent_leaves_and_other_groups(rewards, present):
    found = np.asarray(difference(rewards, present))
    junk = np.where(present, rewards, np.nan)
    np.testing.assert_array_equal(difference(junk, present), found)
    for r, g in np.ndindex(2, 3):
        there = rewards[r, g][present[r, g]]
        assert found[r, g] == pytest.approx(as_printed(there) if len(there) else 0.0, rel=1e-5)


@pytest.mark.parametrize("absent", [5.0, math.nan, math.inf])
def test_what_is_absent_has_no_gradient(absent):
    found = slopes([math.log(3), 0.0, absent], [True, True, False])
    np.testing.assert_allclose(found, [0.09375, -0.09375, 0], rtol=1e-5)


def test_pairs_are_each_counted_once():
    assert int(pairs(jnp.asarray([[[True, True, False, True]]])).sum()) == 3
    assert float(gaps(jnp.asarray([[[1.0, -0.5]]]))[0, 0, 0, 1]) == 1.5


# --- where the gradient is nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [0.0, -3.25])
def test_equal_rewards_have_no_gradient(reward):
    np.testing.assert_array_equal(slopes([reward] * 4), 0)


@pytest.mark.parametrize("gap", [100.0, 1e4])
def test_far_rewards_stay_finite_and_saturate(gap):
    assert value([gap, 0.0]) == pytest.approx(0.5)
    np.testing.assert_allclose(slopes([gap, 0.0]), 0, atol=1e-20)


def test_bf16_rewards_are_lifted_to_fp32():
    rewards, present = group([1.0, -0.5])
    found = difference(rewards.astype(jnp.bfloat16), present)
    assert found.dtype == jnp.float32 and float(found[0, 0]) == pytest.approx(as_printed([1.0, -0.5]), rel=1e-6)
