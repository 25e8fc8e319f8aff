"""The objective put together: one value per token, aggregated once, every term a (sum, count) pair."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rmjax.losses.policy.advantages import value_loss
from rmjax.losses.policy.aggregation import aggregate
from rmjax.losses.policy.kl import kl, kl_loss
from rmjax.losses.policy.parts import Parts
from rmjax.losses.policy.ratios import clipped, clipped_surrogate, correction, log_ratios
from rmjax.losses.policy.sequences import per_token
from rmjax.losses.reduction import Term, total

PerToken = Float[Array, "R T"]


class Samples(NamedTuple):
    """What the objective reads of a batch. Values at tokens that are not trained are not read."""

    log_probability_RT: PerToken  # log π, with a gradient
    entropy_RT: PerToken  # of π, with a gradient
    advantage_RT: PerToken
    trained_RT: Shaped[Array, "R T"]  # above 0 at the tokens that the policy wrote
    sequence_RT: Int[Array, "R T"]  # which of the row's sequences a token is of, −1 = none
    weight_RS: Float[Array, "R S"]  # of each sequence
    old_RT: PerToken | None = None  # log π_old; None: π itself
    behavior_RT: PerToken | None = None  # as the sampler gave it
    reference_RT: PerToken | None = None  # log π_ref, for KL in the loss


def policy_loss(parts: Parts, samples: Samples) -> dict[str, Term]:
    """`loss`, the term to be minimized, and what it is made of.

        loss = aggregation of  c · (−min(ρ A, clip(ρ) A))  +  β · KL  −  entropy_weight · H
               or              c · (−A log π)              +  β · KL  −  entropy_weight · H      without a ratio

    with ρ = π / π_old and c the correction.

    Raises:
      ValueError: KL or a correction is asked for, and the samples lack what it needs.
    """
    s = _kept(samples)
    assert s.old_RT is not None
    loss_RT = policy_RT = _policy_values(parts, s)
    weight_RT = jnp.where(s.trained_RT > 0, per_token(s.weight_RS, s.sequence_RT), 0.0)
    terms = {"entropy": total(s.entropy_RT, weight_RT)}
    if parts.kl_weight > 0 and parts.kl_place == "loss":
        reference_RT = _needed(s.reference_RT, "KL in the loss needs log-probabilities of the reference")
        kl_RT = kl_loss(s.log_probability_RT, reference_RT, s.old_RT, parts.kl, parts.kl_gradient)
        loss_RT = loss_RT + parts.kl_weight * kl_RT
        terms["kl"] = total(kl(s.log_probability_RT, reference_RT, parts.kl), weight_RT)
    if parts.entropy_weight:
        loss_RT = loss_RT - parts.entropy_weight * s.entropy_RT
    if s.behavior_RT is not None:
        terms["log_probability_gap"] = total(jnp.abs(s.log_probability_RT - s.behavior_RT), weight_RT)

    def aggregated(values_RT: PerToken) -> Term:
        return aggregate(values_RT, s.trained_RT, s.weight_RS, s.sequence_RT, parts.aggregation, parts.divisor)

    terms |= {"loss": aggregated(loss_RT), "policy_loss": aggregated(policy_RT), **_ratio_terms(parts, s, weight_RT)}
    return terms


def with_critic(
    terms: dict[str, Term], parts: Parts, samples: Samples, values_RT: PerToken, old_RT: PerToken
) -> dict[str, Term]:
    """The terms with a critic's: `loss` is the policy's and `value_weight` times the critic's, which has the same aggregation and
    so the same count; `value_loss`, that alone; `value` and `return`, means over tokens.

    Args:
      values_RT: V of the text before each token, with a gradient.
      old_RT: the same as it was when the answers were drawn: returns are the advantages on top of these.
    """
    s = samples
    trained_RT = s.trained_RT > 0
    values_RT, old_RT, advantage_RT = (jnp.where(trained_RT, x, 0.0) for x in (values_RT, old_RT, s.advantage_RT))
    returns_RT = jax.lax.stop_gradient(advantage_RT + old_RT)
    loss_RT = value_loss(values_RT, returns_RT, old_RT if parts.value_clip else None, parts.value_clip)
    critic = aggregate(loss_RT, s.trained_RT, s.weight_RS, s.sequence_RT, parts.aggregation, parts.divisor)
    weight_RT = jnp.where(trained_RT, per_token(s.weight_RS, s.sequence_RT), 0.0)
    total_loss, count = terms["loss"]
    return terms | {
        "loss": (total_loss + parts.value_weight * critic[0], count), "value_loss": critic,
        "value": total(values_RT, weight_RT), "return": total(returns_RT, weight_RT),
    }  # fmt: skip


def _kept(s: Samples) -> Samples:
    """Without what stands at other tokens, so that not even its gradient can be NaN; π_old without a gradient."""

    def kept(x_RT: PerToken | None) -> PerToken | None:
        return None if x_RT is None else jnp.where(s.trained_RT > 0, x_RT.astype(jnp.float32), 0.0)

    old_RT = s.log_probability_RT if s.old_RT is None else s.old_RT
    changed: dict[str, Any] = {name: kept(getattr(s, name)) for name in _PER_TOKEN}
    return s._replace(**changed, old_RT=kept(jax.lax.stop_gradient(old_RT)))


_PER_TOKEN = ("log_probability_RT", "entropy_RT", "advantage_RT", "behavior_RT", "reference_RT")


def _policy_values(parts: Parts, s: Samples) -> PerToken:
    """The policy's part of the loss at every token."""
    if parts.ratio == "none":
        values_RT = -s.advantage_RT * s.log_probability_RT
    else:
        x_RT = _log_ratios(parts, s)
        bounds = (parts.clip_low, parts.clip_high)
        unclipped = parts.clip == "none"
        values_RT = -jnp.exp(x_RT) * s.advantage_RT if unclipped else clipped_surrogate(x_RT, s.advantage_RT, *bounds)
    return values_RT if parts.correction == "none" else _correction(parts, s) * values_RT


def _log_ratios(parts: Parts, s: Samples) -> PerToken:
    assert s.old_RT is not None
    level, S = parts.ratio, s.weight_RS.shape[1]
    return log_ratios(s.log_probability_RT, s.old_RT, s.trained_RT, s.sequence_RT, S, level)


def _correction(parts: Parts, s: Samples) -> PerToken:
    assert s.old_RT is not None
    behavior_RT = _needed(s.behavior_RT, "a correction needs the sampler's log-probabilities")
    S = s.weight_RS.shape[1]
    return correction(s.old_RT, behavior_RT, s.trained_RT, s.sequence_RT, S, parts.correction, parts.cap)


def _ratio_terms(parts: Parts, s: Samples, weight_RT: PerToken) -> dict[str, Term]:
    """Measures over tokens: the ratio, where the clip holds, the correction and where its cap does."""
    terms = {}
    if parts.ratio != "none":
        x_RT = _log_ratios(parts, s)
        terms["ratio"] = total(jnp.exp(x_RT), weight_RT)
        if parts.clip == "both":
            terms["clipped"] = total(clipped(x_RT, s.advantage_RT, parts.clip_low, parts.clip_high), weight_RT)
    if parts.correction != "none":
        factor_RT = _correction(parts, s)
        terms |= {"correction": total(factor_RT, weight_RT), "capped": total(factor_RT >= parts.cap, weight_RT)}
    return terms


def _needed(values_RT: PerToken | None, why: str) -> PerToken:
    if values_RT is None:
        raise ValueError(f"{why}; give them in `Samples`")
    return values_RT
