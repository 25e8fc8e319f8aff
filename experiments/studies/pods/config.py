"""POLAR's runs at the paper's sizes, on slices of three chips."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The published cases: each run on each slice."""
    config = ConfigDict()
    config.runs = ("pretrain_1_8b", "pretrain_7b", "finetune_1_8b", "finetune_7b")  # configs/polar/NAME.py:CHIPS
    config.slices = ConfigDict()  # name → (topology, chips)
    config.slices["v5e-256"] = ("v5e:16x16", 256)
    config.slices["v5p-64"] = ("v5p:2x4x4", 32)  # Google counts its cores
    config.slices["v6e-64"] = ("v6e:8x8", 64)
    return config
