"""Early stopping: the two rules on histories by hand."""

import pytest

from rmjax.study.stopping import halving, median


def rising(*values, every=10):
    return [(every * (i + 1), value) for i, value in enumerate(values)]


OTHERS = {"a": rising(0.5, 0.6, 0.7), "b": rising(0.4, 0.5, 0.6), "c": rising(0.6, 0.7, 0.8)}


@pytest.mark.parametrize(
    ("history", "after", "stopped"),
    [
        (rising(0.3, 0.4), 1, True),  # best 0.4 against means 0.55, 0.45, 0.65 up to step 20: median 0.55
        (rising(0.3, 0.56), 1, False),
        (rising(0.3, 0.4), 30, False),  # too early
        (rising(0.3, 0.4, 0.3, 0.2), 1, False),  # step 40: nobody else has come as far
        ([], 1, False),
    ],
)
def test_median(history, after, stopped):
    found = median(after)("x", OTHERS | {"x": history})
    assert bool(found) == stopped
    if stopped:
        assert found == "best 0.4 up to step 20, below the median 0.55 of 3"


def test_median_needs_others():
    assert median(1)("x", {"x": rising(0.1), "a": rising(0.9), "b": rising(0.9)}) is None


@pytest.mark.parametrize(
    ("own", "stopped"),
    [
        (rising(0.9, 0.1), None),  # best at the first rung, alone at the second
        (rising(0.55), "place 2 of 4 at step 10, where the best 1 go on"),
        (rising(0.55, every=20), "place 2 of 4 at step 10, where the best 1 go on"),  # logged later: its first value
        (rising(0.1, every=5), None),  # step 5: below the first rung
        ([], None),
    ],
)
def test_halving(own, stopped):
    assert halving(10)("x", OTHERS | {"x": own}) == stopped


def test_halving_keeps_whoever_comes_first():
    rule = halving(10, 2)
    assert rule("x", {"x": rising(0.1)}) is None
    assert rule("y", {"x": rising(0.1), "y": rising(0.0)}) == "place 2 of 2 at step 10, where the best 1 go on"


@pytest.mark.parametrize(("first", "factor"), [(0, 3), (5, 1)])
def test_a_rule_that_means_nothing(first, factor):
    with pytest.raises(ValueError, match="give a step of 1 or more and a factor of 2 or more"):
        halving(first, factor)


def test_a_rung_is_passed_once():
    rule, others = halving(10, 2), {"a": rising(0.9), "b": rising(0.9)}
    assert rule("x", {"x": rising(0.1)}) is None
    assert rule("x", {"x": rising(0.1), **others}) is None  # when it came there nobody else had been there
    assert rule("x", {"x": rising(0.1, 0.1), "a": rising(0.9, 0.9), "b": rising(0.9, 0.9)}) == (
        "place 3 of 3 at step 20, where the best 1 go on"
    )


def test_nan_is_the_worst():
    nan = {"x": rising(float("nan"), float("nan"))}
    assert "below the median" in median(1)("x", OTHERS | nan) and halving(10)("x", OTHERS | nan) is not None
    assert median(1)("y", OTHERS | nan | {"y": rising(0.3, 0.4)}) is not None
    with pytest.raises(ValueError, match="the median rule from step 0; give the step, 1 or more"):
        median(0)
