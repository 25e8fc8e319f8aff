import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.evaluate.statistics import (
    benjamini_hochberg,
    combined,
    difference,
    interval,
    over_seeds,
    paired,
    ratio,
    sign_flips,
)


def test_nothing_to_average_has_no_value():
    assert interval([]) == {"value": None, "low": None, "high": None, "n": 0}


def test_one_value_has_a_degenerate_interval():
    assert interval([0.5]) == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}


def test_constant_values_do_not_leave_their_value_by_rounding():
    got = interval([0.7] * 33)
    assert got["low"] == got["value"] == got["high"]


def test_agrees_with_the_normal_interval_of_a_large_sample():
    values_N = np.random.default_rng(0).random(4000) < 0.8
    got = interval(values_N)
    half = 1.96 * np.sqrt(values_N.mean() * (1 - values_N.mean()) / 4000)
    assert got["value"] == pytest.approx(values_N.mean())
    assert got["low"] == pytest.approx(values_N.mean() - half, abs=0.1 * half)
    assert got["high"] == pytest.approx(values_N.mean() + half, abs=0.1 * half)


def test_agrees_with_a_loop_that_resamples_clusters():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    values_N = rng.random(60)[clusters] + 0.1 * rng.random(len(clusters))
    groups = [values_N[clusters == label] for label in range(60)]
    means = [np.concatenate([groups[i] for i in rng.integers(0, 60, 60)]).mean() for _ in range(4000)]
    got = interval(values_N, [f"prompt {label}" for label in clusters])
    width = np.subtract(*np.percentile(means, (97.5, 2.5)))
    assert got["low"] == pytest.approx(np.percentile(means, 2.5), abs=0.07 * width)
    assert got["high"] == pytest.approx(np.percentile(means, 97.5), abs=0.07 * width)


def test_copies_of_a_row_in_one_cluster_do_not_narrow_the_interval():
    values = [0.0, 1.0] * 20
    copied = interval(np.repeat(values, 10), np.repeat(np.arange(40), 10).tolist())
    single = interval(values)
    assert (copied["low"], copied["high"]) == (single["low"], single["high"])
    assert (copied["n"], single["n"]) == (400, 40)


def test_95_percent_intervals_cover_the_truth_about_that_often():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        got = interval(rng.random(100) < 0.7, seed=seed)
        hits += got["low"] <= 0.7 <= got["high"]
    assert 0.90 <= hits / 300 <= 0.98


def test_a_difference_is_paired():
    rng = np.random.default_rng(3)
    easy_N = rng.random(500)
    got = difference(easy_N + 0.01, easy_N)
    assert got["value"] == pytest.approx(0.01)
    assert got["high"] - got["low"] < 1e-9


def test_many_distinct_values_are_resampled_in_parts():
    values_N = np.random.default_rng(4).random(9000)
    got = interval(values_N)
    half = 1.96 * values_N.std() / np.sqrt(9000)
    assert got["high"] - got["low"] == pytest.approx(2 * half, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 4)), min_size=1, max_size=30),
    st.integers(0, 99),
)
def test_properties(rows, seed):
    values, clusters = zip(*rows, strict=True)
    got = interval(values, clusters, seed)
    assert got == interval(values, clusters, seed)
    assert min(values) - 1e-9 <= got["low"] <= got["high"] <= max(values) + 1e-9
    assert got["value"] == pytest.approx(np.mean(values), abs=1e-9)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="value 1 is not finite"):
        interval([0.0, float("nan")])
    with pytest.raises(ValueError, match="2 values have 1 cluster labels"):
        interval([0.0, 1.0], ["a"])
    with pytest.raises(ValueError, match="2 and 1 values"):
        difference([0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="one number per row"):
        interval([[0.0, 1.0]])


def test_a_ratio_is_a_difference_of_logarithms():
    first, second = [2.0, 8.0, 3.0], [1.0, 2.0, 3.0]
    got = ratio(first, second)
    assert got["value"] == pytest.approx(2.0) and got["n"] == 3
    inverse = ratio(second, first)
    assert (inverse["value"], inverse["low"]) == (pytest.approx(1 / got["value"]), pytest.approx(1 / got["high"]))
    assert ratio([], [])["value"] is None
    with pytest.raises(ValueError, match="not positive"):
        ratio([1.0], [0.0])


def test_values_of_several_seeds():
    values, items = [[1.0, 0.0], [1.0, 1.0]], [["a", "b"]] * 2
    got = over_seeds(values, items)
    assert got["seeds"] == [0.5, 1.0] and got["mean"] == interval([1, 0, 1, 1], ["a", "b", "a", "b"])
    assert over_seeds(values) == got  # by default a row is one item, the same in all seeds
    gained = paired(values, [[0.0, 0.0]] * 2, items)
    assert gained["seeds"] == [0.5, 1.0] and gained["mean"] == got["mean"]


def test_a_score_over_parts_is_the_weighted_sum_of_their_means():
    values, parts = [1, 0, 1, 1, 0], ["a", "a", "b", "b", "unused"]
    got = combined(values, parts, {"a": 0.25, "b": 0.75})
    assert got["value"] == pytest.approx(0.25 * 0.5 + 0.75) and got["n"] == 4
    assert got["low"] == pytest.approx(0.75) and got["high"] == pytest.approx(1.0)  # b is always 1, a from 0 to 1
    with pytest.raises(ValueError, match="no value of c, which the score is made of"):
        combined(values, parts, {"a": 0.5, "c": 0.5})


def test_a_score_of_one_part_has_about_the_interval_of_its_mean():
    rng = np.random.default_rng(0)
    values, prompts = rng.integers(0, 2, 300), rng.integers(0, 100, 300).tolist()
    one, other = interval(values, prompts), combined(values, ["a"] * 300, {"a": 1.0}, prompts)
    assert one["value"] == pytest.approx(other["value"])
    assert one["low"] == pytest.approx(other["low"], abs=0.015) and one["high"] == pytest.approx(
        other["high"], abs=0.015
    )


def test_a_prompt_in_two_parts_moves_both():
    """Parts that agree on every prompt have the mean of one of them; drawn apart, their mean would vary less."""
    values = np.tile([0.0, 1.0], 50)
    both = combined(
        np.concatenate([values, values]), ["a"] * 100 + ["b"] * 100, {"a": 0.5, "b": 0.5}, [*range(100)] * 2
    )
    apart = combined(np.concatenate([values, values]), ["a"] * 100 + ["b"] * 100, {"a": 0.5, "b": 0.5}, range(200))
    assert both["high"] - both["low"] > 1.25 * (apart["high"] - apart["low"])


def test_flipped_signs():
    assert sign_flips([0.0, 0.0]) == 1.0
    assert sign_flips([1.0, 1.0, 1.0]) == pytest.approx(2 / 8, abs=0.015)  # all flips: +3 and -3 of eight
    assert sign_flips([1.0, -1.0]) == 1.0
    assert sign_flips([1.0] * 60) < 1e-4
    assert sign_flips([1.0] * 60, ["a"] * 60) == 1.0  # one prompt says nothing


def test_false_discoveries():
    # By hand: 0.01 · 4 / 1, 0.02 · 4 / 2, 0.03 · 4 / 3, 0.5.
    assert benjamini_hochberg([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert benjamini_hochberg([0.04, 0.9]) == pytest.approx([0.08, 0.9]) and benjamini_hochberg([]) == []
