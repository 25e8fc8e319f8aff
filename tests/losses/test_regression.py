"""Regression on scores, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.regression import regression


def test_the_mean_over_branches_that_have_a_score():
    rewards = jnp.asarray([[[1.0, 2.0, math.nan], [5.0, 6.0, 7.0]]])
    scores = jnp.asarray([[[0.0, 4.0, math.inf], [math.inf] * 3]])
    values, slopes = regression(rewards, scores), jax.grad(lambda r: jnp.sum(regression(r, scores)))(rewards)
    assert values.tolist() == [[pytest.approx(2.5), 0.0]]
    np.testing.assert_allclose(slopes[0], [[1, -2, 0], [0, 0, 0]])
