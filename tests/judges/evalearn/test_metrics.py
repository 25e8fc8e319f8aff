"""EvaLearn's figures on known vectors, and chance by enumeration."""

import itertools

import numpy as np
import pytest

from rmjax.judges.evalearn import metrics
from rmjax.judges.evalearn.metrics import Outcomes, summarize

TOY = np.array([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
TYPES = ("A", "A", "B")
EVERY = np.array(list(itertools.product((0, 1), repeat=7)))


def test_the_toy_vector():
    figures = summarize(Outcomes(TOY, TYPES))["figures"]
    value = {(name, average): figures[name][average]["value"] for name in figures for average in metrics.AVERAGES}
    assert value["accuracy", "micro"] == pytest.approx(10 / 21)
    assert value["slope", "macro"] == pytest.approx(0.0714, abs=5e-5)
    assert value["slope", "micro"] == pytest.approx(0.0952, abs=5e-5)
    assert (value["first", "macro"], value["first", "micro"]) == (5.25, pytest.approx(13 / 3))
    assert (value["consecutive", "macro"], value["consecutive", "micro"]) == (2.0, pytest.approx(8 / 3))
    assert value["late", "micro"] == pytest.approx(0.5833, abs=5e-5)
    assert {name: figure["official"] for name, figure in figures.items()} == {
        "accuracy": "micro", "slope": "macro", "first": "macro", "consecutive": "macro", "late": "micro",
    }  # fmt: skip


def test_the_slope_is_that_of_the_mean_curve():
    found = summarize(Outcomes(TOY, TYPES))
    for average in metrics.AVERAGES:
        fitted = np.polyfit(np.arange(7), found["curve"][average], 1)[0]
        assert found["figures"]["slope"][average]["value"] == pytest.approx(fitted)


@pytest.mark.parametrize(
    ("p", "first", "consecutive"),
    [
        (0.1, 5.695, 0.581), (0.2, 4.161, 1.023), (0.3, 3.141, 1.428), (0.4, 2.458, 1.856), (0.5, 1.992, 2.344),
        (0.6, 1.666, 2.922), (0.7, 1.428, 3.624), (0.8, 1.250, 4.493), (0.9, 1.111, 5.590),
    ],
)  # fmt: skip
def test_chance_of_independent_answers(p, first, consecutive):
    assert metrics.bernoulli(lambda s: metrics.shuffled_first(7, s), 7, p) == pytest.approx(first, abs=5e-4)
    assert metrics.bernoulli(lambda s: metrics.shuffled_consecutive(7, s), 7, p) == pytest.approx(consecutive, abs=5e-4)


@pytest.mark.parametrize("right", range(8))
def test_chance_of_shuffled_sequences_by_enumeration(right):
    of_right = EVERY[EVERY.sum(1) == right]
    assert metrics.shuffled_first(7, right) == pytest.approx(metrics.first(of_right).mean())
    assert metrics.shuffled_consecutive(7, right) == pytest.approx(metrics.consecutive(of_right).mean())
    for start in (1, 4, 7):
        zero = np.ones_like(of_right)
        zero[:, start - 1] = 0
        assert metrics.shuffled_first(7, right, start) == pytest.approx(metrics.offset(of_right, zero).mean())


def test_all_sequences_together_are_chance():
    figures = summarize(Outcomes(EVERY, ("one",) * len(EVERY)))["figures"]
    for name, figure in figures.items():
        assert figure["micro"]["above_shuffled"]["value"] == pytest.approx(0), name
        assert figure["micro"]["value"] == pytest.approx(figure["micro"]["bernoulli"]), name


def test_offset_starts_at_the_first_failure_alone():
    right = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    alone = np.array([[1, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    assert metrics.offset(right, alone).tolist()[:3] == [2.0, 4.0, 2.0] and np.isnan(metrics.offset(right, alone)[3])
    found = summarize(Outcomes(right, ("a",) * 4, alone, late=1))["figures"]["offset"]
    assert found["micro"]["value"] == pytest.approx(8 / 3) and found["micro"]["n"] == 3


def test_a_learner_is_above_the_shuffled_null_and_the_error_of_the_slope():
    rng = np.random.default_rng(0)
    learner = (rng.random((60, 7)) < np.linspace(0.1, 0.9, 7)).astype(int)
    constant = (rng.random((60, 7)) < 0.5).astype(int)
    up, flat = (summarize(Outcomes(y, ("a",) * 60)) for y in (learner, constant))
    assert up["figures"]["slope"]["macro"]["above_shuffled"]["low"] > 0
    assert up["figures"]["first"]["macro"]["above_shuffled"]["low"] > 0  # it begins later than its accuracy says
    flat_slope = flat["figures"]["slope"]["macro"]["above_shuffled"]
    assert flat_slope["low"] < 0 < flat_slope["high"]
    assert flat["slope_error"] == pytest.approx(np.sqrt(0.25 / (28 * 60)), rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), ("a",)), "want .N, M. and N types"),
        ((np.full((1, 3), 2), ("a",)), "other than 0 and 1"),
        ((np.full((1, 3), np.nan), ("a",)), "other than 0 and 1"),
        ((np.zeros((1, 3)), ("a",), np.zeros((1, 2))), "zero_shot has shape"),
        ((np.zeros((1, 3)), ("a",), None, 3), "leaves none of 3 positions"),
    ],
)
def test_what_is_no_outcome(arguments, message):
    with pytest.raises(ValueError, match=message):
        Outcomes(*arguments)
