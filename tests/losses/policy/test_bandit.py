"""A bandit whose optimum under KL is known: every preset reaches π ∝ π_ref · exp(r / β) to 1e-3.

The policy is a table of logits, an action is a sequence of one token, expectations are exact: each action stands in the batch
once, with the probability that the policy gives it as its weight.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.policy.advantages import gae
from rmjax.losses.policy.kl import kl
from rmjax.losses.policy.objective import Samples, policy_loss
from rmjax.losses.policy.parts import Parts
from rmjax.losses.policy.presets import PRESETS, preset

REWARDS = jnp.array([1.0, 0.2, -0.4, 0.5])
REFERENCE = jax.nn.log_softmax(jnp.array([0.0, 0.7, 0.3, -0.5]))
BETA, SAMPLES = 0.5, 10_000


def advantages(parts: Parts, old: jax.Array, value: jax.Array) -> jax.Array:
    """Of each action, in a group of `SAMPLES` samples in which actions are as frequent as they are probable."""
    rewards = REWARDS
    if parts.kl_place == "reward":
        rewards = rewards - parts.kl_weight * kl(old, REFERENCE, parts.kl)
    if parts.advantage == "gae":
        one = jnp.ones((4, 1))
        return gae(rewards[:, None], value * one, one, jnp.zeros((4, 1), int), parts.gamma, parts.lam)[:, 0]
    expected = jnp.sum(jnp.exp(old) * rewards)
    if parts.baseline == "none":
        return rewards
    others = SAMPLES / (SAMPLES - 1) if parts.baseline == "leave_one_out" else 1.0
    found = others * (rewards - expected)
    if parts.scale == "none":
        return found
    spread = jnp.sqrt(jnp.sum(jnp.exp(old) * (rewards - expected) ** 2) * SAMPLES / (SAMPLES - parts.ddof))
    return found / (spread + parts.eps)


def loss(logits: jax.Array, parts: Parts, old: jax.Array, value: jax.Array) -> jax.Array:
    new = jax.nn.log_softmax(logits)[:, None]
    samples = Samples(
        log_probability_RT=new, entropy_RT=jnp.zeros_like(new), advantage_RT=advantages(parts, old, value)[:, None],
        trained_RT=jnp.ones_like(new), sequence_RT=jnp.zeros(new.shape, int), weight_RS=jnp.exp(old)[:, None],
        old_RT=old[:, None], reference_RT=REFERENCE[:, None],
    )  # fmt: skip
    total, count = policy_loss(parts, samples)["loss"]
    return total / count


@functools.partial(jax.jit, static_argnums=0)
def learn(parts: Parts) -> jax.Array:
    """The policy after 1500 rounds of two steps each, the second of which is off policy; GSPO has one, for its clip is so narrow
    that KL in the loss would act twice and the advantage once."""
    steps = 1 if parts.clip_high < 1e-3 else 2

    def round_(carry, _):
        logits, value = carry
        old = jax.nn.log_softmax(logits)
        for _ in range(steps):
            gradient = jax.grad(loss)(logits, parts, old, value)
            logits = logits - 0.2 * gradient * parts.divisor ** (parts.aggregation == "constant")
        rewards = REWARDS - parts.kl_weight * kl(old, REFERENCE, parts.kl) * (parts.kl_place == "reward")
        return (logits, value + 0.5 * (jnp.sum(jnp.exp(old) * rewards) - value)), None

    (logits, _), _ = jax.lax.scan(round_, (jnp.zeros(4), jnp.float32(0)), length=1500)
    return jax.nn.softmax(logits)


def bandit_parts(name: str) -> Parts:
    """The preset with this β, and a critic's λ that one token does not ask for."""
    where = {} if PRESETS[name].get("kl_place") else {"kl_place": "loss"}
    return dataclasses.replace(preset(name), kl_weight=BETA, **where)


def optimum(scale: float = 1.0) -> np.ndarray:
    return np.asarray(jax.nn.softmax(REFERENCE + REWARDS / (BETA * scale)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reaches_the_optimum(name):
    """With the group's standard deviation as divisor, rewards count in units of what it is at the optimum."""
    parts = bandit_parts(name)
    found = np.asarray(learn(parts), np.float64)
    scale = 1.0
    if parts.scale == "group_std" and parts.advantage == "group":
        scale = np.sqrt(found @ np.asarray(REWARDS) ** 2 - (found @ np.asarray(REWARDS)) ** 2)
        assert abs(scale - 1) > 0.1  # else the divisor could be left out
    assert found == pytest.approx(optimum(scale), abs=1e-3)
    assert np.max(np.abs(found - np.exp(REFERENCE))) > 0.1


def test_k3_as_it_stands_ends_elsewhere():
    """Its gradient is that of KL(π_ref ‖ π): the optimum is π = β π_ref / (λ − r), with λ such that it adds up to 1."""
    found = np.asarray(
        learn(dataclasses.replace(bandit_parts("dr_grpo"), kl="k3", kl_gradient="estimator")), np.float64
    )
    rewards, reference = np.asarray(REWARDS, np.float64), np.exp(np.asarray(REFERENCE, np.float64))
    low, high = rewards.max() + 1e-9, rewards.max() + 10
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(BETA * reference / (middle - rewards)) > 1 else (low, middle)
    assert found == pytest.approx(BETA * reference / (low - rewards), abs=1e-3)
    assert np.max(np.abs(found - optimum())) > 0.01
