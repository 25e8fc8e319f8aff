"""POLAR fine-tuning (eq. 8) on ranked triples: the best answer is the reference, the second is chosen, the third rejected."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.init = "runs/polar/pretrain"  # a run of configs/polar/pretrain.py
    config.data.kind = "comparisons"
    config.data.path = "shipped:ranked_train"  # or a file, or a real set: hh_harmless, llmfao_crowd, …
    config.optimizer.learning_rate = 1e-4
    config.run.steps = 100
    config.run.save_every = 50
    config.evals.preferences = base.comparisons_eval("shipped:ranked_test", every=50)
    return config
