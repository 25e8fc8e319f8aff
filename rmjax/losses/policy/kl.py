"""KL(π ‖ π_ref) estimated at sampled tokens: k1, k2, k3 (Schulman 2020, "Approximating KL divergence"), and their gradients.

With x = log π − log π_ref at a token that π sampled: k1 = x, k2 = x² / 2, k3 = exp(−x) − 1 + x. E[k1] = E[k3] = KL(π ‖ π_ref),
and E[k2] is near it. Differentiated as they stand, their expected gradients under π differ: that of k1 is 0, that of k2 is
∇KL(π ‖ π_ref), that of k3 is ∇KL(π_ref ‖ π).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ESTIMATORS = ("k1", "k2", "k3")
GRADIENTS = ("exact", "estimator")
PerToken = Float[Array, "R T"]


def kl(log_probability_RT: PerToken, reference_RT: PerToken, estimator: str) -> PerToken:
    """The estimate at every token. ValueError for another estimator."""
    x_RT = log_probability_RT - reference_RT
    if estimator == "k1":
        return x_RT
    if estimator == "k2":
        return 0.5 * jnp.square(x_RT)
    if estimator == "k3":
        return jnp.expm1(-x_RT) + x_RT
    raise ValueError(f"KL estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}")


def kl_loss(
    log_probability_RT: PerToken, reference_RT: PerToken, old_RT: PerToken, estimator: str, gradient: str = "exact"
) -> PerToken:
    """The estimate as a term of a loss.

        exact      its expected gradient is ∇KL(π ‖ π_ref) over tokens that π_old sampled: k1 and k3 times π / π_old, of which the
                   gradient is taken too; k2 times π / π_old as a mere weight
        estimator  the estimate as it stands, as most trainers have it

    Args:
      old_RT: log-probabilities under the policy that the samples count as drawn from.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"KL gradient is {gradient!r}; choose one of {', '.join(GRADIENTS)}")
    found_RT = kl(log_probability_RT, reference_RT, estimator)
    if gradient == "estimator":
        return found_RT
    ratio_RT = jnp.exp(log_probability_RT - jax.lax.stop_gradient(old_RT))
    return (jax.lax.stop_gradient(ratio_RT) if estimator == "k2" else ratio_RT) * found_RT
