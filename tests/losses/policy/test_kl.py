"""KL estimators and their gradients by exact enumeration over a categorical of three."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.policy.kl import kl, kl_loss

P, Q = jnp.array([0.2, -0.5, 1.0]), jnp.array([0.0, 0.3, -0.2])
OLD = jnp.array([0.6, -0.1, 0.3])
FORWARD, REVERSE = [-0.12479628, -0.19538642, 0.3201827], [-0.04693419, -0.2925981, 0.33953229]


def expected_gradient(estimator, gradient, behavior=P):
    """Σ_a π_old(a) ∇ estimate(a): what many samples of π_old give on the average."""
    probability = jax.nn.softmax(behavior)

    def loss(logits):
        found = kl_loss(
            jax.nn.log_softmax(logits), jax.nn.log_softmax(Q), jax.nn.log_softmax(behavior), estimator, gradient
        )
        return jnp.sum(probability * found)

    return jax.grad(loss)(P)


@pytest.mark.parametrize(
    ("estimator", "mean", "std"), [("k1", 0.303499, 0.7180), ("k2", 0.303840, 0.2059), ("k3", 0.303499, 0.3066)]
)
def test_moments(estimator, mean, std):
    p = np.asarray(jax.nn.softmax(P), np.float64)
    found = np.asarray(kl(jax.nn.log_softmax(P), jax.nn.log_softmax(Q), estimator), np.float64)
    assert p @ found == pytest.approx(mean, abs=1e-6)
    assert np.sqrt(p @ found**2 - (p @ found) ** 2) == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize(("estimator", "wanted"), [("k1", [0, 0, 0]), ("k2", FORWARD), ("k3", REVERSE)])
def test_gradients_of_the_estimators_as_they_stand(estimator, wanted):
    assert expected_gradient(estimator, "estimator") == pytest.approx(wanted, abs=2e-7)


@pytest.mark.parametrize("behavior", [P, OLD], ids=["on policy", "off policy"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_exact_gradient_is_that_of_kl_whoever_sampled(estimator, behavior):
    assert expected_gradient(estimator, "exact", behavior) == pytest.approx(FORWARD, abs=3e-7)

    def divergence(logits):
        return jnp.sum(jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - jax.nn.log_softmax(Q)))

    assert jax.grad(divergence)(P) == pytest.approx(FORWARD, abs=2e-7)


def test_other_names_are_refused():
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="KL estimator is 'k4'"):
        kl(x, x, "k4")
    with pytest.raises(ValueError, match="KL gradient is 'none'"):
        kl_loss(x, x, x, "k1", "none")
