"""Objectives: what the terms are, and that the first loss of the compiled step is ln 2."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rmjax.data.columns import tree_columns
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.record import Comparison
from rmjax.data.votes import Order
from rmjax.methods.language_model import language_model
from rmjax.methods.preference import preference

LN_2 = np.log(np.float32(2))
KEY = jax.random.key(0)


def giving(output):
    """A model whose rewards or logits are these."""
    return SimpleNamespace(apply=lambda variables, forest, **_: np.asarray(output, np.float32))


def mean(term) -> float:
    return float(term[0] / term[1])


def terms_of(forest, rewards, *args, **kwargs):
    form = preference(giving(rewards), *args, **kwargs)
    return jax.device_get(jax.jit(form)({}, forest, KEY))


def random_rewards(forest, seed=0):
    """Rewards of a forest, 0 where a leaf is absent, and those of the groups that are there."""
    present = forest.readout_RGN >= 0
    rewards = np.where(present, np.random.default_rng(seed).standard_normal(present.shape), 0).astype(np.float32)
    return rewards, rewards[present].reshape(np.sum(present[..., 0]), -1)


@pytest.mark.parametrize(("loss", "leaves"), [("bradley_terry", 4), ("focal", 3), ("listwise", 2)])
def test_equal_rewards_lose_ln_2_exactly(forest, loss, leaves):
    batch = forest([2, 2], leaves)
    terms = terms_of(batch, np.zeros(batch.readout_RGN.shape), loss)
    assert terms["loss"][1] == 4
    assert terms["loss"][0] / terms["loss"][1] == LN_2
    assert mean(terms["accuracy"]) == 0.5 and mean(terms["ties"]) == 1.0


def test_the_first_loss_of_the_compiled_step_is_ln_2_exactly(learned):
    first = learned.terms[0]
    assert first["loss"][1] == 32
    # Every pair loses ln 2 exactly (above); that of 32 added up is rounded.
    assert mean(first["loss"]) == pytest.approx(LN_2, rel=1e-6)
    assert mean(first["reward_mean"]) == mean(first["reward_square"]) == mean(first["margin"]) == 0.0
    assert mean(first["accuracy"]) == 0.5 and mean(first["ties"]) == 1.0
    assert mean(learned.terms[1]["loss"]) < LN_2


def test_learns_32_pairs_by_heart(learned):
    assert learned.terms[-1]["accuracy"] == (32.0, 32.0)
    assert mean(learned.terms[-1]["loss"]) < 0.05


def test_terms_are_those_of_the_rewards(forest):
    batch = forest([1, 3, 0, 2], branches=3, seed=1)
    rewards, there = random_rewards(batch)
    terms = terms_of(batch, rewards)
    better, worse = there[:, [0, 0, 1]], there[:, [1, 2, 2]]
    assert mean(terms["loss"]) == pytest.approx(np.mean(np.log1p(np.exp(worse - better))), rel=1e-5)
    assert terms["accuracy"] == (np.sum(better > worse), 18) and terms["ties"][0] == 0
    assert mean(terms["margin"]) == pytest.approx(np.mean(better - worse), rel=1e-4)
    assert mean(terms["reward_mean"]) == pytest.approx(np.mean(there), rel=1e-4)
    assert mean(terms["reward_square"]) == pytest.approx(np.mean(there**2), rel=1e-4)


def test_token_counts(trees, lay_out):
    rows = trees([1, 3, 0, 2], branches=3, seed=1)
    batch = lay_out(rows)
    terms = terms_of(batch, np.zeros(batch.readout_RGN.shape))
    every = [tree for row in rows for tree in row]
    real, apart = sum(t.size for t in every), sum(len(t.prefix) + len(leaf) for t in every for leaf in t.branches)
    assert terms["pad_fraction"] == (4 * 64 - real, 4 * 64)
    assert terms["sharing_factor"] == (apart, real)


def test_ties_count_half(forest):
    batch = forest([1], branches=3)
    rewards = np.zeros(batch.readout_RGN.shape)
    rewards[0, 0, :3] = 1.0, 1.0, 0.0
    terms = terms_of(batch, rewards)
    assert terms["accuracy"] == (2.5, 3.0) and terms["ties"] == (1.0, 3.0)


def test_weights_weigh_groups_and_unranked_groups_count_nothing(forest):
    batch = forest([2, 2], seed=2)
    batch.ranks_RGN[0, 1] = np.inf
    batch.weight_RG[:, :2] = [[3.0, 9.0], [1.0, 0.0]]
    rewards, there = random_rewards(batch)
    terms = terms_of(batch, rewards)
    losses = np.log1p(np.exp(there[:, 1] - there[:, 0]))
    assert terms["loss"][1] == 4.0
    assert mean(terms["loss"]) == pytest.approx((3 * losses[0] + losses[2]) / 4, rel=1e-5)
    assert terms["accuracy"][1] == 3 and terms["reward_mean"][1] == 8


def test_a_penalty_is_added_with_its_weight(forest):
    batch = forest([2, 1], seed=4)
    rewards, there = random_rewards(batch)
    plain, fined = terms_of(batch, rewards), terms_of(batch, rewards, penalty="squared", penalty_weight=0.25)
    assert mean(fined["penalty"]) == pytest.approx(np.mean(there**2), rel=1e-5)
    assert mean(fined["loss"]) == pytest.approx(mean(plain["loss"]) + 0.25 * np.mean(there**2), rel=1e-5)


def test_votes_are_soft_labels_from_the_record_to_the_loss():
    order = Order("votes", "weight")
    voted = [
        Comparison("p", ("a", "b"), votes=votes)
        for votes in (((1, 0),) * 4, ((1, 0),) * 3 + ((0, 1),), ((1, 0), (0, 1)))
    ]
    columns = [tree_columns(order.apply(c).columns, [[5, 1], [6, 1]], list, "") for c in voted]
    trees = [Tree.from_sequences([[5, 1], [6, 1]], [np.inf] * 2, columns=found) for found in columns]
    batch = fill(ForestShape(1, 12, 3, 2, order.columns), [trees])
    assert batch.target_RGNN[0, :, 0, 1].tolist() == [1, 0.75, 0.5] and batch.weight_RGNN[0, :, 0, 1].tolist() == [
        1,
        0.5,
        0,
    ]
    terms = terms_of(batch, [[[1.0, 0.0]] * 3])
    losses = np.log1p(np.exp(-1)) + np.array([0, 0.25])  # −log σ(1) + (1 − p) · 1; what is split in half weighs nothing
    assert terms["loss"] == pytest.approx((losses[0] + losses[1] / 2, 1.5), rel=1e-6)
    assert terms["accuracy"] == (2, 2)


def test_language_model_loss_is_that_of_the_learned_tokens():
    two = [Tree.for_language_model([5, 9, 2, 7, 7, 1], 3), Tree.for_language_model([3, 4], 1)]
    batch = fill(ForestShape(1, 12, 2, 1), [two])
    logits = np.random.default_rng(0).standard_normal((1, 12, 10))
    terms = jax.device_get(language_model(giving(logits))({}, batch, KEY))
    log_probs = logits[0] - np.log(np.sum(np.exp(logits[0]), axis=-1, keepdims=True))
    wanted = [log_probs[2, 7], log_probs[3, 7], log_probs[4, 1], log_probs[6, 4]]
    assert terms["loss"][1] == 4
    assert mean(terms["loss"]) == pytest.approx(-np.mean(wanted), rel=1e-5)
    assert terms["pad_fraction"] == (4, 12) and terms["sharing_factor"] == (8, 8)
