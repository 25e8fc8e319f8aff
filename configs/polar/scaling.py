"""The grid of the scaling law: sizes by the number of layers, budgets by the number of steps; everything else equal."""

from ml_collections import ConfigDict

from configs import demo

LAYERS = (5, 9, 13, 17)  # of SmolLM2-135M; 3.5 M parameters each; all but the last as the language model has them
STEPS = (45, 90, 180)  # of one batch each


def get_config(layers: int, steps: int) -> ConfigDict:
    config = demo.pretrain()
    config.model.layers = layers
    config.model.frozen_layers = layers - 1
    config.run.steps = steps
    config.run.save_every = steps
    config.run.keep = 1
    return config
