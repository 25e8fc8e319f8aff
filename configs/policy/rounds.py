"""Rounds of a policy gradient: `--config=configs/policy/rounds.py:PRESET`, grpo by default.

PRESET is one of `rmjax.losses.policy.presets.PRESETS`. SmolLM2 on the shipped tasks that end in a number, rewarded by whether it
is right. `PRESET-tiny` is its first two layers, which learn to write few letters: to see what a run leaves.
"""

from ml_collections import ConfigDict

from rmjax import config as base
from rmjax.losses.policy.presets import PRESETS

NUMBERS = "chain_sum|simple_equations|letter_counting|number_sequence|lcm"
COLUMNS = ("id", "prompt", "category", "reference=answer")


def get_config(argument: str = "grpo") -> ConfigDict:
    preset, _, size = argument.partition("-")
    if preset not in PRESETS or size not in ("", "tiny"):
        raise ValueError(
            f"configs/policy/rounds.py:{argument} is unknown; choose one of {', '.join(PRESETS)}, or one of them with -tiny"
        )
    config = base.get_config()
    config.objective = "policy_gradient"
    config.policy.update(PRESETS[preset])
    config.policy.reference = "recorded"  # when a round is drawn, once for all of its updates
    if preset == "ppo":
        config.policy.values = "critic"
        config.optimizer.rates = ("^critic/=10",)
    config.trainable = "/layers/|final_norm"
    config.format.kind = "chat"
    config.data.kind = "rollouts"
    config.data.path = "shipped:skills_train"
    config.data.columns = COLUMNS
    config.evals.held_out = base.answers_eval("shipped:skills_test", every=10, limit=40, columns=COLUMNS)
    for section in (config.rollouts, config.evals.held_out):
        section.categories = NUMBERS
    config.run.log_every = 1
    config.optimizer.warmup = 0.0
    return (_tiny if size else _corpus)(config)


def _corpus(config: ConfigDict) -> ConfigDict:
    config.model.frozen_layers = 20  # of 30
    config.rollouts.update(prompts=8, samples=8, updates=1, max_new_tokens=32)
    config.data.update(rows=8, row_tokens=384, groups=8, candidates=8)
    config.reward.update(parts=("number=1",), number_form="last")
    config.evals.held_out.max_new_tokens = 32
    config.optimizer.learning_rate = 1e-5
    config.run.update(steps=20, save_every=10)
    return config


def _tiny(config: ConfigDict) -> ConfigDict:
    config.model.layers = 2  # the first ones of 30: they write no sentences
    config.rollouts.update(prompts=4, samples=8, updates=2, max_new_tokens=8)
    config.data.update(rows=4, row_tokens=256, groups=4, candidates=8)
    config.reward.update(parts=("overlong=1",), longest=64, buffer=64)  # 0 for no letter, −1 for 64
    config.evals.held_out.update(every=12, max_new_tokens=8, limit=8)
    config.optimizer.learning_rate = 3e-4
    config.run.update(steps=24, save_every=12)
    return config
