"""The benchmark of MetaRM: ratios from given seconds (nothing is timed here), and its arms."""

import pytest

from experiments import benchmark_meta as benchmark


def test_a_mode_is_compared_with_the_two_gradients_of_its_round():
    seconds = {benchmark.PLAIN: [1.0, 10.0], benchmark.RISING: [2.0, 20.0], "meta plain": [3.3, 33.0]}
    found = benchmark.ratios(seconds)
    assert list(found) == ["meta plain"]
    assert [found["meta plain"][name] for name in ("median", "value", "low", "high")] == pytest.approx([1.1] * 4)


@pytest.mark.slow
def test_arms_take_steps():
    sizes = benchmark.Sizes(layers=1, rows=1, row_tokens=24)
    chosen = {name: benchmark.arms()[name] for name in (benchmark.PLAIN, "meta step_norm, second order")}
    built = benchmark.build(sizes, chosen)
    assert set(built) == {*chosen, benchmark.RISING}
    for name, arm in built.items():
        assert arm.seconds() > 0 and arm.planned_bytes()["temporary"] > 0
        assert name == benchmark.RISING or int(arm.state.step) == 1
