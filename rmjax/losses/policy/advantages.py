"""Advantages: how much better a sample is than what was to be expected.

Those of a group work on numpy and on JAX arrays alike, in the dtype that they get: the host computes them in fp64, a compiled
step may in fp32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

BASELINES = ("none", "group_mean", "leave_one_out")
SCALES = ("none", "group_std")


def group_advantages(
    rewards: Any, present: Any, baseline: str = "group_mean", scale: str = "none", ddof: int = 1, eps: float = 1e-6
) -> Any:
    """A_i of each sample from the rewards r of its group of n samples; 0 where a sample is absent.

        baseline  none           A_i = r_i
                  group_mean     A_i = r_i − mean(r)                       (GRPO; without a scale: Dr. GRPO)
                  leave_one_out  A_i = r_i − mean of the others            (RLOO) = n / (n − 1) · (r_i − mean(r))
        scale     none | group_std: A_i / (std(r) + eps), std with n − ddof in its denominator

    Where all rewards of a group are equal, or it has one sample, differences and quotients are exactly 0, whatever `eps`: rewards
    are taken as differences to one of them first, which are exact there, and a standard deviation of 0 divides nothing.

    Args:
      rewards: [..., N], numpy or JAX.
      present: [..., N] booleans; rewards elsewhere are not read.

    Raises:
      ValueError: a baseline or scale that does not exist, ddof that is neither 0 nor 1, a negative eps.
    """
    _refuse(baseline, scale, ddof, eps)
    xp = rewards.__array_namespace__()
    n = xp.maximum(xp.sum(present, axis=-1, keepdims=True), 1)
    kept = xp.where(present, rewards, 0.0)
    first = xp.take_along_axis(kept, xp.argmax(present, axis=-1)[..., None], axis=-1)
    relative = xp.where(present, kept - first, 0.0)  # exactly 0 where rewards are equal; their mean may round otherwise
    centered = xp.where(present, relative - xp.sum(relative, axis=-1, keepdims=True) / n, 0.0)
    found = {
        "none": lambda: kept,
        "group_mean": lambda: centered,
        "leave_one_out": lambda: centered * (n / xp.maximum(n - 1, 1)),
    }[baseline]()
    if scale == "none":
        return found
    std = xp.sqrt(xp.sum(centered * centered, axis=-1, keepdims=True) / xp.maximum(n - ddof, 1))
    return found / xp.where(std > 0, std + eps, 1.0)


def _refuse(baseline: str, scale: str, ddof: int, eps: float) -> None:
    if baseline not in BASELINES or scale not in SCALES:
        raise ValueError(f"baseline is {baseline!r}, scale {scale!r}; choose one of {BASELINES} and one of {SCALES}")
    if ddof not in (0, 1) or not 0 <= eps < math.inf:
        raise ValueError(f"ddof is {ddof}, eps {eps}; ddof is 0 or 1, eps 0 or more")


def require_finite(advantages: Any, place: str) -> None:
    """ValueError where an advantage on the host is NaN or infinite; `place` says whose."""
    if not np.all(np.isfinite(np.asarray(advantages))):
        raise ValueError(
            f"{place}: an advantage is not finite ({np.asarray(advantages).tolist()}); check rewards, log-probabilities and "
            "values: a failed one has to be dropped, not to be NaN"
        )


def gae(
    rewards_RT: Float[Array, "R T"],
    values_RT: Float[Array, "R T"],
    mask_RT: Shaped[Array, "R T"],
    sequence_RT: Int[Array, "R T"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Float[Array, "R T"]:
    """Generalized advantage estimation along each sequence: A_t = δ_t + γ λ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t.

    After a sequence's last token V and A are 0: it has ended. Tokens without a mask (a tool's output) are passed over as if they
    were not there, and get 0; what stands there and in padding is not read. Returns are A + V.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    Args:
      rewards_RT: of each token; a reward of the whole stands at the last one (`sequences.at_last`).
      values_RT: V of the text before each token.
    """
    own_RT = (mask_RT > 0) & (sequence_RT >= 0)
    r_RT, v_RT = (jnp.where(own_RT, x.astype(jnp.float32), 0.0) for x in (rewards_RT, values_RT))

    def step(carry: Any, token: Any) -> Any:
        next_value, next_advantage, last = carry
        reward, value, own, sequence = token
        same = sequence == last
        ahead = reward + gamma * jnp.where(same, next_value, 0.0) - value
        advantage = ahead + gamma * lam * jnp.where(same, next_advantage, 0.0)
        new = (value, advantage, sequence)
        carry = tuple(jnp.where(own, a, b) for a, b in zip(new, carry, strict=True))
        return carry, jnp.where(own, advantage, 0.0)

    zeros_R = jnp.zeros(r_RT.shape[0])
    start = (zeros_R, zeros_R, jnp.full(r_RT.shape[0], -1, sequence_RT.dtype))
    tokens = jax.tree.map(jnp.transpose, (r_RT, v_RT, own_RT, sequence_RT))
    return jax.lax.scan(step, start, tokens, reverse=True)[1].T


def all_equal(rewards: Any, present: Any) -> Any:
    """Which groups [...] have samples of one reward only: nothing can be learned from them but what KL and entropy ask for."""
    xp = rewards.__array_namespace__()
    high = xp.max(xp.where(present, rewards, -xp.inf), axis=-1)
    return high <= xp.min(xp.where(present, rewards, xp.inf), axis=-1)


def value_loss(
    values_RT: Float[Array, "R T"],
    returns_RT: Float[Array, "R T"],
    old_RT: Float[Array, "R T"] | None = None,
    clip: float = 0.2,
) -> Float[Array, "R T"]:
    """½ (V − R)² of a critic at every token; with the values that the round began with, the larger of that and of V kept within
    ±`clip` of them (PPO's critic, Schulman et al. 2017)."""
    plain_RT = jnp.square(values_RT - returns_RT)
    if old_RT is None:
        return 0.5 * plain_RT
    near_RT = old_RT + jnp.clip(values_RT - old_RT, -clip, clip)
    return 0.5 * jnp.maximum(plain_RT, jnp.square(near_RT - returns_RT))
