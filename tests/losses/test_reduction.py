"""The one reducer: sums and counts that may be added up before they are divided."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmjax.losses.reduction import mean, total


def test_by_hand():
    values, where = jnp.float32([[1, 2], [4, 8]]), jnp.asarray([[True, False], [True, True]])
    assert [float(x) for x in total(values, where)] == [13, 3]
    assert float(mean(total(values, where))) == pytest.approx(13 / 3)
    assert [float(x) for x in total(values, jnp.float32([[0.5, 0], [2, 1]]))] == [16.5, 3.5]


def test_nothing_counted_is_zero_and_not_nan():
    term = total(jnp.float32([1, math.nan]), jnp.asarray([False, False]))
    assert [float(x) for x in term] == [0, 0]
    assert float(mean(term)) == 0


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf])
def test_what_is_masked_out_reaches_neither_value_nor_gradient(hidden):
    def objective(values):
        return mean(total(values, jnp.asarray([1.0, 0.0, 2.0])))

    value, slopes = jax.value_and_grad(objective)(jnp.float32([3, hidden, 6]))
    assert float(value) == pytest.approx(5)
    np.testing.assert_allclose(slopes, [1 / 3, 0, 2 / 3], rtol=1e-6)


def test_what_is_counted_is_not_hidden():
    assert math.isnan(mean(total(jnp.float32([1, math.nan]), jnp.ones(2))))


def test_sums_are_fp32():
    value, count = total(jnp.full(4096, 1.0, jnp.bfloat16), jnp.ones(4096, bool))
    assert value.dtype == count.dtype == jnp.float32
    assert (float(value), float(count)) == (4096, 4096)  # bf16 would stop at 256


@settings(deadline=None, max_examples=30)
@given(
    values=hnp.arrays(np.float32, 12, elements=st.integers(-100, 100).map(float)),
    weights=hnp.arrays(np.float32, 12, elements=st.integers(0, 3).map(float)),
    cut=st.integers(0, 12),
)
def test_uneven_parts_add_up_to_the_whole(values, weights, cut):
    """Microbatches and devices have different counts: terms are added, and divided once."""
    whole = mean(total(values, weights))
    parts = [total(values[s], weights[s]) for s in (slice(0, cut), slice(cut, None))]
    added = mean((parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
    assert float(added) == pytest.approx(float(whole), rel=1e-6)
    if weights.sum():
        assert float(whole) == pytest.approx(np.average(values, weights=weights), rel=1e-5, abs=1e-5)
