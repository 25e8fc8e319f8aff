"""Next-token loss on forest rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.losses.language_model import next_token
from rmjax.losses.reduction import mean, total


def test_by_hand():
    logits = jnp.float32([[[0, 0, 0, 0], [math.log(3), 0, 0, 0]]])
    np.testing.assert_allclose(next_token(logits, jnp.asarray([[2, 0]])), [[math.log(4), math.log(2)]], rtol=1e-6)


def test_huge_logits_stay_finite():
    logits, target = jnp.float32([[[1e4, 0.0], [-1e4, 0.0]]]), jnp.asarray([[1, 1]])
    np.testing.assert_allclose(next_token(logits, target), [[1e4, 0]], atol=1e-6)
    slopes = jax.grad(lambda x: jnp.sum(next_token(x, target)))(logits)
    np.testing.assert_allclose(slopes, [[[1, -1], [0, 0]]], atol=1e-6)


def test_bf16_logits_are_lifted_to_fp32():
    loss = next_token(jnp.zeros((1, 1, 3), jnp.bfloat16), jnp.asarray([[1]]))
    assert loss.dtype == jnp.float32
    assert float(loss[0, 0]) == pytest.approx(math.log(3), rel=1e-6)


def test_only_what_is_learned_of_a_packed_row_has_a_gradient():
    texts = [Tree.for_language_model([5, 6, 7, 8], learned_from=2), Tree.for_language_model([9, 4], learned_from=1)]
    forest = fill(ForestShape(rows=1, row_tokens=8, groups=2, branches=1), [texts])
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 10)), jnp.float32)

    def objective(logits):
        return mean(total(next_token(logits, forest.target_RT), forest.target_weight_RT))

    value, slopes = jax.value_and_grad(objective)(logits)
    log_probability = jax.nn.log_softmax(logits[0])
    wanted = -(log_probability[1, 7] + log_probability[2, 8] + log_probability[4, 4]) / 3
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    assert np.flatnonzero(np.abs(slopes[0]).sum(-1)).tolist() == [1, 2, 4]
