"""Sizes of the study. `sampling:MACHINE` names its results: docs/methods/policy/sampling_MACHINE.json."""

from ml_collections import ConfigDict


def get_config(machine: str = "here") -> ConfigDict:
    """The published sizes: some minutes of a core."""
    config = ConfigDict()
    config.machine = machine  # of the results and of the page's section
    config.peer = ".venv-bench/bin/python"  # interpreter of an environment with torch and transformers
    config.threads = 1  # of each side; one does not wait for others where the machine has other work
    config.rounds = 5  # in each both sides answer each kind of prompts, in an order that turns

    config.model = ConfigDict()  # random weights; rates depend on sizes alone
    config.model.width = 256
    config.model.depth = 6
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.mlp_width = 768

    config.prompts = 4  # a round
    config.prompt_tokens = 256
    config.short_prompt_tokens = 16  # where drawing itself is what costs
    config.samples = 16  # of each prompt
    config.new_tokens = 64  # of each sample; nothing ends one sooner
    config.rows = 64  # samples at once, on both sides
    return config
