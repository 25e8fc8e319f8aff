"""The arms and sizes of the study. `noise` learns from people's choices (hh_harmless, docs/data.md), `noise:rule` from answers
of the shipped pool's policies, of which the one with a digit is better."""

from typing import Any

from ml_collections import ConfigDict

from rmjax import config as base

HARMLESS, RULE = "harmless", "rule"


def get_config(data: str = HARMLESS) -> ConfigDict:
    """With `harmless` or `rule` pairs."""
    if data not in (HARMLESS, RULE):
        raise ValueError(f"noise:{data} is unknown; choose {HARMLESS} or {RULE}")
    config = ConfigDict()
    config.data = data
    config.root = "../shared/data"  # where the real sets lie
    config.init = "smollm2"  # as model.init in rmjax/settings.py
    config.layers = 1  # first k layers, all trained; the embedding is not
    config.pairs = 500  # to learn from, at most; another choice for each seed
    config.tested = 344  # held-out pairs at most, of other prompts
    config.passes = 2  # over the pairs
    config.noise = (0.0, 0.1, 0.2, 0.3, 0.4)  # fraction of labels that are flipped
    config.seeds = (0, 1, 2)  # of the choice of pairs, their order, the flips and the heads
    config.rows = 3  # rows a batch
    config.row_tokens = 320  # tokens a row, for some four pairs
    config.max_length = 64  # tokens of prompt and answer
    config.max_response_length = 32  # of them
    config.learning_rate = 1e-3  # peak
    config.margin = 1.0  # factor of the strength that two models give a pair
    config.margin_limit = 1.0  # largest margin, in units of reward
    config.chosen = ".*"  # regular expression: arms whose whole name matches are run
    config.keep_checkpoints = False
    config.arms = arms = ConfigDict()
    arms.bradley_terry = arm()
    arms.smoothing = arm(smoothing=True)
    arms.margin = arm(margin=True)
    arms.two = arm(review="none")
    arms.double = arm(budget=2)
    arms.self = arm(review="self")
    arms.random = arm(review="random")
    arms.crm = arm(review="peer")
    arms.curriculum = arm(review="peer", curriculum=True)
    config.compared = tuple(("crm", name) for name in arms if name != "crm")  # first − second
    return config


def arm(
    review: str = "", smoothing: bool = False, margin: bool = False, budget: int = 1, curriculum: bool = False
) -> ConfigDict:
    """An arm: Bradley–Terry on all pairs, but for what is said."""
    entry = ConfigDict()
    entry.review = review  # as crm.review; empty = one model
    entry.smoothing = smoothing  # label smoothing at the true rate
    entry.margin = margin  # by the strength that the arm `two` gives each pair
    entry.budget = budget  # factor of the passes
    entry.curriculum = curriculum  # easy pairs first in the passes after the first one
    return entry


def training(grid: Any, name: str, noise: float, seed: int, path: str) -> ConfigDict:
    """The run of an arm; steps and what is counted in passes are left open."""
    chosen, config = grid.arms[name], base.get_config()
    config.model.init = grid.init
    config.model.layers = grid.layers
    config.trainable = "/layers/|head"
    config.format.kind = "plain"
    config.format.max_length = grid.max_length
    config.format.max_response_length = grid.max_response_length
    config.data.kind = "comparisons"
    config.data.path = path
    config.data.reference = "optional"
    config.data.rows = grid.rows
    config.data.row_tokens = grid.row_tokens
    config.data.epochs = grid.passes * chosen.budget
    config.data.flip, config.data.flip_seed = noise, seed
    config.loss.label_smoothing = noise if chosen.smoothing else 0.0
    config.crm.review = chosen.review
    config.crm.noise = noise
    config.optimizer.learning_rate = grid.learning_rate
    config.optimizer.warmup = 0.1
    config.run.seed = seed
    config.run.log_every = 5
    config.run.keep = 1
    if chosen.margin:  # the records of `two`, flipped and with strengths
        config.data.flip = 0.0
        config.loss.order = "strength"
        config.strength.margin, config.strength.margin_limit = grid.margin, grid.margin_limit
    return config
