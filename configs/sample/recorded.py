"""Outputs that are there already, as the answers of a policy to some prompts. docs/methods/policy.md."""

from ml_collections import ConfigDict

from rmjax import grid


def get_config() -> ConfigDict:
    config = grid.get_config()
    config.generator = "recorded"
    config.prompts = "runs/prompts.jsonl"  # lines of {"id", "prompt" or "messages"}, and what else a record has
    config.samples = 1  # answers to a prompt
    config.recorded.path = "runs/outputs.jsonl"  # file or folder of pool rows or of records with outputs
    config.recorded.policy = ""  # whose outputs; empty = of the one that the file has
    config.asking.most_dropped = 1.0  # fraction of a batch's samples: a prompt without output is no fault of the way
    return config
