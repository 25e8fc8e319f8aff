import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.evaluate.scaling import Point, envelope, fit_power_law


@given(st.floats(-0.5, 0.5), st.floats(0.1, 10))
def test_an_exact_law_is_found(alpha, beta):
    compute_N = np.geomspace(1e12, 1e18, 7)
    law = fit_power_law(compute_N, beta * compute_N**alpha)
    assert law.alpha == pytest.approx(alpha, abs=1e-6)
    assert law.beta == pytest.approx(beta, rel=1e-4)
    np.testing.assert_allclose(law(compute_N), beta * compute_N**alpha, rtol=1e-5)


def test_the_interval_covers_alpha_under_noise_and_r_squared_falls():
    rng = np.random.default_rng(0)
    compute_N = np.geomspace(1e12, 1e16, 40)
    loss_N = 2.4 * compute_N**-0.0342 * np.exp(rng.normal(0, 0.02, 40))
    law = fit_power_law(compute_N, loss_N)
    assert law.alpha_low < -0.0342 < law.alpha_high
    assert law.alpha_low < law.alpha < law.alpha_high
    predicted_N = np.log(law(compute_N))
    correlation = np.corrcoef(predicted_N, np.log(loss_N))[0, 1]
    assert law.r_squared == pytest.approx(correlation**2)
    assert 0.9 < law.r_squared < 1


def test_resampling_runs_is_wider_than_resampling_their_points():
    rng = np.random.default_rng(1)
    runs = np.repeat(np.arange(8), 20)
    compute_N = np.tile(np.geomspace(1e12, 1e15, 20), 8) * 2.0**runs
    loss_N = compute_N**-0.05 * np.exp(rng.normal(0, 0.1, 8))[runs]
    apart = fit_power_law(compute_N, loss_N)
    clustered = fit_power_law(compute_N, loss_N, runs.tolist())
    assert clustered.alpha == apart.alpha
    assert clustered.alpha_high - clustered.alpha_low > 1.5 * (apart.alpha_high - apart.alpha_low)


def test_two_points_have_a_line_but_no_interval():
    law = fit_power_law([1e12, 1e14], [0.6, 0.5])
    assert law.r_squared == pytest.approx(1)
    assert (law.alpha_low, law.alpha_high) == (None, None)


@pytest.mark.parametrize(
    ("compute", "losses", "message"),
    [
        ([1, 2], [0.5, 0], "loss: a power law needs"),
        ([-1, 2], [0.5, 0.4], "compute: a power law needs"),
        ([1, 2], [0.5], "2 amounts of compute have 1 losses"),
        ([2, 2], [0.5, 0.4], "two different amounts"),
    ],
)
def test_errors(compute, losses, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(compute, losses)


def test_the_envelope_is_where_no_run_was_better():
    runs = {
        "small": ([1, 10, 100], [0.70, 0.60, 0.59]),
        "large": ([10, 100, 1000], [0.68, 0.50, 0.40]),
    }
    assert envelope(runs) == [
        Point("small", pytest.approx(1), pytest.approx(0.70)),
        Point("small", pytest.approx(10), pytest.approx(0.60)),
        Point("large", pytest.approx(100), pytest.approx(0.50)),
        Point("large", pytest.approx(1000), pytest.approx(0.40)),
    ]


def test_a_point_above_another_run_between_its_measurements_is_not_on_the_envelope():
    runs = {"a": ([1, 100], [1.0, 0.25]), "b": ([10], [0.6])}
    assert [point.run for point in envelope(runs)] == ["a", "a"]
    runs["b"] = ([10], [0.4])
    assert [point.run for point in envelope(runs)] == ["a", "b", "a"]


def test_loss_that_rises_again_is_not_on_the_envelope():
    points = envelope({"a": ([1, 2, 3], [0.5, 0.4, 0.45])})
    assert [round(point.loss, 9) for point in points] == [0.5, 0.4]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(1, 1e6), st.floats(0.1, 1)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_envelope_properties(runs):
    named = {str(i): tuple(zip(*run, strict=True)) for i, run in enumerate(runs)}
    points = envelope(named)
    losses = [point.loss for point in points]
    assert losses == sorted(losses, reverse=True)
    best = min(loss for run in runs for _, loss in run)
    assert min(losses) == pytest.approx(best)
