"""Log-probabilities in chunks of the vocabulary: golden values, the plain form, temperature."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.policy.tokens import token_statistics
from rmjax.models.tiles import capped

V, D = 13, 5


@pytest.fixture(scope="module")
def given():
    random = np.random.default_rng(0)
    hidden, table = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 4, D), (V, D)))
    return hidden, 2 * table, random.integers(0, V, (2, 4)).astype(np.int32)


def plain(hidden, table, tokens, temperature=1.0, softcap=0.0):
    logits = capped(jnp.dot(hidden, table.T), softcap)
    log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0], entropy


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 64])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, 0.0), (0.7, 0.0), (3.0, 0.0), (0.7, 2.0)])
def test_values_and_gradients_are_those_of_the_plain_form(given, chunk, temperature, softcap):
    hidden, table, tokens = given
    weights = np.random.default_rng(1).standard_normal((2, 2, 4)).astype(np.float32)

    def weighed(of):
        def loss(hidden, table):
            log_p, entropy = of(hidden, table)
            return jnp.sum(weights[0] * log_p) + jnp.sum(weights[1] * entropy), (log_p, entropy)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, table)

    (_, found), found_gradients = weighed(lambda h, t: token_statistics(h, t, tokens, temperature, chunk, softcap))
    (_, wanted), wanted_gradients = weighed(lambda h, t: plain(h, t, tokens, temperature, softcap))
    for a, b in zip((*found, *found_gradients), (*wanted, *wanted_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_golden_values_at_a_temperature():
    logits = np.array([[1.0, 2.0, 0.5]], np.float32)
    found = token_statistics(jnp.ones((1, 3, 1)), jnp.asarray(logits.T), jnp.arange(3)[None], 0.7, 2)
    assert found.log_probability_RT[0] == pytest.approx([-1.73382585, -0.30525442, -2.44811157], abs=1e-6)


def test_no_array_of_the_whole_vocabulary_is_made(given):
    """Forward and backward: the largest arrays hold a chunk, or are the table itself."""
    hidden, table, tokens = given

    def loss(hidden):
        return jnp.sum(token_statistics(hidden, table, tokens, 1.0, 4).log_probability_RT)

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from shapes(inner)

    found = set(shapes(jax.make_jaxpr(jax.grad(loss))(hidden).jaxpr))
    assert (2, 4, 4) in found and (2, 4, V) not in found
    assert max(np.prod(shape) for shape in found) <= max(2 * 4 * 5 * 4, 4 * 4 * D)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_of_0_is_refused(given, temperature):
    with pytest.raises(ValueError, match="it must be above 0: greedy samples have no policy gradient"):
        token_statistics(*given, temperature)
