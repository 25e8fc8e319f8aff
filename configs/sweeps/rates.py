"""Learning rates times seeds: which rate, and how far seeds differ."""

from rmjax.study.sweeps import product, seeds, sweep


def get_sweep():
    return product(sweep("optimizer.learning_rate", (1e-4, 3e-4, 1e-3)), seeds(3))
