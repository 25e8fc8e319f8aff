"""MetaRM's rounds on the shipped tasks: `python -m experiments.rounds --config=configs/metarm_rounds.py:UPDATE --workdir=DIR`.

UPDATE is how a round updates the reward model: meta (the default), plain, or none. The policy is SmolLM2, the reward model the
shipped one, which reads the right answer as reference; gold is whether the answer's number is right.
"""

from ml_collections import ConfigDict

from configs import metarm
from configs.polar import shipped
from configs.policy import rounds as policy_rounds
from rmjax import config as base
from rmjax.hub.shipped import DEFAULT
from rmjax.rounds import chain


def get_config(update: str = "meta") -> ConfigDict:
    if update not in chain.UPDATES:
        raise ValueError(f"configs/metarm_rounds.py:{update} is no update; choose one of {', '.join(chain.UPDATES)}")
    config = chain.get_config(_policy(), _reward())
    config.rounds.update(count=3, reward_update=update, first_reward=False)
    for section, path, limit in (
        (config.meta, "shipped:skills_train", 100),
        (config.drifted, "shipped:skills_test", 60),
    ):
        section.update(
            path=path, limit=limit, columns=policy_rounds.COLUMNS, categories=policy_rounds.NUMBERS, samples=5,
            max_new_tokens=32,
        )  # fmt: skip
    return config


def _policy() -> ConfigDict:
    config = policy_rounds.get_config("grpo")
    config.gold.update(config.reward.to_dict())
    config.reward.update(parts=("model=1",), reference="required")
    return config


def _reward() -> ConfigDict:
    config = shipped.get_config()  # the same adapter on the same layers
    config.model.init = DEFAULT
    config.gradient.update(name="meta", mode="step_norm", inner_learning_rate=metarm.INNER_LEARNING_RATE["step_norm"])
    config.evals.preferences = base.comparisons_eval("shipped:triples_test")
    config.optimizer.learning_rate = 1e-4
    config.run.update(steps=20, save_every=10)
    return config
