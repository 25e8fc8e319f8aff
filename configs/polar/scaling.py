"""The grid of the scaling law: sizes by the number of layers, budgets by the number of steps; everything else equal."""

from ml_collections import ConfigDict

from configs import demo

LAYERS = (6, 10, 14, 18)  # of SmolLM2-135M; 3.5 M parameters each; all but the last two as the language model has them
STEPS = (40, 80, 160)  # of one batch each


def get_config(layers: int, steps: int) -> ConfigDict:
    config = demo.pretrain()
    config.model.layers = layers
    config.model.frozen_layers = layers - 2
    config.run.steps = steps
    config.run.save_every = steps
    config.run.keep = 1
    return config
