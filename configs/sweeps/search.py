"""Random search over what matters most in a first run."""

from rmjax.study.sweeps import log, sample


def get_sweep():
    return sample(16, {"optimizer.learning_rate": log(1e-5, 1e-2), "optimizer.weight_decay": (0.0, 0.01, 0.1)}, seed=0)
