"""Reward modelling in JAX: pre-train, fine-tune, judge and use reward models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmjax.data.record import Comparison
    from rmjax.reward_model import RewardModel

__all__ = ["Comparison", "RewardModel"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `import rmjax` alone does not start JAX."""
    if name == "RewardModel":
        from rmjax.reward_model import RewardModel

        return RewardModel
    if name == "Comparison":
        from rmjax.data.record import Comparison

        return Comparison
    raise AttributeError(f"module 'rmjax' has no attribute {name!r}")
