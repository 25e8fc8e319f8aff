"""A plan: named cells, each a completed config and what is particular to it.

A string of a config may name what does not exist yet: `cell:NAME` is the folder of another cell, which then runs first, and
`work:PATH` is a file of the study's folder. So a config does not depend on where the study lies.
"""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rmjax.sections import nearest
from rmjax.study.sweeps import Overrides

_LONGEST = 120  # characters of a folder's name; file systems take 255 bytes
_PLACE = re.compile(r"(cell|work):([^/\s]+)(\S*)")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study or member of a sweep.

    Attributes:
      name: of its folder.
      values: axis → value, the columns of its rows in every table: `arm`, `run.seed`, …
      config: complete; strings may be `cell:NAME` and `work:PATH`.
      environment: variables that its process must start with, say XLA_FLAGS; what XLA_FLAGS has already, it keeps.
    """

    name: str
    values: Mapping[str, Any]
    config: ConfigDict
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        """Names of the cells that have to be there before."""
        found = (_PLACE.fullmatch(value) for value in leaves(self.config).values() if isinstance(value, str))
        return tuple(dict.fromkeys(place[2] for place in found if place and place[1] == "cell"))


def leaves(config: ConfigDict) -> dict[str, Any]:
    """Key with dots → value. Values of tuples count one by one."""
    return dict(_leaves("", config))


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, ConfigDict | dict):
        for name, each in value.items():
            yield from _leaves(f"{place}.{name}" if place else str(name), each)
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _leaves(f"{place}[{number}]", each)
    else:
        yield place, value


def placed(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with `cell:` and `work:` replaced by paths below `workdir`."""
    return ConfigDict(_placed(config.copy_and_resolve_references().to_dict(), workdir))


def _placed(value: Any, workdir: Path) -> Any:
    if isinstance(value, dict):
        return {name: _placed(each, workdir) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_placed(each, workdir) for each in value)
    found = _PLACE.fullmatch(value) if isinstance(value, str) else None
    return str(workdir / f"{found[2]}{found[3]}") if found else value


# --- a sweep's members -------------------------------------------------------------------------------------------------


def members(
    base: ConfigDict, sweep: Sequence[Overrides], complete: Callable[[ConfigDict], ConfigDict]
) -> tuple[Cell, ...]:
    """The cells of a sweep, named by what varies in it.

    Args:
      base: the config that the overrides change.
      sweep: from `rmjax.study.sweeps`.
      complete: gives a config its defaults and refuses one that cannot run.

    Raises:
      ValueError: a key that is unknown or no text, a value of another type, a member that occurs twice, no member at all.
    """
    if not sweep:
        raise ValueError("the sweep has no members; give one at least")
    for number, overrides in enumerate(sweep):
        if odd := [key for key in overrides if not isinstance(key, str)]:
            raise ValueError(
                f"member {number}: the key {odd[0]!r} is not a string; write a key of the config, such as run.seed"
            )
    varied = varying(sweep)
    found: dict[str, Cell] = {}
    for number, overrides in enumerate(sweep):
        values = {key: _plain(overrides.get(key, _value(base, key, f"member {number}"))) for key in varied}
        name = name_of(values)
        cell = Cell(name, values, _overridden(base, overrides, f"member {number} ({name})", complete))
        if name in found:
            raise ValueError(f"member {number} is the same as an earlier one ({name}); remove one of them")
        found[name] = cell
    return tuple(found.values())


def _plain(value: Any) -> Any:
    """Python's own number for one of numpy's, of which a config's type would differ."""
    return value.item() if isinstance(value, np.generic) else value


def varying(sweep: Sequence[Overrides]) -> list[str]:
    """The keys that differ between members, in the order in which they come; all keys of a sweep of one."""
    keys = list(dict.fromkeys(key for member in sweep for key in member))
    several = [key for key in keys if len({repr(member.get(key, ...)) for member in sweep}) > 1]
    return several or keys


def _value(base: ConfigDict, key: str, place: str) -> Any:
    """What a member has for a key that it does not set."""
    found: Any = base
    for name in key.split("."):
        if not isinstance(found, ConfigDict) or name not in found:
            known = list(found) if isinstance(found, ConfigDict) else []
            raise ValueError(f"{place}: the config has no key {key}; {nearest(name, known)}")
        found = found[name]
    return found


def _overridden(
    base: ConfigDict, overrides: Overrides, place: str, complete: Callable[[ConfigDict], ConfigDict]
) -> ConfigDict:
    config = base.copy_and_resolve_references()
    for key, given in overrides.items():
        before, value = _value(config, key, place), _plain(given)
        if isinstance(before, ConfigDict):
            raise ValueError(f"{place}: {key} is a section of keys; set one of them ({', '.join(before)})")
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            kinds = f"{type(before).__name__}, as {before!r} is"
            raise ValueError(f"{place}: {key} is {value!r}; it must be of type {kinds}") from error
    try:
        return complete(config)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def name_of(values: Mapping[str, Any]) -> str:
    """`learning_rate=0.0003,seed=1`: keys by their last parts where these tell them apart; a long name ends in a digest."""
    if not values:
        return "run"
    lasts = [key.rsplit(".", 1)[-1] for key in values]
    parts = [
        f"{last if lasts.count(last) == 1 else key}={shown(value)}"
        for (key, value), last in zip(values.items(), lasts, strict=True)
    ]
    name = re.sub(r"[^\w.+=,-]+", "-", ",".join(parts)).strip("-.")
    if name == ",".join(parts) and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}-{digest}"


def shown(value: Any) -> str:
    """A value in names and tables."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-".join(map(shown, value)) if isinstance(value, tuple | list) else str(value)
    return (
        f"{value:g}"
        if isinstance(value, float) and math.isfinite(value) and float(f"{value:g}") == value
        else repr(value)
    )
