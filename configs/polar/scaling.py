"""The grid of the scaling law: sizes by the number of layers, budgets by the number of steps; everything else equal."""

from ml_collections import ConfigDict

from configs import demo

LAYERS = (1, 2, 4, 8)  # of SmolLM2-135M; 3.5 M parameters each
STEPS = (16, 32, 64)  # of one batch each


def get_config(layers: int, steps: int) -> ConfigDict:
    config = demo.pretrain()
    config.model.layers = layers
    config.run.steps = steps
    config.run.save_every = steps
    config.run.keep = 1
    return config
