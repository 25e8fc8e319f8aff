"""AdamW with warm-up and cosine decay, as the POLAR fine-tuning configs have it, and the paper's hyper-parameter laws."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmjax.models.parameters import flat, nested


def schedule(learning_rate: float, steps: int, warmup: float, final: float) -> optax.Schedule:
    """Linear from 0 over `warmup` (a fraction of `steps`), then cosine to `final` · learning_rate. Where the warm-up is shorter
    than half a step there is none, and the first step has the full rate."""
    warmup_steps = round(warmup * steps)
    if not warmup_steps:
        return optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=final)
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1), end_value=final * learning_rate
    )


def peak(steps: int, warmup: float) -> int:
    """The number of updates before the one with the highest rate of `schedule` in a run of `steps`."""
    return min(round(warmup * steps), steps - 1)


def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    decayed: str = ".",
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW, all in fp32 whatever the parameters' dtype. Defaults: the official fine-tuning config
    (section 1.6 of the specification).

    Args:
      clip: global norm; 0 = off.
      decayed: pattern of the paths that `weight_decay` is for.
      rates: pattern → factor of the learning rate of the paths that match; the first match counts.
    """
    clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
    mask = functools.partial(_by_path, lambda path: re.search(decayed, path) is not None) if weight_decay else None
    inner = optax.chain(clipping, optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask))

    def init(params: Any) -> Any:
        return inner.init(optax.tree.cast(params, jnp.float32))  # moments are like what they are made for

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(optax.tree.cast(gradient, jnp.float32), state, params)
        if rates:
            updates = jax.tree.map(lambda u, f: u * f, updates, _by_path(functools.partial(factor, rates), updates))
        return updates, state

    return optax.GradientTransformation(init, update)


def _by_path(value: Callable[[str], Any], tree: Any) -> Any:
    return nested({path: value(path) for path in flat(tree)})


def factor(rates: Mapping[str, float], path: str) -> float:
    """That of a path's learning rate, with `rates` as in `adamw`."""
    return next((factor for pattern, factor in rates.items() if re.search(pattern, path)), 1.0)


def parse_rates(entries: Sequence[str]) -> dict[str, float]:
    """ "PATTERN=FACTOR" entries as a mapping. ValueError for what is not such an entry."""
    found = {}
    for entry in entries:
        pattern, _, factor = str(entry).rpartition("=")
        try:
            re.compile(pattern)
            found[pattern] = float(factor)
        except (re.error, ValueError):
            found[pattern] = math.nan
        if not pattern or not 0 <= found[pattern] < math.inf:
            raise ValueError(
                f"config.optimizer.rates has {entry!r}; give PATTERN=FACTOR, a regular expression and a number of 0 or more"
            )
    return found


def polar_learning_rate(parameters: float, pretrain_tokens: float, reward_tokens: float) -> float:
    """Peak learning rate of POLAR pre-training (appendix D.1.2): 0.0002306 N^0.01125 D_p^−0.66587 D_rm^0.33916.

    The paper says "all in millions", which gives 1.5e-6 where it trains with 1.4e-5. With N in millions and both D in
    billions the law gives 1.40e-5 and 1.64e-5 for its two models (printed: 1.4e-5 and 1.67e-5); so it is used here.

    Args: plain counts — parameters of the model, tokens that the backbone was trained on, tokens of POLAR pre-training.
    """
    return (
        0.0002306
        * (parameters / 1e6) ** 0.01125
        * (pretrain_tokens / 1e9) ** -0.66587
        * (reward_tokens / 1e9) ** 0.33916
    )


def polar_batch_size(parameters: float, reward_tokens: float) -> float:
    """Triples a step (appendix D.1.2): 31.9032 N^0.06944 D_rm^0.52997, N in millions and D in billions as above
    (4 % above the sizes that the paper trains with)."""
    return 31.9032 * (parameters / 1e6) ** 0.06944 * (reward_tokens / 1e9) ** 0.52997
