"""Sweeps as data: the combinators, by hand and by property."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.study.sweeps import chain, linear, log, product, sample, seeds, sweep, zip_


def test_the_combinators_by_hand():
    rates, sizes = sweep("a.rate", (1, 2)), sweep("size", "xy")
    assert product(rates, sizes) == [
        {"a.rate": 1, "size": "x"}, {"a.rate": 1, "size": "y"}, {"a.rate": 2, "size": "x"}, {"a.rate": 2, "size": "y"},
    ]  # fmt: skip
    assert zip_(rates, sizes) == [{"a.rate": 1, "size": "x"}, {"a.rate": 2, "size": "y"}]
    assert chain(rates, [{"b": 3}]) == [{"a.rate": 1}, {"a.rate": 2}, {"b": 3}]
    assert seeds(2) == [{"run.seed": 0}, {"run.seed": 1}] and product() == [{}]


@given(st.lists(st.integers(0, 4), max_size=3))
def test_a_product_has_every_combination_once(counts):
    found = product(*(sweep(f"k{i}", range(count)) for i, count in enumerate(counts)))
    assert len(found) == math.prod(counts) == len({tuple(member.items()) for member in found})


@given(st.integers(0, 2**31), st.floats(1e-9, 1e3), st.floats(1.1, 1e6))
def test_samples_stay_on_their_scale_and_more_of_them_begin_alike(seed, low, factor):
    scales = {"rate": log(low, low * factor), "size": linear(2, 9, whole=True), "kind": ("a", "b")}
    few, many = sample(3, scales, seed), sample(7, scales, seed)
    assert many[:3] == few
    for member in many:
        assert low * 0.999 <= member["rate"] <= low * factor * 1.001  # four digits
        assert member["size"] in range(2, 10) and isinstance(member["size"], int) and member["kind"] in ("a", "b")


def test_samples_of_few_choices_are_all_different():
    """Of 2 × 3 members; draws collide from the third on."""
    scales = {"kind": ("a", "b"), "size": linear(1, 3, whole=True)}
    for seed in range(5):
        found = sample(6, scales, seed)
        assert len({tuple(member.values()) for member in found}) == 6
        assert sample(4, scales, seed) == found[:4]
    with pytest.raises(ValueError, match="sample: 6 different members in 700 draws; ask for at most as many"):
        sample(7, scales)


def test_a_log_scale_is_even_in_the_logarithm():
    found = [member["rate"] for member in sample(2000, {"rate": log(1e-4, 1.0)})]
    for low in (1e-4, 1e-3, 1e-2, 1e-1):
        assert 430 < sum(low <= value < 10 * low for value in found) < 570


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product(seeds(2), seeds(3)), "product: two sweeps set run.seed; keep one of them"),
        (
            lambda: zip_(seeds(2), sweep("a", "xyz")),
            r"zip_: the sweeps have \[2, 3\] members; give all of them the same",
        ),
        (lambda: log(0, 1), "a log scale from 0; give a number above 0"),
        (lambda: linear(2, 1), "a scale from 2 to 1; give two finite numbers, the lower one first"),
        (lambda: sample(1, {"a": ()}), "sample: a has no choice; give one at least"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
