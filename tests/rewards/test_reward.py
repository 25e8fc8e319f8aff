"""Values and failures: nothing becomes a number that is none, nothing is dropped without being counted."""

import math

import pytest

from rmjax.data.record import Comparison
from rmjax.rewards.combine import Weighted, clipped, whitened
from rmjax.rewards.reward import Failure, RewardError, Verified, rewarded, value_of


class Fixed:
    """A reward that says what it was told."""

    name = "fixed"

    def __init__(self, *values):
        self.values = values

    def __call__(self, records):
        return [list(values) for values in self.values]


def records():
    return [
        Comparison("a", ("x", "y"), columns={"log_probs": ((1.0,), (2.0,))}, place="f:1"),
        Comparison("b", ("z",), place="f:2"),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, True, "1", 10**400, [1.0]])
def test_what_is_no_finite_number_is_a_failure(bad):
    assert isinstance(value_of(bad), Failure) and value_of(2) == 2.0


def test_outputs_without_a_reward_are_dropped_and_counted():
    kept, dropped = rewarded(records(), Fixed([Failure("late"), 0.5], [math.nan]))
    assert [(c.outputs, c.columns) for c in kept] == [(("y",), {"log_probs": ((2.0,),), "rewards": (0.5,)})]
    assert dropped == {"late": 1, "not finite": 1, "records without a reward": 1}
    kept, dropped = rewarded(records(), Fixed([0.0, -1], [2]))
    assert [c.columns["rewards"] for c in kept] == [(0.0, -1.0), (2.0,)] and not dropped


@pytest.mark.parametrize("values", [([1.0], [1.0]), ([1.0, 2.0],), ([1.0, 2.0, 3.0], [1.0])])
def test_another_number_of_values_is_an_error(values):
    with pytest.raises(RewardError, match="give one for each"):
        rewarded(records(), Fixed(*values))


def test_what_a_verifier_raises_fails_its_output_alone():
    def verify(prompt, output, references):
        return {"x": 1.0}[output]

    assert Verified("mine", verify)(records()) == [[1.0, Failure("KeyError")], [Failure("KeyError")]]


def test_a_sum_has_weights_and_fails_where_a_part_does():
    first, second = Fixed([1.0, 2.0], [3.0]), Fixed([10.0, Failure("late")], [0.0])
    whole = Weighted({"right": (first, 2.0), "short": (second, -0.5)})
    assert whole(records()) == [[-3.0, Failure("short: late")], [6.0]]
    assert whole.name == "2 right + -0.5 short" and whole.each(records())["right"] == [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize("parts", [{}, {"a": (Fixed(), math.nan)}])
def test_sums_that_say_nothing_are_refused(parts):
    with pytest.raises(ValueError, match="there is no part|weight of a is not finite"):
        Weighted(parts)


def test_clipping_and_whitening_are_asked_for_and_leave_failures():
    values = Fixed([-5.0, Failure("late")], [3.0])
    assert clipped(values, -1, 2)(records()) == [[-1.0, Failure("late")], [2.0]]
    assert whitened(values, eps=0.0)(records()) == [[-1.0, Failure("late")], [1.0]]
    assert whitened(Fixed([0.1, 0.1], [0.1]))(records()) == [[0.0, 0.0], [0.0]]
    assert whitened(Fixed([Failure("late")] * 2, [Failure("late")]))(records()) == [
        [Failure("late")] * 2,
        [Failure("late")],
    ]
    with pytest.raises(ValueError, match="want low < high"):
        clipped(values, 1, 1)
