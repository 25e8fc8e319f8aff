"""Sizes of the study: the same model, pairs, optimizer, schedule and seeds on both sides."""

from ml_collections import ConfigDict

from configs import benchmark


def get_config() -> ConfigDict:
    """`training` is what our side runs; the other side is told the same."""
    config = ConfigDict()
    config.peer = ".venv-bench/bin/python"  # interpreter of an environment with torch and TRL
    config.data = "hh_harmless"  # generated pairs stand in where it is absent, from which nothing can be learned
    config.root = "../shared/data"  # where the real sets lie
    config.pairs = 1400  # to train on, one pass; another choice and order for each seed
    config.tested = 344  # held-out pairs at most, the same for all seeds
    config.batch = 16  # pairs of a batch there; rows of ours hold no more in the mean
    config.points = 5  # times that the held-out pairs are scored, after the one before training
    config.seeds = (0, 1, 2)  # of the choice and order of pairs, and of the head
    config.training = training = benchmark.get_config()  # everything is trained
    training.model.layers = 1  # first k layers
    training.format.max_length = 256  # tokens of an answer behind its prompt, on both sides
    training.data.row_tokens = 512  # of ours, for some three pairs
    training.data.epochs = 1
    training.optimizer.learning_rate = 5e-4  # peak
    training.optimizer.warmup = 0.1  # fraction of the steps
    training.optimizer.final = 0.1  # end of the cosine, fraction of the peak
    return config
