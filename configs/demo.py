"""The three runs of `make demo`: sizes that two cores get through in minutes."""

from ml_collections import ConfigDict

from configs.polar import finetune as polar_finetune
from configs.polar import pretrain as polar_pretrain

LAYERS = 4


def _small(config: ConfigDict) -> ConfigDict:
    config.model.layers = LAYERS
    config.data.row_tokens = 256
    config.format.max_length = 256
    config.format.max_response_length = 48
    config.data.groups = 4
    config.run.log_every = 2
    return config


def pretrain() -> ConfigDict:
    config = _small(polar_pretrain.get_config())
    config.data.rows = 12
    config.optimizer.learning_rate = 5e-4
    config.run.steps = 60
    config.run.save_every = 20
    config.evals = ConfigDict()  # the demo judges at its end
    return config


def finetune() -> ConfigDict:
    config = _small(polar_finetune.get_config())
    config.data.rows = 8
    config.optimizer.learning_rate = 3e-4
    config.run.steps = 24
    config.run.save_every = 12
    config.evals = ConfigDict()
    return config
