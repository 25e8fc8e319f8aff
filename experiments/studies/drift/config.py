"""The arms, stages and sizes of the study. `drift:SERIES` says where the writer drifts to:

pool: what other policies of a pool write
steps, depth, temperature: the same, where one thing moves: steps of fine-tuning, layers left out, how answers are drawn
best_of_n: the order of words that a reward model likes
distilled: what a policy writes that was tuned on what a reward model likes, once and twice
"""

from typing import Any

from ml_collections import ConfigDict

from configs.sample import corpus, tune
from rmjax import config as base
from rmjax.data.sources import choose

STAGES = FIRST, DRIFTED, FURTHEST = ("first", "drifted", "furthest")
PLAIN = "plain|cold|narrow|assistant|greedy|warm|noise3"
POLICIES = {  # series → policies of each stage (regular expressions); the other series go from the first stage of `pool`
    "pool": (
        PLAIN,
        "verne-.*|docstrings-.*|professor|lawyer|pirate|rhymer|bullets",
        "spanish|german|json|coder|code-.*|shouting|hot",
    ),
    "steps": (PLAIN, "(verne|docstrings|tasks|code)-early", "(verne|docstrings|tasks|code)-late"),
    "depth": (PLAIN, "drop(20-21|24-25|28)", "drop(4|9-10|14)"),  # upper layers left out, then lower ones
    "temperature": ("cold|narrow|greedy", "plain|warm", "hot"),
}
OF_A_PROXY = ("best_of_n", "distilled")
META = {  # arms of MetaRM by mode of the ascent, each at three inner learning rates, in the mode's unit
    "plain": ("5e-6", "1e-2", "1"),  # the paper's; up to what can be seen
    "parameter_norm": ("1e-4", "1e-3", "1e-2"),  # of every leaf's norm
    "step_norm": ("3e-1", "1", "3"),  # of the outer step's length
    "preconditioned": ("1e-5", "1e-4", "1e-3"),  # in the unit of the learning rate
}
ASCENDING = "meta-step_norm-1|meta-random_prompts"
CHOSEN = dict.fromkeys(POLICIES, f"plain|plain-longer|plain-again|{ASCENDING}") | {"pool": ".*"}
CHOSEN |= dict.fromkeys(OF_A_PROXY, f"{CHOSEN['steps']}|plain-rate_2|self-labeled|meta-step_norm-3|meta-second_order")


def get_config(series: str = "pool") -> ConfigDict:
    """With one of six series."""
    choose("series", series, list(CHOSEN))
    config = ConfigDict()
    config.series = series
    config.writer = writer(series)
    config.seeds = (0, 1, 2)  # of the order of the labels and the random weights
    config.proxy_seed = 100  # plus a seed: of the reward model that this seed's stages are made with
    config.init = "smollm2"  # as model.init in configs/base.py
    config.layers = 4  # first k layers, the last two of them trained
    config.steps = 40  # of one row of 512 tokens
    config.learning_rate = 5e-4  # peak
    config.warmup = 15  # steps without ascent: the head starts at zero
    config.chosen = CHOSEN[series]  # regular expression: arms whose whole name matches are run
    config.compared = ("plain", "plain-longer", "plain-again")  # what every arm is compared with

    config.arms = arms = ConfigDict()
    arms["plain"] = arm()
    arms["plain-longer"] = arm(steps=2.0)
    arms["plain-again"] = arm(steps=2.0, again=True)
    arms["self-labeled"] = arm(self_labeled=True)
    for name, factor in {"half": 0.5, "2": 2.0, "4": 4.0}.items():
        arms[f"plain-rate_{name}"] = arm(rate=factor)
    for mode, etas in META.items():
        for eta in etas:
            arms[f"meta-{mode}-{eta}"] = arm(mode, float(eta))
    arms["meta-second_order"] = arm("step_norm", 1.0, order=2)
    arms["meta-random_prompts"] = arm("step_norm", 1.0, meta="random")
    return config


