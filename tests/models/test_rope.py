"""Rotary positions: golden frequencies of every kind of scaling, and what the turning must keep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.models.rope import Rope, frequencies, longest_text, rotate

LLAMA = Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)  # Llama-3.1-8B's
DYNAMIC = Rope(1e4, "dynamic", 2.0, original_max_positions=4096)
YARN = Rope(1e6, "yarn", 4.0, original_max_positions=32_768)  # Qwen 2.5's, for long texts
GOLDEN: dict[str, tuple[Rope, int, int, dict[int, float], float, float]] = {
    # rope, head width, longest text, values at indices, sum over all, attention factor; made with transformers 5.24
    "llama 3.1": (LLAMA, 128, 0, {
        1: 0.81461722, 24: 0.0072926651, 29: 0.0021665706, 30: 0.0013718937, 31: 0.00085675146, 32: 0.00052484602,
        40: 3.4281024e-5, 63: 3.0689259e-7,
    }, 5.386058263, 1.0),
    "llama 3.2": (dataclasses.replace(LLAMA, factor=32.0), 64, 0, {
        1: 0.66360128, 16: 0.00042955671, 24: 1.6619674e-6, 31: 9.4183065e-8,
    }, 2.968202397, 1.0),
    "linear": (Rope(1e4, "linear", 4.0), 128, 0, {0: 0.25, 1: 0.21649109, 63: 2.8869548e-5}, 1.864988551, 1.0),
    "dynamic": (DYNAMIC, 128, 4096, {63: 1.1547819e-4}, 7.459954203, 1.0),
    "dynamic, beyond": (DYNAMIC, 128, 8192, {1: 0.85099429, 63: 3.8492733e-5}, 6.710932415, 1.0),
    "yarn": (YARN, 128, 0, {
        16: 0.031622779, 24: 0.0053753215, 32: 0.00060294115, 63: 3.1023444e-7,
    }, 5.144034828, 1.138629436111989),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frequencies(name):
    rope, width, longest, values, total, factor = GOLDEN[name]
    found, attention_factor = frequencies(rope, width, longest)
    found = np.asarray(found, np.float64)
    assert found.shape == (width // 2,)
    np.testing.assert_allclose(found[list(values)], list(values.values()), rtol=3e-7)
    assert found.sum() == pytest.approx(total, rel=1e-7)
    assert attention_factor == pytest.approx(factor, rel=1e-14)


def test_longrope_chooses_its_factors_by_the_longest_text():
    short, long = tuple(np.linspace(1, 2, 8)), tuple(np.linspace(3, 60, 8))
    rope = Rope(1e4, "longrope", 32.0, original_max_positions=4096, short_factors=short, long_factors=long)
    plain, _ = frequencies(Rope(1e4), 16)
    for longest, factors in ((0, short), (4096, short), (4097, long)):
        found, factor = frequencies(rope, 16, longest)
        np.testing.assert_allclose(found, plain / np.array(factors), rtol=1e-6)
        assert factor == pytest.approx(np.sqrt(1 + np.log(32) / np.log(4096)))
    assert (longest_text(rope, 4096), longest_text(rope, 8192)) == (4096, 0)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"attention_factor": 0.75}, 0.75),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, (0.05 * np.log(4) + 1) / (0.1 * np.log(4) + 1)),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_other_attention_factors(changes, factor):
    assert frequencies(dataclasses.replace(YARN, **changes), 128)[1] == pytest.approx(factor)


def test_yarn_without_rounding_has_other_borders():
    rounded, exact = (np.asarray(frequencies(dataclasses.replace(YARN, truncate=t), 128)[0]) for t in (True, False))
    different = np.flatnonzero(~np.isclose(rounded, exact, rtol=1e-6))
    assert 0 < len(different) < 20 and np.all(np.diff(different) == 1)  # between the borders alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ntk"}, "rope.kind is 'ntk'; choose one of none, linear, dynamic, llama3, yarn, longrope"),
        ({"kind": "yarn"}, "rope.original_max_positions is missing; rope.kind=yarn needs it"),
        ({"theta": 0.0}, "rope.theta is 0.0 and rope.factor 1.0; both must be above 0"),
        ({"partial": 0.0}, "rope.partial is 0.0; it must be above 0"),
        ({"kind": "llama3", "original_max_positions": 8, "low_freq_factor": 4.0}, "low_freq_factor is 4.0; it must be"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        Rope(**changes)


# --- the turning -----------------------------------------------------------------------------------------------------

places = st.integers(0, 1000)


def _turned(x, position: int, rope: Rope):
    return rotate(x, jnp.array([[position]]), *frequencies(rope, x.shape[-1]))


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@settings(deadline=None, max_examples=30)
@given(first=places, second=places, shift=places, scale=st.sampled_from([1.0, 2.0, 8.0]), seed=st.integers(0, 99))
def test_only_relative_positions_count(first, second, shift, scale, seed):
    q, k = _normal(seed, 2, 1, 1, 1, 8)

    def product(i, j):
        turned = [_turned(x, position, Rope(kind="linear", factor=scale)) for x, position in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert product(first + shift, second + shift) == pytest.approx(product(first, second), abs=1e-2)  # angles are fp32


@settings(deadline=None, max_examples=30)
@given(position=places, seed=st.integers(0, 99))
def test_it_is_a_rotation(position, seed):
    x = _normal(seed, 1, 1, 2, 8)
    turned = np.asarray(_turned(x, position, Rope()))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(_turned(x, 0, Rope()), x)


def test_linear_scaling_stretches_positions():
    x = _normal(0, 1, 1, 2, 8)
    stretched = _turned(x, 12, Rope(kind="linear", factor=4.0))
    np.testing.assert_allclose(stretched, _turned(x, 3, Rope()), atol=1e-6)


def test_a_part_is_turned_as_a_narrower_head_and_the_rest_stays():
    x = _normal(0, 1, 1, 2, 12)
    turned = _turned(x, 7, Rope(partial=0.5))
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_allclose(turned[..., :6], _turned(x[..., :6], 7, Rope()), atol=1e-6)


def test_the_attention_factor_multiplies_what_is_turned():
    x = _normal(0, 1, 1, 2, 8)
    scaled = dataclasses.replace(YARN, attention_factor=1.5)
    plain = dataclasses.replace(YARN, attention_factor=1.0)
    np.testing.assert_allclose(_turned(x, 7, scaled), 1.5 * _turned(x, 7, plain), rtol=1e-6)
