"""MetaRM's modes; random weights of SmolLM2's sizes, random pairs and random answers, on which costs do not depend."""

from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import configured


def get_config() -> ConfigDict:
    """The published arms and sizes."""
    config = ConfigDict()
    config.layers = 6  # of the model
    config.frozen_layers = 0  # of them, from the bottom
    config.rows = 4  # rows of either batch
    config.row_tokens = 256  # tokens a row
    config.samples = 5  # k, samples a group
    config.rounds = 12  # that count; in each, every arm takes a step
    config.arms = ConfigDict(sort_keys=False)  # name → (gradient.mode, gradient.order)
    config.arms.plain = ("plain", 1)
    config.arms.parameter_norm = ("parameter_norm", 1)
    config.arms.step_norm = ("step_norm", 1)
    config.arms.preconditioned = ("preconditioned", 1)
    config.arms.second_order = ("step_norm", 2)
    return config


def training(grid: Any, name: str = "") -> ConfigDict:
    """The run of an arm, whose step is timed; without MetaRM where no arm is named."""
    config = configured({}, layers=grid.layers, rows=grid.rows, row_tokens=grid.row_tokens)
    config.model.frozen_layers = grid.frozen_layers
    config.meta_data.update(rows=grid.rows, row_tokens=grid.row_tokens, samples=grid.samples)
    if name:
        mode, order = grid.arms[name]
        # the length of the ascent, in the unit of whatever mode: a time does not depend on it
        config.gradient.update(name="meta", mode=mode, order=order, inner_learning_rate=1e-3)
    return config
