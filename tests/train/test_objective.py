"""Objectives: the first loss is ln 2, and what the terms count."""

import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import make_mesh
from rmjax.train import gradient, objective
from rmjax.train.state import compile_step, initial_params, make_state, make_step, state_shardings

LN_2 = np.log(np.float32(2))
KEY = jax.random.key(0)


def mean(term) -> float:
    return float(term[0] / term[1])


def by_group(model, params, forest):
    """Rewards of the groups that are there, [group, leaf], in numpy."""
    rewards = np.asarray(model.apply({"params": params}, forest), np.float64)
    return rewards[np.asarray(forest.readout_RGN)[..., 0] >= 0]


@pytest.mark.parametrize(("loss", "leaves"), [("bradley_terry", 4), ("focal", 4), ("listwise", 2)])
def test_the_loss_of_a_zero_head_is_ln_2_exactly(model, boxed, forest, loss, leaves):
    terms = evaluate(model, nn.meta.unbox(boxed), forest([2, 2], leaves), loss)
    assert terms["loss"][1] == 4
    assert terms["loss"][0] / terms["loss"][1] == LN_2
    assert mean(terms["accuracy"]) == 0.5 and mean(terms["ties"]) == 1.0
    assert mean(terms["reward_mean"]) == mean(terms["reward_square"]) == mean(terms["margin"]) == 0.0


def test_the_first_loss_of_the_compiled_step_is_ln_2_exactly(learned):
    total, count = learned.terms[0]["loss"]
    assert count == 32
    assert total / count == LN_2
    assert learned.terms[1]["loss"][0] / count != LN_2


def test_learns_32_pairs_by_heart(learned):
    assert learned.terms[0]["accuracy"] == (16.0, 32.0)
    assert learned.terms[-1]["accuracy"] == (32.0, 32.0)
    assert mean(learned.terms[-1]["loss"]) < 0.05


def test_terms_are_those_of_the_rewards(model, params, forest):
    batch = forest([1, 3, 2], leaves=3, seed=1)
    terms = jax.device_get(objective.preference(model)(params, forest, KEY))
    rewards = by_group(model, params, forest)
    better, worse = rewards[:, [0, 0, 1]], rewards[:, [1, 2, 2]]
    assert mean(terms["loss"]) == pytest.approx(np.mean(np.log1p(np.exp(worse - better))), rel=1e-5)
    assert terms["accuracy"] == (np.sum(better > worse), 18)
    assert mean(terms["margin"]) == pytest.approx(np.mean(better - worse), rel=1e-4)
    assert mean(terms["reward_mean"]) == pytest.approx(np.mean(rewards), rel=1e-4)
    assert mean(terms["reward_square"]) == pytest.approx(np.mean(rewards**2), rel=1e-4)
    real = np.sum(np.asarray(forest.group_RT) > 0)
    assert mean(terms["pad_fraction"]) == pytest.approx(1 - real / forest.group_RT.size)
    assert terms["sharing_factor"][1] == real < terms["sharing_factor"][0]


def test_ties_count_half(model, params, random_trees, forest):
    tree = random_trees([1])[0][0]
    same = type(tree)(tree.prefix, (tree.leaves[0], tree.leaves[0]), tree.ranks, record=0)
    from rmjax.data.forest import ForestShape, fill

    forest = fill(ForestShape(1, 40, 1, 2), [[same]])
    terms = jax.device_get(objective.preference(model)(params, forest, KEY))
    assert terms["accuracy"] == (0.5, 1.0) and terms["ties"] == (1.0, 1.0)


def test_weights_weigh_groups_and_unranked_groups_count_nothing(model, params, forest):
    batch = forest([2, 2], seed=2)
    ranks = np.array(forest.ranks_RGN)
    ranks[0, 1] = np.inf
    weight = np.array([[3.0, 9.0], [1.0, 0.0]], np.float32)
    terms = jax.device_get(objective.preference(model)(params, forest.replace(ranks_RGN=ranks, weight_RG=weight), KEY))
    rewards = by_group(model, params, forest)
    losses = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0]))
    assert terms["loss"][1] == 4.0
    assert mean(terms["loss"]) == pytest.approx((3 * losses[0] + losses[2]) / 4, rel=1e-5)
    assert terms["accuracy"][1] == 3 and terms["reward_mean"][1] == 8


def test_a_penalty_is_added_with_its_weight(model, params, forest):
    batch = forest([2, 1], seed=4)
    plain, fined = (
        jax.device_get(objective.preference(model, penalty=name, penalty_weight=0.25)(params, forest, KEY))
        for name in ("", "squared")
    )
    squares = np.mean(by_group(model, params, forest) ** 2)
    assert mean(fined["penalty"]) == pytest.approx(squares, rel=1e-4)
    assert mean(fined["loss"]) == pytest.approx(mean(plain["loss"]) + 0.25 * squares, rel=1e-4)


def test_language_model_loss_is_that_of_the_learned_tokens(model, params):
    from rmjax.data.forest import ForestShape, Tree, fill

    ids = [5, 9, 2, 7, 7, 1]
    forest = fill(ForestShape(1, 12, 2, 1), [[Tree.for_language_model(ids, 3), Tree.for_language_model([3, 4], 1)]])
    terms = jax.device_get(objective.language_model(model)(params, forest, KEY))
    logits = np.asarray(model.apply({"params": params}, forest, method="logits"), np.float64)[0]
    log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    wanted = [log_probs[2, 7], log_probs[3, 7], log_probs[4, 1], log_probs[6, 4]]
    assert terms["loss"][1] == 4
    assert mean(terms["loss"]) == pytest.approx(-np.mean(wanted), rel=1e-5)
    assert math.isclose(mean(terms["pad_fraction"]), 4 / 12, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "bradley"}, "loss 'bradley' is unknown; choose one of bradley_terry, focal, listwise"),
        ({"penalty": "square"}, "penalty 'square' is unknown; choose one of log_barrier, squared"),
        ({"loss": "focal", "label_smoothing": 0.1}, "only the loss bradley_terry has it, not focal"),
    ],
)
def test_unknown_names(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        objective.preference(model, **arguments)
