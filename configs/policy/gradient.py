"""A policy gradient on a file of rewarded samples: `--config=configs/policy/gradient.py:PRESET --config.data.path=FILE`.

PRESET is one of `rmjax.losses.policy.presets.PRESETS`, grpo by default. Rows: prompt, outputs, rewards, and what the preset reads
beside them (docs/methods/policy.md). The result is a language model: `--config.model.init` takes it, and so does the sampler.
"""

from ml_collections import ConfigDict

from rmjax import config as base
from rmjax.losses.policy.presets import PRESETS


def get_config(preset: str = "grpo") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"configs/policy/gradient.py:{preset} is unknown; choose one of {', '.join(PRESETS)}")
    config = base.get_config()
    config.objective = "policy_gradient"
    config.policy.update(PRESETS[preset])
    config.trainable = "/layers/|final_norm"
    config.data.kind = "samples"
    config.data.candidates = 8  # samples of a prompt in a tree; more are spread over several
    config.format.kind = "chat"
    config.format.template = ""  # the language model's own
    config.optimizer.learning_rate = 1e-6  # the papers' 1e-6 is of models of 7 to 32 billion parameters
    config.optimizer.warmup = 0.0
    config.run.steps = 100
    config.run.save_every = 50
    return config
