"""Losses with ties: probabilities that add up, values by hand, and what they are without ties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.ranking import bradley_terry, order
from rmjax.losses.ties import TIES, davidson, rao_kupper, tied

every = pytest.mark.parametrize("loss", TIES.values(), ids=TIES.keys())


def cost(loss, rewards, ranks, tie=0.7, margin=0.0) -> float:
    rewards_RGN, ranks_RGN = jnp.asarray([[rewards]], jnp.float32), jnp.asarray([[ranks]], jnp.float32)
    ties_RGNN = tied({"ranks_RGN": ranks_RGN})
    return float(loss(rewards_RGN, order(ranks_RGN), jnp.full((1, 1), margin), ties_RGNN, tie)[0, 0])


def test_which_pairs_are_tied():
    ranks = {"ranks_RGN": jnp.asarray([[[0, 1, 1, math.inf, math.inf]]])}
    assert np.argwhere(tied(ranks)[0, 0]).tolist() == [[1, 2]]
    targets = {"target_RGNN": jnp.asarray([[[[-1, 0.5, 1], [0.5, -1, -1], [0, -1, -1]]]])}
    assert np.argwhere(tied(ranks | targets)[0, 0]).tolist() == [[0, 1]]


@every
@pytest.mark.parametrize("d", [-2.0, 0.0, 0.4])
def test_the_three_outcomes_of_a_pair_add_up_to_1(loss, d):
    outcomes = [math.exp(-cost(loss, [d, 0], ranks)) for ranks in ([0, 1], [1, 0], [0, 0])]
    assert sum(outcomes) == pytest.approx(1, rel=1e-6)


def test_values_by_hand():
    theta = math.exp(0.7)
    strong = math.e  # exp of the difference
    assert math.exp(-cost(rao_kupper, [1, 0], [0, 1])) == pytest.approx(strong / (strong + theta))
    draw = (theta**2 - 1) * strong / ((strong + theta) * (theta * strong + 1))
    assert math.exp(-cost(rao_kupper, [1, 0], [0, 0])) == pytest.approx(draw)
    total = strong + 1 + 0.7 * math.sqrt(strong)
    assert math.exp(-cost(davidson, [1, 0], [0, 1])) == pytest.approx(strong / total)
    assert math.exp(-cost(davidson, [1, 0], [0, 0])) == pytest.approx(0.7 * math.sqrt(strong) / total)
    assert math.exp(-cost(rao_kupper, [0, 0], [0, 0])) == pytest.approx(math.tanh(0.35))
    assert math.exp(-cost(davidson, [0, 0], [0, 0])) == pytest.approx(0.7 / 2.7)


@every
def test_without_ties_it_is_bradley_terry(loss):
    rewards, ranks = [1.0, -0.5, 0.25], [0, 1, 2]
    whole = bradley_terry(jnp.asarray([[rewards]]), order(jnp.asarray([[ranks]])), jnp.full((1, 1), 0.3))
    assert cost(loss, rewards, ranks, 1e-6, 0.3) == pytest.approx(float(whole[0, 0]), rel=1e-5)


@every
def test_a_tie_draws_rewards_together_and_takes_no_margin(loss):
    def tie_cost(rewards):
        ranks = jnp.zeros((1, 1, 2))
        return jnp.sum(loss(rewards, order(ranks), jnp.full((1, 1), 9.0), tied({"ranks_RGN": ranks}), 0.5))

    slopes = jax.grad(tie_cost)(jnp.asarray([[[1.0, -1.0]]]))[0, 0]
    assert slopes[0] > 0 > slopes[1]
    np.testing.assert_allclose(jax.grad(tie_cost)(jnp.ones((1, 1, 2))), 0, atol=1e-6)
    assert np.isfinite(jax.grad(tie_cost)(jnp.asarray([[[1e4, -1e4]]]))).all()
