"""POLAR-7B pre-training at the paper's size, for experiments.compile: `pretrain_7b.py:CHIPS`, 256 by default."""

from ml_collections import ConfigDict

from configs.polar import pods


def get_config(chips: str = "256") -> ConfigDict:
    config = pods.pretraining("internlm2_5_7b", rows=2048, chips=chips)  # some 4100 triples; the paper has 4343
    config.optimizer.learning_rate = 1.67e-5
    config.run.steps = 117_000  # one epoch
    return config
