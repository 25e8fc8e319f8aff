"""Sizes by the number of layers, budgets by the number of steps; everything else equal."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The grid."""
    config = ConfigDict()
    config.layers = (
        6,
        10,
        14,
        18,
    )  # of SmolLM2-135M; 3.5 M parameters each; all but the last two as the language model has them
    config.steps = (40, 80, 160)  # of one batch each
    config.per_prompt = 1  # groups of a held-out prompt to evaluate on
    config.negatives = 3  # answers of other policies in a group
    config.training = "configs/demo.py"  # whose `pretrain` run the grid changes
    return config
