"""The demo's three runs at the size that one machine takes: all 30 layers of SmolLM2-135M-Instruct, 14 of them trained.

`python -m experiments.study polar:demo --config.runs=configs/polar/larger.py --workdir=runs/larger` trains, judges and reports.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(run: str = "pretrain") -> ConfigDict:
    config = demo.get_config(run)
    config.model.layers = 30
    config.model.frozen_layers = 16
    return {"pretrain": _pretrain, "finetune": _finetune}[run](config)


def _pretrain(config: ConfigDict) -> ConfigDict:
    config.data.rows = 2
    config.format.max_response_length = 48
    config.format.max_length = 288
    config.optimizer.learning_rate = 3e-4  # seven times the weights of the demo move, so each less
    config.run.steps = 180
    config.run.save_every = 60
    return config


def _finetune(config: ConfigDict) -> ConfigDict:
    config.format.max_response_length = 64
    config.optimizer.learning_rate = 1e-4
    config.run.steps = 30
    config.run.save_every = 30
    return config
