"""Adapters of equal inner width on all layers, and full fine-tuning; random weights of SmolLM2's sizes and random pairs, on which
costs do not depend."""

from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import configured


def get_config() -> ConfigDict:
    """The published arms and sizes."""
    config = ConfigDict()
    config.layers = 6  # of the model, all of them adapted or trained
    config.rows = 4  # rows a batch
    config.row_tokens = 256  # tokens a row
    config.rounds = 10  # that count; in each, every arm takes a step
    config.arms = arms = ConfigDict(sort_keys=False)
    arms.lora = arm("lora", rank=24)  # six experts' inner width
    arms.loramoe = arm("loramoe")
    arms.loramoe_block = arm("loramoe", router="block")
    arms.loramoe_balanced = arm("loramoe", beta=0.1)
    arms.lora_dropout = arm("lora", rank=24, dropout=0.05, over="lora_dropout")
    arms.loramoe_dropout = arm("loramoe", dropout=0.05, over="lora_dropout")
    arms.loramoe_bf16_base = arm("loramoe", param_dtype="bfloat16")
    arms.full = arm()
    return config


def arm(
    kind: str = "", rank: int = 4, router: str = "linear", beta: float = 0.0, dropout: float = 0.0,
    param_dtype: str = "float32", over: str = "lora",
) -> ConfigDict:  # fmt: skip
    """An arm: full fine-tuning where `kind` is empty. Keys as in rmjax/settings.py."""
    entry = ConfigDict()
    entry.kind = kind  # of the adapter
    entry.rank = rank  # of each expert
    entry.experts = 6  # of a mixture
    entry.router = router  # linear | block
    entry.beta = beta  # factor of the balancing constraint
    entry.dropout = dropout  # of the adapter's input
    entry.param_dtype = param_dtype  # of what is frozen
    entry.over = over  # the arm by whose time its own is divided, within a round
    return entry


def training(grid: Any, name: str) -> ConfigDict:
    """The run of an arm, whose step is timed."""
    config = configured({}, layers=grid.layers, rows=grid.rows, row_tokens=grid.row_tokens)
    chosen = grid.arms[name].to_dict()
    del chosen["over"]
    config.model.param_dtype = chosen.pop("param_dtype")
    config.adapter.update(chosen)
    return config
