"""The three runs of `make demo`: sizes that two cores get through in minutes."""

from ml_collections import ConfigDict

from configs.polar import finetune as polar_finetune
from configs.polar import pretrain as polar_pretrain


def _small(config: ConfigDict) -> ConfigDict:
    config.model.layers = 2
    config.data.row_tokens = 288
    config.data.rows = 12
    config.data.groups = 4
    config.format.max_length = 288
    config.run.log_every = 2
    config.evals = ConfigDict()  # the demo judges at its end
    return config


def pretrain() -> ConfigDict:
    config = _small(polar_pretrain.get_config())
    config.format.max_response_length = 20  # more groups for the same time; a writer shows in the first words
    config.data.copies = 0.5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.1
    config.run.steps = 90
    config.run.save_every = 30
    return config


def finetune() -> ConfigDict:
    config = _small(polar_finetune.get_config())
    config.format.max_response_length = 48  # a right answer may say so only at its end
    config.data.rows = 8
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0.1
    config.run.steps = 24
    config.run.save_every = 12
    return config
