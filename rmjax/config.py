"""A run's config: the sections of `rmjax.settings` and of the methods, completed, checked, and the same when a run goes on.

A config is a `ConfigDict`, so that files and flags may change it; `settle` turns it into what the library reads.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from rmjax import methods, settings
from rmjax.files import write_text
from rmjax.parallel.mesh import RULES
from rmjax.sections import defaults, listed, nearest, read

_log = logging.getLogger(__name__)
_MAY_CHANGE = (
    r"evals|mesh\.|sharding\.|hosts\.|data\.prefetch|run\.(log_every|save_every|keep|keep_every|tensorboard|wandb|compiler_options)$"
    r"|model\.(attention|attention_block|remat)$"  # the same values, on another machine
)
_PARTS = "optimizer.microbatches"
RENAMED = {"data.leaves": "data.candidates"}
"""Keys of older configs → what they are called now."""
_MOVED = {"data.end_token": "format.end_token"}
"""The same of a config that is given. A run that is stored has the key as a default, which meant nothing without texts."""


def get_config() -> ConfigDict:
    """Defaults that every experiment shares; each config file sets what makes it differ."""
    config = ConfigDict({name: defaults(kind) for name, kind in _sections().items()})
    config.objective = "preference"  # the name of a method in rmjax/methods
    config.trainable = "/layers/|final_norm|head"  # regular expression over parameter paths; the rest is frozen
    config.sharding = ConfigDict(dict(RULES))  # logical axis → mesh axes, () for none: see rmjax/parallel/mesh.py
    config.evals = ConfigDict()  # NAME → an entry as `pool_eval`, `comparisons_eval` and `samples_eval` make it
    return config


def _sections() -> dict[str, type]:
    return {**settings.SECTIONS, **methods.sections()}


def pool_eval(
    policies: str, path: str = "shipped:policy_pool", every: int = 0, per_prompt: int = 4, wrapper: str = "sft"
) -> ConfigDict:
    """An evaluation: same-policy against other-policy on held-out prompts."""
    return _entry("pool", policies=policies, path=path, every=every, per_prompt=per_prompt, wrapper=wrapper)


def comparisons_eval(path: str, every: int = 0, root: str = settings.ROOT, split: str = "all") -> ConfigDict:
    """An evaluation: preference accuracy on ranked answers."""
    return _entry("comparisons", path=path, every=every, root=root, split=split)


def samples_eval(path: str, every: int = 0, kind: str = "pool", names: str = "", mixed: bool = False) -> ConfigDict:
    """An evaluation: the distribution of |Δr| between samples for one prompt."""
    return _entry("samples", path=path, every=every, source=kind, names=names, mixed=mixed)


def suite_eval(suite: str, path: str, every: int = 0) -> ConfigDict:
    """An evaluation: a published benchmark in its own layout."""
    return _entry("suite", suite=suite, path=path, every=every)


def answers_eval(path: str, every: int = 0, max_new_tokens: int = 128, **changes: Any) -> ConfigDict:
    """An evaluation: a policy's greedy answers to held-out prompts, with their rewards, and gold ones beside them."""
    return _entry("answers", path=path, every=every, max_new_tokens=max_new_tokens, **changes)


def _entry(kind: str, **changes: Any) -> ConfigDict:
    entry = defaults(settings.EVALUATIONS[kind])
    entry.update(changes)
    return entry


def complete(config: ConfigDict) -> ConfigDict:
    """The config with the defaults where a file made for an older version lacks keys.

    Raises:
      ValueError: a key that does not exist (the lock of a config stops such flags, not such files), the message names the
        nearest one; a value where a section belongs.
    """
    whole, known = ConfigDict(config).copy_and_resolve_references(), get_config()
    with whole.unlocked():
        _rename(whole)
        _fill(whole, known, "config")
        for section, default in known.items():
            if isinstance(default, ConfigDict):
                _require_section(whole[section], f"config.{section}")
                if section != "evals":
                    _fill(whole[section], default, f"config.{section}")
        for name, entry in whole.evals.items():
            _require_section(entry, f"config.evals.{name}")
            if entry.get("kind") in settings.EVALUATIONS:  # else it is refused by `settle`
                _fill(entry, defaults(settings.EVALUATIONS[entry.kind]), f"config.evals.{name}")
    return whole


