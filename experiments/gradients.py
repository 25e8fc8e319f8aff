"""How a config forms its gradient."""

import re
from typing import Any

import numpy as np
import optax

from experiments.adapters import trainable_paths
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
    if chosen.order == 2 and config.model.attention == "pallas":
        raise ValueError(
            "config.gradient.order is 2, and pallas kernels have no second derivative; use attention=blockwise"
        )
    if not 0 <= chosen.warmup_steps < config.run.steps:
        raise ValueError(
            f"config.gradient.warmup_steps is {chosen.warmup_steps} of {config.run.steps} steps; give 0 or more, and fewer "
            "than run.steps: else no step has an ascent"
        )
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
    """ValueError where J would begin at a reward head that is zero: that of `params` (None = random weights), unless it is
    trained and the warm-up moves it."""
    trained = re.search(trainable_paths(config), "head/kernel")
    warmed = trained and any(np.asarray(rate(step)) > 0 for step in range(config.gradient.warmup_steps))
    if config.gradient.name == "meta" and not warmed:
        meta.refuse_zero_head(params or {})
