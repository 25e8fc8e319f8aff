"""CRM on ranked answers, a fifth of whose labels is flipped: `--config=configs/preference/crm.py`; `…crm.py:dpo` is CRM-DPO.

Other values of `crm.review` are its controls: `self`, `random`, and `none`, two models that are averaged.
"""

from ml_collections import ConfigDict

from configs.preference import chat, dpo


def get_config(kind: str = "reward") -> ConfigDict:
    if kind not in ("reward", "dpo"):
        raise ValueError(f"configs/preference/crm.py:{kind} is unknown; choose reward or dpo")
    config = dpo.get_config() if kind == "dpo" else chat.get_config()
    config.data.path = "shipped:ranked_train"
    config.data.flip = 0.2  # of the labels; 0 for data that are noisy already
    config.crm.review = "peer"
    config.crm.noise = 0.2
    config.crm.ramp = config.run.steps // 10  # small losses mean nothing in the first steps
    if kind == "dpo":
        config.crm.apart = 0.01
    return config
