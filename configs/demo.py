"""The runs of `make demo`: sizes that two cores get through in minutes.

Alone: `python -m experiments.train --config=configs/demo.py:pretrain --workdir=DIR` (or `:finetune`).
"""

from ml_collections import ConfigDict

from configs.polar import finetune as polar_finetune
from configs.polar import pretrain as polar_pretrain


def get_config(run: str = "pretrain") -> ConfigDict:
    runs = {"pretrain": pretrain, "finetune": finetune}
    if run not in runs:
        raise ValueError(f"configs/demo.py:{run} is not one of its runs: {', '.join(runs)}")
    return runs[run]()


def _small(config: ConfigDict) -> ConfigDict:
    # The lowest layers do not compare two texts. With two layers trained on eight frozen ones the loss is that of 18 layers, for
    # two thirds of the FLOPs (docs/claims/polar/details.md, scaling law).
    config.model.layers = 10
    config.model.frozen_layers = 8
    config.mesh.data = 1
    config.mesh.context = -1  # on several devices they share each row's tokens: a batch has too few rows to share
    config.run.log_every = 1
    config.evals = ConfigDict()  # the demo judges at its end
    return config


def pretrain() -> ConfigDict:
    config = _small(polar_pretrain.get_config())
    config.data.rows = 1  # small batches: a head that starts at zero needs steps more than it needs quiet gradients
    config.data.row_tokens = 640
    config.format.max_length = 256
    config.format.max_response_length = 24  # more groups for the same time; a writer shows in the first words
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.1
    config.run.steps = 165
    config.run.save_every = 83
    return config


def finetune() -> ConfigDict:
    config = _small(polar_finetune.get_config())
    config.data.rows = 2
    config.data.row_tokens = 512
    config.format.max_length = 288
    config.format.max_response_length = 48  # a right answer may say so only at its end
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0.1
    config.run.steps = 14
    config.run.save_every = 14
    return config
