"""The distribution of |Δr|."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.evaluate.gaps import describe_gaps, gap_fractions, reward_gaps
from rmjax.losses import difference


def test_gaps_are_those_within_a_group():
    np.testing.assert_allclose(reward_gaps([[0.0, 1.0, 3.0], [10.0, 8.0], [5.0]]), [1, 3, 2, 2])


def test_described_by_hand():
    found = describe_gaps([[0.0, 1.0, 3.0], [10.0, 8.0]])
    assert found["gap_mean"] == 2.0 and found["gap_50"] == 2.0
    assert found["gap_10"] == pytest.approx(1.3) and found["gap_90"] == pytest.approx(2.7)
    assert found["gap_share"] == pytest.approx(2.0 / np.std([0, 1, 3, 10, 8]))


def test_the_rescaled_difference_is_that_of_the_loss():
    scores = [[0.0, 1.0, 3.0], [math.log(3), 0.0, 0.0]]
    rewards, present = jnp.asarray([scores]), jnp.ones((1, 2, 3), bool)
    wanted = difference.rescaled(difference.difference(rewards, present), present).mean()
    assert describe_gaps(scores)["difference_rescaled"] == pytest.approx(float(wanted), rel=1e-5)


def test_fractions_by_size_do_not_depend_on_the_scale():
    found = gap_fractions([0.0, 0.15, 1.25, 2.0])
    assert np.flatnonzero(found).tolist() == [0, 1, 12, 19] and set(found) == {0.0, 0.25}
    assert gap_fractions([0.0, 0.6, 5.0, 8.0]) == found and gap_fractions([0.0, 0.0])[0] == 1.0


def test_equal_rewards_have_no_share():
    assert describe_gaps([[1.0, 1.0]])["gap_share"] == 0.0
