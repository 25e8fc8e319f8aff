"""Reward modeling in JAX: pre-train, fine-tune, evaluate and use reward models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmjax.data.record import Comparison
    from rmjax.reward_model import RewardModel
    from rmjax.trainer import Trainer

__all__ = ["Comparison", "RewardModel", "Trainer"]
__version__ = "0.1.0"
_PLACES = {"Comparison": "rmjax.data.record", "RewardModel": "rmjax.reward_model", "Trainer": "rmjax.trainer"}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `import rmjax` alone does not start JAX."""
    if name not in _PLACES:
        raise AttributeError(f"module 'rmjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
