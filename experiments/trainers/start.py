"""What every job of our side starts from: its config, and the model with a head."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rmjax import config as base
from rmjax.start import Start, load_start


def config_of(job: Mapping[str, Any]) -> ConfigDict:
    """rmjax.config.get_config with the job's changes."""
    config = base.get_config()
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in job["config"].items()}
    config.update_from_flattened_dict(changes)
    return config


def start_of(config: Any) -> Start:
    """The model of the config with a head that is not zero, so that rewards differ."""
    start = load_start(config.model)
    if start.params is None:
        raise ValueError(f"config.model.init is {config.model.init}; both sides start from loaded weights")
    width = start.config.width
    head = np.random.default_rng(0).standard_normal((width, 1)).astype(np.float32) * width**-0.5
    return dataclasses.replace(start, params={**start.params, "head": {"kernel": head}})
