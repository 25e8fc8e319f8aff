"""MetaRM: POLAR fine-tuning on ranked triples, each gradient taken after an ascent on unlabeled samples.

`--config=configs/metarm.py:MODE` chooses how far the ascent goes: plain, parameter_norm, step_norm or preconditioned.
"""

from ml_collections import ConfigDict

from configs.polar import finetune
from rmjax import config as base

INNER_LEARNING_RATE = {
    "plain": 5e-6,  # the paper's; Adam's step is larger by orders of magnitude
    "parameter_norm": 1e-3,  # of every leaf's norm
    "step_norm": 1.0,  # of the outer step's length
    "preconditioned": 1e-4,  # as the outer learning rate
}


def get_config(mode: str = "plain") -> ConfigDict:
    if mode not in INNER_LEARNING_RATE:
        raise ValueError(f"configs/metarm.py:{mode} is no mode; choose one of {', '.join(INNER_LEARNING_RATE)}")
    config = finetune.get_config()
    config.gradient.name = "meta"
    config.gradient.mode = mode
    config.gradient.inner_learning_rate = INNER_LEARNING_RATE[mode]
    config.meta_data.path = "shipped:policy_pool"
    config.meta_data.mixed = True  # the pool has two samples of a policy for a prompt; the paper's groups are of one
    config.meta_data.references = 1  # the ranked triples have one
    # Beside `preferences`, on the original distribution: who wrote what, of policies that no preference data came from.
    config.evals.shifted = base.pool_eval("unseen", per_prompt=1)
    config.evals.gaps = base.samples_eval("shipped:policy_pool", mixed=True)
    config.evals.gaps.references = 1
    return config
