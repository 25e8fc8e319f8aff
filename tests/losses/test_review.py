"""Peer review: selections by hand, what they have in common with flips, and the noise rate from margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.review import REVIEWS, diagnostics, flipped_fraction, selections, smallest

KEY = jax.random.key(0)
LOSSES = jnp.asarray([[[0.1, 0.9, 0.2, 9.0]], [[0.8, 0.3, 0.7, 9.0]]])  # two models, one row, the last group absent
USABLE = jnp.asarray([[True, True, True, False]])


def kept(review, discard, losses=LOSSES):
    return selections(losses, USABLE, jnp.float32(discard), review, KEY).astype(int).tolist()


def test_each_model_gets_what_the_other_one_finds_easy():
    own = [[[1, 0, 1, 0]], [[0, 1, 1, 0]]]
    assert kept("self", 1 / 3) == own
    assert kept("peer", 1 / 3) == own[::-1]
    assert kept("none", 1 / 3) == [USABLE.astype(int).tolist()] * 2


@pytest.mark.parametrize("review", REVIEWS)
def test_without_noise_both_see_the_whole_batch(review):
    assert kept(review, 0.0) == [USABLE.astype(int).tolist()] * 2


@pytest.mark.parametrize(("discard", "count"), [(0.0, 10), (0.04, 10), (0.2, 8), (0.5, 5), (1.0, 0)])
def test_how_many_are_kept(discard, count):
    losses = jnp.asarray(np.random.default_rng(0).random((2, 8)), jnp.float32)
    usable = jnp.arange(16).reshape(2, 8) < 10
    found = np.asarray(smallest(losses, usable, jnp.float32(discard)))
    assert found.sum() == count and not (found & ~np.asarray(usable)).any()
    assert losses[found].max(initial=0) <= losses[np.asarray(usable) & ~found].min(initial=np.inf)
    assert not np.asarray(smallest(losses, 0 * usable > 1, jnp.float32(discard))).any()


def test_by_chance_the_models_differ_and_keep_as_many():
    usable = jnp.ones((2, 8), bool)
    first, second = np.asarray(selections(jnp.zeros((2, 2, 8)), usable, jnp.float32(0.25), "random", KEY))
    assert first.sum() == second.sum() == 12 and (first != second).any()


def test_diagnostics_by_hand():
    masks = jnp.asarray([[[1, 0, 1, 0]], [[0, 1, 1, 0]]], bool)
    found = diagnostics(masks, USABLE, jnp.asarray([[0.0, 1.0, -1.0, -1.0]]))
    assert {name: (float(a), float(b)) for name, (a, b) in found.items()} == {
        "jaccard": (1, 3),
        "discarded": (2, 6),
        "discard_precision": (1, 2),  # the first leaves out the flipped one, the second the other known one
        "discard_recall": (1, 2),
        "flipped": (1, 2),
    }


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.45])
def test_the_noise_rate_from_margins(rate):
    random = np.random.default_rng(1)
    signs = np.where(random.random(4000) < rate, -1, 1)
    margins = signs * random.normal(2.0, 0.8, 4000)
    assert flipped_fraction(margins) == pytest.approx(np.mean(margins < 0), abs=0.01)


def test_margins_that_say_nothing():
    assert flipped_fraction(np.zeros(10)) == flipped_fraction(np.ones(1)) == 0.0
    assert np.isfinite(flipped_fraction(np.ones(10))) and flipped_fraction(np.full(10, 2.0)) < 0.01
