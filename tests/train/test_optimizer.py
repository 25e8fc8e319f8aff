"""Schedule, AdamW and the paper's hyper-parameter laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.models.parameters import flat
from rmjax.settings import Optimizer
from rmjax.train.optimizer import adamw, parse_rates, polar_batch_size, polar_learning_rate, schedule

# Section 1.7 of the specification: parameters, tokens of the backbone, tokens of POLAR pre-training.
SMALL, LARGE = (1.8e9, 2.5e12, 0.94e12), (7e9, 4.0e12, 3.6e12)


def test_schedule():
    rate = schedule(2e-5, steps=1000, warmup=0.03, final=0.1)
    assert rate(0) == 0.0
    assert float(rate(15)) == pytest.approx(1e-5)
    assert float(rate(30)) == pytest.approx(2e-5)
    assert float(rate(515)) == pytest.approx(2e-5 * 0.55)  # half-way of the cosine: (1 + 0.1) / 2
    assert float(rate(1000)) == float(rate(5000)) == pytest.approx(2e-6)
    rates = np.array([float(rate(i)) for i in range(0, 1001, 10)])
    assert (np.diff(rates[3:]) < 0).all() and (np.diff(rates[:4]) > 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_schedule_of_short_runs_is_finite(steps):
    rate = schedule(1e-3, steps, warmup=0.0, final=0.1)
    values = [float(rate(i)) for i in range(steps + 2)]
    assert np.isfinite(values).all() and max(values) <= 1e-3 * (1 + 1e-6)


def test_adamw_clips_the_global_norm_then_adapts_then_decays():
    update = adamw(optax.constant_schedule(0.1), b1=0.9, b2=0.95, weight_decay=0.01, clip=1.0)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    state = update.init(params)
    moments = [np.zeros(3), np.zeros(3)]
    for number, scale in enumerate((100.0, 0.01), 1):
        grads = np.array([3.0, 0.0, -4.0]) * scale
        steps, state = update.update({"a": jnp.asarray(grads[:2]), "b": jnp.asarray(grads[2:])}, state, params)
        grads = grads / max(1.0, np.linalg.norm(grads))
        moments = [0.9 * moments[0] + 0.1 * grads, 0.95 * moments[1] + 0.05 * grads**2]
        mean, square = moments[0] / (1 - 0.9**number), moments[1] / (1 - 0.95**number)
        wanted = -0.1 * (mean / (np.sqrt(square) + 1e-8) + 0.01 * np.array([1.0, -2.0, 0.5]))
        np.testing.assert_allclose(np.concatenate([steps["a"], steps["b"]]), wanted, rtol=1e-4)


def test_moments_are_fp32_whatever_the_parameters():
    update, params = adamw(optax.constant_schedule(0.1)), {"a": jnp.zeros(3, jnp.bfloat16)}
    state = update.init(params)
    for _ in range(2):
        steps, state = update.update({"a": jnp.full(3, 1e-3, jnp.bfloat16)}, state, params)
        assert state[1][0].mu["a"].dtype == state[1][0].nu["a"].dtype == steps["a"].dtype == jnp.float32


def test_polar_laws_give_the_sizes_that_the_specification_works_out():
    assert polar_learning_rate(*SMALL) == pytest.approx(1.397e-5, rel=5e-4)
    assert polar_learning_rate(*LARGE) == pytest.approx(1.636e-5, rel=5e-4)
    assert polar_batch_size(SMALL[0], SMALL[2]) == pytest.approx(2021, abs=0.5)
    assert polar_batch_size(LARGE[0], LARGE[2]) == pytest.approx(4525, abs=0.5)


def test_polar_laws_are_near_what_the_paper_trains_with():
    assert polar_learning_rate(*SMALL) == pytest.approx(1.4e-5, rel=0.01)
    assert polar_learning_rate(*LARGE) == pytest.approx(1.67e-5, rel=0.03)
    assert polar_batch_size(SMALL[0], SMALL[2]) / 1940 == pytest.approx(1.04, abs=0.005)
    assert polar_batch_size(LARGE[0], LARGE[2]) / 4343 == pytest.approx(1.04, abs=0.005)


def test_all_in_millions_as_printed_is_off_by_an_order_of_magnitude():
    """The paper's "all in millions": both D a thousand times larger in the law's units."""
    parameters, pretrain, reward = SMALL
    assert polar_learning_rate(parameters, 1e3 * pretrain, 1e3 * reward) == pytest.approx(1.46e-6, rel=5e-3)
    assert polar_batch_size(parameters, 1e3 * reward) == pytest.approx(78_607, abs=1)


TREE = {
    "backbone": {
        "norm": {"scale": jnp.ones(2)},
        "up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "lora_a": jnp.ones(2)},
        "output": {"kernel": jnp.ones((2, 3))},
    },
    "head": {"kernel": jnp.ones((2, 1))},
}


def moved(**options):
    """What one step without a gradient leaves of a tree of ones."""
    update = adamw(lambda step: 0.1, **options)
    zero = jax.tree.map(jnp.zeros_like, TREE)
    return flat(optax.apply_updates(TREE, update.update(zero, update.init(TREE), TREE)[0]))


def test_decay_leaves_norms_biases_and_heads_alone_by_default():
    found = moved(weight_decay=0.5, decayed=Optimizer.decayed)
    assert {path for path, leaf in found.items() if not np.allclose(leaf, 1)} == {
        "backbone/up/kernel", "backbone/up/lora_a",
    }  # fmt: skip
    assert all(np.allclose(leaf, 0.95) for leaf in moved(weight_decay=0.5, decayed=".").values())


def test_rates_by_path_are_factors_and_the_first_match_counts():
    rates = parse_rates(("^head/=10", "up/=0", ".=2"))
    update, ones = adamw(lambda step: 0.1, clip=0.0, rates=rates), jax.tree.map(jnp.ones_like, TREE)
    found = flat(update.update(ones, update.init(TREE), TREE)[0])
    assert np.allclose(found["head/kernel"], -1.0, atol=1e-5) and np.allclose(
        found["backbone/norm/scale"], -0.2, atol=1e-5
    )
    assert not np.any(found["backbone/up/kernel"])


@pytest.mark.parametrize("entry", ["head", "=2", "(=2", "head=fast", "head=-1", "head=inf"])
def test_a_rate_that_is_none_is_refused(entry):
    with pytest.raises(ValueError, match="config.optimizer.rates has .*; give PATTERN=FACTOR"):
        parse_rates((entry,))


def test_clip_0_is_off():
    update = adamw(lambda step: 0.1, clip=0.0)
    small, large = ({"x": jnp.full(2, x)} for x in (1.0, 1e6))
    assert np.allclose(*(update.update(g, update.init(g), g)[0]["x"] for g in (small, large)), atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "warmup", "first"), [(1, 0.03, 1.0), (100, 0.0, 1.0), (14, 0.1, 0.0), (100, 0.03, 0.0)]
)
def test_the_first_step_has_rate_0_only_where_there_is_a_warm_up(steps, warmup, first):
    assert float(schedule(1.0, steps, warmup, 0.1)(0)) == first
