"""AdamW with warm-up and cosine decay, as the POLAR fine-tuning configs have it, and the paper's hyper-parameter laws."""

from typing import Any

import jax.numpy as jnp
import optax


def schedule(learning_rate: float, steps: int, warmup: float, final: float) -> optax.Schedule:
    """Linear from 0 over `warmup` (share of `steps`), then cosine to `final` · learning_rate."""
    warmup_steps = max(1, round(warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1), end_value=final * learning_rate
    )


def adamw(
    rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.95, weight_decay: float = 0.0, clip: float = 1.0
) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW, all in fp32 whatever the parameters' dtype. Defaults: the official fine-tuning config
    (section 1.6 of the specification)."""
    inner = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))

    def init(params: Any) -> Any:
        return inner.init(optax.tree.cast(params, jnp.float32))  # moments are like what they are made for

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(optax.tree.cast(gradient, jnp.float32), state, params)

    return optax.GradientTransformation(init, update)


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
