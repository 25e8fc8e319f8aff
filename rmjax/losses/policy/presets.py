"""Published algorithms as values of `parts.Parts`: what each sets, all else being the default.

Where a paper has KL in its loss, the gradient is the exact one (`kl_gradient`); `estimator` gives the paper's k3.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rmjax.losses.policy.parts import Parts

_KL_IN_REWARD = {"kl": "k1", "kl_place": "reward", "kl_weight": 0.05, "reference": "recorded"}
_WITHOUT_RATIO = {"ratio": "none", "clip": "none", "aggregation": "sequence_sum"}
_NO_SCALE = {"scale": "none"}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "reinforce": {"baseline": "none", **_NO_SCALE, **_WITHOUT_RATIO, **_KL_IN_REWARD},
        "rloo": {"baseline": "leave_one_out", **_NO_SCALE, **_WITHOUT_RATIO, **_KL_IN_REWARD},
        "ppo": {"advantage": "gae", "gamma": 1.0, "lam": 0.95, "aggregation": "token_mean", **_KL_IN_REWARD},
        "grpo": {"eps": 1e-4, "kl": "k3", "kl_weight": 0.04, "aggregation": "sequence_mean"},
        "dr_grpo": {**_NO_SCALE, "aggregation": "constant"},
        "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence_mean"},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, "equal_groups": "drop", "truncated": "mask"},
    }
)
"""Name → key of `config.policy` → value."""


def preset(name: str) -> Parts:
    """The parts of a preset. ValueError for a name that there is not."""
    if name not in PRESETS:
        raise ValueError(f"policy preset is {name!r}; choose one of {', '.join(PRESETS)}")
    return dataclasses.replace(Parts(), **PRESETS[name])
