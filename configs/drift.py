"""The arms of experiments/drift.py: one start, one pool of labels, one meta set.

MetaRM's differ in how the gradient is formed and in nothing else; the controls in what they say.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from configs.sample import corpus, tune
from rmjax import config as base

POOL = "shipped:policy_pool"  # or a pool file with more samples of each policy


STAGES = {  # names of policies (regular expressions): where the writer has drifted to
    "first": "plain|cold|narrow|assistant|greedy|warm|noise3",
    "drifted": "verne-.*|docstrings-.*|professor|lawyer|pirate|rhymer|bullets",
    "furthest": "spanish|german|json|coder|code-.*|shouting|hot",
}
FIRST, DRIFTED, FURTHEST = STAGES
POOLED = {  # series whose stages are policies of the pool; in all but the first one thing moves
    "pool": STAGES,
    "steps": STAGES | {DRIFTED: "(verne|docstrings|tasks|code)-early", FURTHEST: "(verne|docstrings|tasks|code)-late"},
    "depth": STAGES | {DRIFTED: "drop(20-21|24-25|28)", FURTHEST: "drop(4|9-10|14)"},  # layers left out: upper, lower
    "temperature": {FIRST: "cold|narrow|greedy", DRIFTED: "plain|warm", FURTHEST: "hot"},
}
ROUNDS = (DRIFTED, FURTHEST)  # of tuning on what a reward model likes best
DISTILLED = "distilled"  # the policy that comes of it
BEST_OF = {"first": 1, "drifted": 4, "furthest": 32}  # shuffles of an answer that a reward model chooses from
LADDER = (0.0, 0.25, 0.6)  # share of an answer's words, at random places, that change places in a ring, by rung
ANSWERS, TEST_ANSWERS = 8, 6  # labeled ones of a prompt at most
LEAST_WORDS = 6  # answers of fewer words have no order to lose
SEEDS = (0, 1, 2)
PROXY_SEED = 100  # plus a seed: of the reward model whose best of n that seed is tested on
LAYERS = 4  # of SmolLM2-135M, the last two trained
STEPS = 40
RATE = 5e-4
WARMUP = 15  # steps without ascent: the head starts at zero


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm changes."""

    mode: str = ""  # of the ascent; empty = plain gradient
    eta: float = 0.0  # inner learning rate, in the unit of the mode
    order: int = 1
    steps: float = 1.0  # times STEPS
    rate: float = 1.0  # times RATE
    meta: str = "meta"  # file of the meta set: meta | random
    again: bool = False  # only the labels that the plain arm sees, and so each of them `steps` times
    self_labeled: bool = False  # the meta answers as pairs, in the order that the plain arm gives them


_ETAS = {
    "plain": (5e-6, 1e-2, 1.0),  # the paper's; up to what can be seen
    "parameter_norm": (1e-4, 1e-3, 1e-2),  # of every leaf's norm
    "step_norm": (0.3, 1.0, 3.0),  # of the outer step's length
    "preconditioned": (1e-5, 1e-4, 1e-3),  # in the unit of the learning rate
}
ARMS = (
    {
        "plain": Arm(),
        "plain-longer": Arm(steps=2.0),
        "plain-again": Arm(steps=2.0, again=True),
        "self-labeled": Arm(self_labeled=True),
    }
    | {f"plain-rate-{rate:g}": Arm(rate=rate) for rate in (0.5, 2.0, 4.0)}
    | {f"{mode}-{eta:g}": Arm(mode, eta) for mode, etas in _ETAS.items() for eta in etas}
    | {"second-order": Arm("step_norm", 1.0, order=2), "random-meta": Arm("step_norm", 1.0, meta="random")}
)
COMPARED = ("plain", "plain-longer", "plain-again")  # what every arm is compared with
_ASCENDING = ("step_norm-1", "random-meta")
_FEW = "plain|plain-longer|plain-again|plain-rate-2|self-labeled|step_norm-[13]|second-order|random-meta"
# Where the writer drifts to → arms (regular expression).
SERIES = dict.fromkeys(POOLED, "|".join((*COMPARED, *_ASCENDING))) | {
    "pool": ".*",
    "best_of_n": _FEW,
    "distilled": _FEW,
}
PLOTTED = ("plain", "plain-longer", "step_norm-1", "random-meta")


def get_config(arm: str, seed: int, labels: Path, meta: Path | None = None) -> ConfigDict:
    """labels, meta: folders with train.jsonl and with the meta sets."""
    chosen, config = ARMS[arm], base.get_config()
    config.model.layers = LAYERS
    config.model.frozen_layers = LAYERS - 2
    config.data.kind = "comparisons"
    config.data.path = str(labels / "train.jsonl")
    config.data.reference = "optional"  # plain form: the pool's answers have none
    config.data.candidates = ANSWERS
    config.data.rows = 1
    config.data.groups = 4
    config.format.max_response_length = 48
    config.optimizer.learning_rate = RATE * chosen.rate
    config.run.seed = seed
    config.run.steps = round(STEPS * chosen.steps)
    config.run.save_every = config.run.steps
    config.run.keep = 1
    if chosen.mode:
        assert meta is not None
        config.meta_data.kind = "comparisons"
        config.meta_data.path = str(meta / f"{chosen.meta}.jsonl")
        config.meta_data.rows = 1
        config.gradient.name = "meta"
        config.gradient.mode = chosen.mode
        config.gradient.inner_learning_rate = chosen.eta
        config.gradient.order = chosen.order
        config.gradient.warmup_steps = WARMUP
    return config


def distillation(init: str, texts: Path) -> ConfigDict:
    """A round's tuning of the policy; init as model.init."""
    config = tune.get_config()
    config.model.init = init
    config.model.frozen_layers = 24
    config.trainable = "/layers/"
    config.data.path = str(texts)
    config.data.rows, config.data.row_tokens = 2, 256
    config.run.steps = config.run.save_every = 60  # about two passes
    config.run.keep, config.run.keep_every = 1, 0
    return config


def sampling(folder: Path, prompts: Path, step: int) -> ConfigDict:
    """Its samples: four for each prompt, by the pool's decoding rule."""
    config = corpus.get_config()
    config.policies = ({"name": DISTILLED, "kind": "tuned", "split": "seen", "checkpoint": f"model/{step}"},)
    config.checkpoints = str(folder)
    config.prompts = str(prompts)
    config.policies_per_prompt = 1
    config.samples = 4
    return config
