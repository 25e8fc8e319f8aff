"""POLAR-1.8B fine-tuning at the paper's size, for experiments.compile: `finetune_1_8b.py:CHIPS`, 256 by default."""

from ml_collections import ConfigDict

from configs.polar import pods


def get_config(chips: str = "256") -> ConfigDict:
    config = pods.finetuning("internlm2_5_1_8b", chips)
    config.optimizer.learning_rate = 1e-5
    return config
