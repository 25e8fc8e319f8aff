"""Vote models for preference strength: `--config=configs/preference/strength.py`; `…strength.py:use` trains on what they say.

Secrets of RLHF II takes ten models that differ in order only, and their strengths in-sample. Here each of five learns from half
of the records, so that the others give cross-fitted strengths; `ensemble.seen=1.0` and `ensemble.members=10` is the paper's.
"""

from ml_collections import ConfigDict

from configs.preference import chat


def get_config(step: str = "vote") -> ConfigDict:
    if step not in ("vote", "use"):
        raise ValueError(f"configs/preference/strength.py:{step} is unknown; choose vote or use")
    config = chat.get_config()
    config.data.path = "shipped:ranked_train"  # use: the file that experiments.strength wrote
    if step == "vote":
        config.ensemble.members = 5
        config.ensemble.over = "trainable"
        config.ensemble.order = "own"
        config.ensemble.seen = 0.5
        return config
    config.data.on_error = "skip"  # records that every model learned from have no cross-fitted strength
    config.loss.order = "strength"
    config.strength.of = "cross_fitted"
    config.strength.flip = 0.1
    config.strength.margin = 0.5
    config.strength.margin_limit = 1.0
    return config
