"""rmjax/evaluate/calibration.py: known temperatures, and errors computed by hand."""

import math

import numpy as np
import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.calibration import calibrate, expected_error, temperature


def records(count):
    return [Comparison(f"p{i}", ("a", "b"), ranks=(0.0, 1.0)) for i in range(count)]


def drawn(count, scale, seed=0):
    """Margins that are right as often as σ of them says, reported `scale` times too large."""
    rng = np.random.default_rng(seed)
    sure = rng.exponential(1.0, count)
    return scale * np.where(rng.random(count) < 1 / (1 + np.exp(-sure)), sure, -sure)


def test_expected_error_by_hand():
    # Ten pairs, one a bin: confidence 0.75 each; nine right, one wrong.
    margins_P = math.log(3) + 1e-9 * np.arange(10)
    margins_P[0] *= -1
    assert expected_error(margins_P) == pytest.approx((9 * 0.25 + 0.75) / 10)
    assert expected_error(np.zeros(3)) == 0.0  # ties claim one half and earn it


def test_the_order_of_equal_confidences_does_not_matter():
    """As votes and word overlap have many: 73 of 100 right at a confidence of 0.75 are 0.02 off, in any order."""
    margins_P = np.repeat([math.log(3), -math.log(3)], [73, 27])
    for order in (np.arange(100), np.random.default_rng(0).permutation(100)):
        assert expected_error(margins_P[order]) == pytest.approx(0.02)
    found = calibrate(records(100), [[m, 0.0] for m in margins_P])
    assert found["ece"]["low"] <= found["ece"]["value"] <= found["ece"]["high"]
    assert [row["n"] for row in found["curve"]] == [100]


@pytest.mark.parametrize("scale", [0.25, 1.0, 5.0])
def test_the_temperature_undoes_a_scale(scale):
    assert temperature(drawn(20_000, scale)) == pytest.approx(scale, rel=0.06)


def test_no_temperature_where_every_pair_is_right_or_wrong():
    assert temperature(np.asarray([1.0, 2.0])) is None and temperature(np.asarray([-1.0, -2.0])) is None


def test_overconfidence_is_seen_and_mended_on_the_other_half():
    margins_P = drawn(2000, 4.0)
    found = calibrate(records(2000), [[m, 0.0] for m in margins_P])
    assert found["ece"]["low"] > 0.1 and found["held_out"]["ece"] < 0.06 < found["ece"]["value"]
    assert found["held_out"]["loss"] < found["loss"]["value"] and found["temperature"] == pytest.approx(4.0, rel=0.15)
    curve = found["curve"]
    assert [row["n"] for row in curve] == [200] * 10 and curve[0]["confidence"] < curve[-1]["confidence"]
    assert curve[-1]["accuracy"] < curve[-1]["confidence"]


def test_one_prompt_and_no_order():
    pair = Comparison("p", ("a", "b"), ranks=(0.0, 1.0))
    assert calibrate([pair], [[1.0, 0.0]])["held_out"] is None
    with pytest.raises(ValueError, match="no record has an order"):
        calibrate([Comparison("p", ("a", "b"))], [[1.0, 0.0]])
