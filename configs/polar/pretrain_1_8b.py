"""POLAR-1.8B pre-training at the paper's size, for experiments.compile: `pretrain_1_8b.py:CHIPS`, 256 by default."""

from ml_collections import ConfigDict

from configs.polar import pods


def get_config(chips: str = "256") -> ConfigDict:
    config = pods.pretraining("internlm2_5_1_8b", rows=1024, chips=chips)  # some 2000 triples; the paper has 1940
    config.optimizer.learning_rate = 1.4e-5
    config.run.steps = 69_000  # one epoch
    return config
