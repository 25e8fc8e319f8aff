"""What every job of our side starts from: its config, and the model with a head."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.trainers.processes import PAD_TOKEN
from rmjax import config as base
from rmjax.start import Start, load_start


def changes(config: ConfigDict) -> dict[str, Any]:
    """What differs from configs/base.py, by key."""
    now, default = (
        flatten_dict(json.loads(c.to_json_best_effort()), sep=".", keep_empty_nodes=True)
        for c in (config, base.get_config())
    )
    return {key: value for key, value in now.items() if key not in default or value != default[key]}


def shared_facts(changed: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What the other side has to know of a config, given by its changes."""
    known = {**flatten_dict(base.get_config().to_dict(), sep="."), **changed}
    optimizer = {name: known[f"optimizer.{name}"] for name in ("learning_rate", "b1", "b2", "weight_decay", "clip")}
    optimizer["epsilon"] = 1e-8  # optax's and torch's
    return {
        "optimizer": optimizer, "dtype": known["model.dtype"], "max_length": known["format.max_length"],
        "device": device, "pad_token": PAD_TOKEN,
    }  # fmt: skip


def config_of(job: Mapping[str, Any]) -> ConfigDict:
    """rmjax.config.get_config with the job's changes."""
    config = base.get_config()
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in job["config"].items()}
    config.update_from_flattened_dict(changes)
    return config


def start_of(config: Any, seed: int = 0, scale: float | None = None) -> Start:
    """The model of the config with a head that is not zero, so that rewards differ: normal, of deviation `scale`, or of
    width^-1/2."""
    start = load_start(config.model)
    if start.params is None:
        raise ValueError(f"config.model.init is {config.model.init}; both sides start from loaded weights")
    width = start.config.width
    head = np.random.default_rng(seed).standard_normal((width, 1)).astype(np.float32) * (scale or width**-0.5)
    return dataclasses.replace(start, params={**start.params, "head": {"kernel": head}})
