"""Sizes of the study. `trainers:MACHINE` names its results: docs/speed/trainers_MACHINE.json."""

from ml_collections import ConfigDict

from configs import benchmark


def get_config(machine: str = "here") -> ConfigDict:
    """`training` is what both sides run."""
    config = ConfigDict()
    config.machine = machine  # of the results and of the page's section
    config.peer = ".venv-bench/bin/python"  # interpreter of an environment with torch and TRL
    config.batches = (8, 32)  # pairs a batch
    config.steps = (2, 1)  # that are timed in a process, for each batch size, after one that is not
    config.at_once = (
        8  # pairs whose activations are in memory; a larger batch is accumulated, on both sides in as many parts
    )
    config.rounds = 5  # processes of each side at each batch size
    config.groups = 32  # POLAR groups that are scored
    config.candidates = 5  # of such a group
    config.training = benchmark.get_config()
    return config
