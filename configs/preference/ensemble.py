"""A reward model of four heads on one backbone: `--config=configs/preference/ensemble.py`; `:adapter` gives each a LoRA too."""

from ml_collections import ConfigDict

from configs.polar import finetune


def get_config(over: str = "head") -> ConfigDict:
    if over not in ("head", "adapter"):
        raise ValueError(f"configs/preference/ensemble.py:{over} is unknown; choose head or adapter")
    config = finetune.get_config()
    config.ensemble.members = 4
    config.ensemble.over = over
    config.ensemble.seen = 0.8  # else members of one backbone differ by their start alone
    if over == "adapter":
        config.adapter.kind = "lora"
    return config
