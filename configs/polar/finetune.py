"""POLAR fine-tuning (eq. 8) on ranked triples: the best answer is the reference, the second is chosen, the third rejected.

`--config=configs/polar/finetune.py:hh_harmless` takes a real set instead (docs/data.md), with a fifth of its prompts as
the test split. Where a set has no references, the plain form of the input is trained.
"""

from ml_collections import ConfigDict

from rmjax import config as base

REFERENCE = {
    "hh_harmless": "optional",
    "llmfao_crowd": "optional",
    "pandalm_human": "optional",
    "fine_grained_triples": "required",
    "fine_grained_qa": "required",
}


def get_config(source: str = "") -> ConfigDict:
    config = base.get_config()
    config.model.init = "runs/polar/pretrain"  # a run of configs/polar/pretrain.py
    config.data.kind = "comparisons"
    config.data.path = "shipped:ranked_train"  # or a file, or a real set: hh_harmless, llmfao_crowd, …
    config.model.frozen_layers = 16  # as in pre-training
    config.optimizer.learning_rate = 1e-4
    config.run.steps = 100
    config.run.save_every = 50
    # Not on triples_test, with which ranked_train shares 17 prompts (docs/data.md).
    config.evals.preferences = base.comparisons_eval("shipped:ranked_test", every=50)
    return _real(config, source) if source else config


def _real(config: ConfigDict, source: str) -> ConfigDict:
    if source not in REFERENCE:
        raise ValueError(
            f"configs/polar/finetune.py:{source} is not a set to train on; there are {', '.join(REFERENCE)}"
        )
    config.data.path = source
    config.data.split = "train"
    config.data.reference = REFERENCE[source]
    if source == "fine_grained_qa":
        config.data.candidates = 4  # answers to a question
    config.evals.preferences = base.comparisons_eval(source, every=50, split="test")
    return config
