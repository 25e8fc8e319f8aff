"""A run's config: without keys that do not exist, with all that do, and the same when the run goes on."""

import difflib
import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import base
from rmjax.files import write_text

_log = logging.getLogger(__name__)
_MAY_CHANGE = (
    r"evals|mesh\.|sharding\.|hosts\.|data\.prefetch|run\.(log_every|save_every|keep|keep_every|tensorboard|wandb|compiler_options)$"
    r"|model\.(attention|attention_block|remat)$"  # the same values, on another machine
)
_PARTS = "optimizer.microbatches"
RENAMED = {"data.leaves": "data.candidates"}
"""Keys of older configs → what they are called now."""
_EVALUATIONS = {"pool": base.pool_eval(""), "comparisons": base.comparisons_eval(""), "samples": base.samples_eval("")}


def complete(config: ConfigDict) -> ConfigDict:
    """The config, with the values of configs/base.py where a file made for an older version lacks keys.

    Raises:
      ValueError: a key that configs/base.py does not have (the lock of a config stops such flags, not such files); the
        message names the nearest one.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        for old, new in RENAMED.items():
            section, name = old.split(".")
            if name in whole[section]:
                _log.warning("config.%s is called config.%s now", old, new)
                whole[section][new.split(".")[1]] = whole[section][name]
                del whole[section][name]
        _fill(whole, base.get_config(), "config")
        for section, default in base.get_config().items():
            if isinstance(default, ConfigDict) and section != "evals":
                _fill(whole[section], default, f"config.{section}")
        for name, entry in whole.evals.items():
            if entry.get("kind") in _EVALUATIONS:  # else it is refused where evaluations are made
                _fill(entry, _EVALUATIONS[entry.kind], f"config.evals.{name}")
    return whole


def _fill(section: ConfigDict, default: ConfigDict, place: str) -> None:
    for name in section:
        if name not in default:
            raise ValueError(f"{place}.{name} does not exist; {_nearest(name, default.keys())}")
    for name, value in default.items():
        if name not in section:
            section[name] = value


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(sorted(known))}"


def keep_config(config: ConfigDict, path: Path) -> None:
    """Writes the config down; ValueError where the folder holds a run of another one (how it is logged may change).

    Keys that came after that run count as configs/base.py has them: that is what the run did without them.
    """
    now = _flat(json.loads(config.to_json_best_effort()))
    if path.exists():
        defaults = _flat(json.loads(base.get_config().to_json_best_effort()))
        before = defaults | _stored(path)
        changed = [
            f"{key}: {before[key]!r} then, {now[key]!r} now"
            for key in sorted(before.keys() & now.keys())
            if before[key] != now[key] and not re.match(_MAY_CHANGE, key) and not (key == _PARTS and _parts_add_up(now))
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds a run of another config ({'; '.join(changed[:6])}); use a new workdir"
            )
    if jax.process_index() == 0:
        write_text(path, config.to_json_best_effort(indent=1) + "\n")  # a kill must not leave half of it


def _parts_add_up(config: Mapping[str, Any]) -> bool:
    """Whether microbatches give the whole batch's gradient: dropout draws and the constraint's statistics are of one each."""
    return not config["adapter.kind"] or (config["adapter.dropout"] == 0 and config["adapter.beta"] == 0)


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: not the config of a run; bring it back, or use a new workdir")
    return {RENAMED.get(key, key): value for key, value in _flat(stored).items()}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(tree, sep=".", keep_empty_nodes=True)