def _require_section(value: Any, place: str) -> None:
    if not isinstance(value, ConfigDict):
        what = (
            "an entry made by pool_eval, comparisons_eval, samples_eval, suite_eval or answers_eval"
            if "evals." in place
            else "a section of keys"
        )
        raise ValueError(f"{place} is {value!r}; it must be {what}")


def _rename(whole: ConfigDict) -> None:
    for old, new in (RENAMED | _MOVED).items():
        (section, name), (new_section, new_name) = old.split("."), new.split(".")
        if name in whole.get(section, {}):
            _log.warning("config.%s is called config.%s now", old, new)
            if new_section not in whole:
                whole[new_section] = ConfigDict()
            whole[new_section][new_name] = whole[section][name]
            del whole[section][name]


def _fill(section: ConfigDict, default: ConfigDict, place: str) -> None:
    for name in section:
        if name not in default:
            raise ValueError(f"{place}.{name} does not exist; {nearest(name, list(default))}")
    for name, value in default.items():
        if name not in section:
            section[name] = value


def settle(config: ConfigDict) -> settings.Config:
    """The complete config, checked: every key's type, range and choices.

    Raises:
      ValueError: the message names the key and says what it may be.
    """
    whole = complete(config)
    found: dict[str, Any] = {name: read(kind, whole[name], f"config.{name}") for name, kind in _sections().items()}
    own = {name: found.pop(name) for name in methods.sections()}
    methods.named(whole.objective)
    return settings.Config(
        objective=whole.objective, trainable=_pattern(whole.trainable), sections=own, **found,
        sharding={axis: tuple(axes) for axis, axes in whole.sharding.items()},
        evals={name: _evaluation(name, entry) for name, entry in whole.evals.items()},
    )  # fmt: skip


def chosen(config: ConfigDict) -> methods.Chosen:
    """The checked config with the methods that it asks for; errors as `settle`."""
    return methods.choose(settle(config))


def _pattern(trainable: str) -> str:
    try:
        re.compile(trainable)
    except re.error as error:
        raise ValueError(f"config.trainable is {trainable!r}, not a regular expression: {error}") from error
    return trainable


def _evaluation(name: str, entry: ConfigDict) -> Any:
    if entry.get("kind") not in settings.EVALUATIONS:
        raise ValueError(
            f"config.evals.{name}.kind is {entry.get('kind')!r}; choose {listed(list(settings.EVALUATIONS))}"
        )
    return read(settings.EVALUATIONS[entry.kind], entry, f"config.evals.{name}")


def keep_config(config: ConfigDict, path: Path) -> None:
    """Writes the config down; ValueError where the folder holds a run of another one (how it is logged may change).

    Keys that came after that run count as they are by default: that is what the run did without them.
    """
    now = _flat(json.loads(config.to_json_best_effort()))
    if path.exists():
        stored = _stored(path)
        before = _flat(json.loads(get_config().to_json_best_effort())) | _meant(stored) | stored
        changed = [
            f"{key}: {before[key]!r} then, {now[key]!r} now"
            for key in sorted(before.keys() & now.keys())
            if before[key] != now[key] and not re.match(_MAY_CHANGE, key) and not (key == _PARTS and _exact(config))
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds a run of another config ({'; '.join(changed[:6])}); use a new workdir"
            )
    if jax.process_index() == 0:
        write_text(path, config.to_json_best_effort(indent=1) + "\n")  # a kill must not leave half of it


def _meant(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of an older version did where today's default is another one: all its parameters decayed."""
    older = "optimizer.decayed" not in stored
    return {"optimizer.decayed": "."} if older and stored.get("optimizer.weight_decay") else {}


def _exact(config: ConfigDict) -> bool:
    """Whether microbatches give the whole batch's gradient."""
    return chosen(config).in_parts == "exact"


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