def arm(
    mode: str = "", eta: float = 0.0, order: int = 1, steps: float = 1.0, rate: float = 1.0, meta: str = "meta",
    again: bool = False, self_labeled: bool = False,
) -> ConfigDict:  # fmt: skip
    """An arm: a plain gradient where `mode` is empty."""
    entry = ConfigDict()
    entry.mode = mode  # of the ascent, as gradient.mode in configs/base.py
    entry.eta = eta  # inner learning rate, in the unit of the mode
    entry.order = order
    entry.steps = steps  # times config.steps
    entry.rate = rate  # times config.learning_rate
    entry.meta = meta  # file of the meta set: meta | random (its answers, each under a random prompt)
    entry.again = again  # only the labels that the plain arm sees, and so each of them `steps` times
    entry.self_labeled = self_labeled  # also the meta answers as pairs, in the order that the plain arm gives them
    return entry


def writer(series: str) -> ConfigDict:
    """What writes the stages."""
    entry = ConfigDict()
    entry.pool = "shipped:policy_pool"  # or a pool file with more samples of each policy
    entry.policies = POLICIES.get(series, (PLAIN,) * 3)  # of each stage
    entry.ladder = (
        0.0,
        0.25,
        0.6,
    )  # fraction of an answer's words, at random places, that change places in a ring, by rung
    entry.best_of = (1, 4, 32) if series == "best_of_n" else ()  # shuffles that the proxy chooses from, by stage
    entry.answers, entry.tested_answers = 8, 6  # labeled ones of a prompt at most, to train on and to test on
    entry.least_words = 6  # answers of fewer words have no order to lose
    if series == "distilled":
        entry.tuning, entry.sampling = tuning(), sampling()
    return entry


def tuning() -> ConfigDict:
    """A round's tuning of the policy; model.init and data.path are filled in."""
    config = tune.get_config()
    config.model.init, config.data.path = "smollm2", ""
    config.model.frozen_layers = 24
    config.trainable = "/layers/"
    config.data.rows, config.data.row_tokens = 2, 256
    config.run.steps = config.run.save_every = 60  # about two passes
    config.run.keep, config.run.keep_every = 1, 0
    return config


def sampling() -> ConfigDict:
    """Its samples: four for each prompt, by the pool's decoding rule; checkpoints and prompts are filled in."""
    config = corpus.get_config()
    config.policies = ({"name": "distilled", "kind": "tuned", "split": "seen", "checkpoint": ""},)
    config.checkpoints = config.prompts = ""
    config.policies_per_prompt, config.samples = 1, 4
    return config


def training(grid: Any, name: str, seed: int, stages: str) -> ConfigDict:
    """The run of an arm; stages: where the meta sets are."""
    chosen, config = grid.arms[name], base.get_config()
    config.model.init = grid.init
    config.model.layers, config.model.frozen_layers = grid.layers, max(0, grid.layers - 2)
    config.data.kind = "comparisons"
    config.data.path = "work:data/train.jsonl"
    config.data.reference = "optional"  # plain form: the pool's answers have none
    config.data.candidates = grid.writer.answers
    config.data.rows, config.data.groups = 1, 4
    config.format.max_response_length = 48
    config.optimizer.learning_rate = grid.learning_rate * chosen.rate
    config.run.seed, config.run.keep = seed, 1
    config.run.steps = config.run.save_every = round(grid.steps * chosen.steps)
    if chosen.mode:
        config.meta_data.kind = "comparisons"
        config.meta_data.path = f"{stages}/{chosen.meta}.jsonl"
        config.meta_data.rows = 1
        config.gradient.name, config.gradient.mode = "meta", chosen.mode
        config.gradient.inner_learning_rate, config.gradient.order = chosen.eta, chosen.order
        config.gradient.warmup_steps = grid.warmup
    return config
