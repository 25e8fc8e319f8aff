"""How a config forms its gradient."""

from typing import Any

import numpy as np
import optax

from experiments.sources import choose
from rmjax.models.reward import RewardTransformer
from rmjax.train import gradient, meta, objective

MODES = ("plain", "parameter_norm", "step_norm", "preconditioned")


def make_gradient(
    config: Any, loss: objective.Objective, model: RewardTransformer, rate: optax.Schedule, sharding: Any
) -> gradient.Gradient:
    """From `config.gradient`; `sharding` is that of the trainable parameters, `rate` the outer learning rate."""
    parts = config.optimizer.microbatches
    outer = gradient.plain(loss, parts)
    if choose("gradient.name", config.gradient.name, ("plain", "meta")) == "plain":
        return outer
    chosen = config.gradient
    if chosen.order not in (1, 2):
        raise ValueError(f"config.gradient.order is {chosen.order}; it must be 1 or 2")
    if chosen.inner_learning_rate < 0:
        raise ValueError(f"config.gradient.inner_learning_rate is {chosen.inner_learning_rate}; it must be 0 or more")
    return meta.meta(
        outer, gradient.plain(objective.discrimination(model), parts), _factors(config, rate),
        second_order=chosen.order == 2, warmup_steps=chosen.warmup_steps, sharding=sharding,
    )  # fmt: skip


def _factors(config: Any, rate: optax.Schedule) -> meta.Factors:
    mode, eta = choose("gradient.mode", config.gradient.mode, MODES), config.gradient.inner_learning_rate
    adam = meta.Adam(rate, config.optimizer.b1, config.optimizer.b2)
    if mode == "step_norm":
        return meta.step_norm(eta, adam)
    if mode == "preconditioned":
        return meta.preconditioned(eta, adam)
    return meta.plain(eta) if mode == "plain" else meta.parameter_norm(eta)


def check_head(config: Any, params: Any, rate: optax.Schedule) -> None:
    """ValueError where J would begin at a reward head that is zero: that of `params` (None = random weights), unless the
    warm-up moves it."""
    warmed = any(np.asarray(rate(step)) > 0 for step in range(config.gradient.warmup_steps))
    if config.gradient.name == "meta" and not warmed:
        meta.refuse_zero_head(params or {})
