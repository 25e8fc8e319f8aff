"""What a section of the config is made of: the fields of a frozen dataclass, each with its type and its range or choices.

A field's default says its type; `number`, `choice` and `pattern` say which values it may have. `read` is the one place where a
section is checked.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

Section = TypeVar("Section")
_CHECK = "check"
_ALLOWED = "allowed"
_LARGEST = float(np.finfo(np.float32).max)  # runs compute in fp32, where what is larger becomes infinite


def _field(default: Any, check: Callable[[Any], str | None], allowed: str) -> Any:
    return dataclasses.field(default=default, metadata={_CHECK: check, _ALLOWED: allowed})


def allowed(field: dataclasses.Field) -> str:
    """Which values the field may have, in words; empty where its type says all."""
    return field.metadata.get(_ALLOWED, "")


def number(
    default: float,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """An int or a float from `low` to `high`, or strictly `above` and `below`."""

    def refusal(value: float) -> str | None:
        outside = (
            (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
            or (below is not None and value >= below)
        )
        return f"it must be {_range(low, high, above, below)}" if outside else None

    bounded = any(bound is not None for bound in (low, high, above, below))
    return _field(default, refusal, _range(low, high, above, below) if bounded else "")


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    parts = [f"{low:g} or more"] if low is not None else [f"above {above:g}"] if above is not None else []
    parts += [f"at most {high:g}"] if high is not None else [f"below {below:g}"] if below is not None else []
    return " and ".join(parts)


def choice(default: str, *choices: str) -> Any:
    """One of these names."""
    return _field(default, lambda value: None if value in choices else f"choose {listed(choices)}", listed(choices))


def listed(choices: Collection[str]) -> str:
    """`a, b or c`; an empty name is shown as ''."""
    names = [name or "''" for name in choices]
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def pattern(default: str) -> Any:
    """A regular expression."""

    def refusal(value: str) -> str | None:
        try:
            re.compile(value)
        except re.error as error:
            return f"it is not a regular expression ({error}); correct it"
        return None

    return _field(default, refusal, "a regular expression")


def one_of(value: int, *choices: int) -> Any:
    """One of these integers."""
    shown = " or ".join(map(str, choices))
    return _field(value, lambda found: None if found in choices else f"it must be {shown}", shown)


def parts(default: int) -> Any:
    """How many parts something is cut into: 1 or more, or −1 for as many as are left."""
    shown = "1 or more, or -1 for the rest"
    return _field(default, lambda found: None if found == -1 or found >= 1 else f"it must be {shown}", shown)


def read(kind: type[Section], values: Mapping[str, Any], place: str) -> Section:
    """The section, checked.

    Args:
      kind: a frozen dataclass whose fields all have defaults.
      values: field → value; a `ConfigDict` or a dict.
      place: what the section is called in errors, such as "config.data".

    Raises:
      ValueError: an unknown key, a value of another type, a number out of its range, a name that is no choice; the message
        names the key and says what it may be.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ValueError(f"{place}.{name} does not exist; {nearest(name, fields)}")
    return kind(**{name: _read(fields[name], values[name], f"{place}.{name}") for name in values})


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a name that is not known."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(sorted(known))}"


def _read(field: dataclasses.Field, given: Any, place: str) -> Any:
    value = _typed(field.default, given, place)
    if isinstance(value, tuple):
        _check_entries(field.type, value, place)
    check = field.metadata.get(_CHECK)
    if check is not None and (refusal := check(value)):
        raise ValueError(f"{place} is {given!r}; {refusal}")
    return value


def _typed(default: Any, value: Any, place: str) -> Any:
    kind = type(default)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value) or abs(value) > _LARGEST:
            raise ValueError(f"{place} is {value}; it must be a finite number in fp32, at most {_LARGEST:.7g} in size")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {bool: "True or False", int: "an integer", float: "a number", str: "a string", tuple: "a tuple"}
        raise ValueError(f"{place} is {value!r}; it must be {names[kind]}")
    return value


def _check_entries(kind: Any, values: tuple, place: str) -> None:
    """ValueError unless all are of the type that the field `tuple[TYPE, ...]` names."""
    wanted = next(iter(typing.get_args(kind)), object)
    for value in values:
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            names = {int: "integers", str: "strings"}
            raise ValueError(f"{place} has {value!r}; all of its entries must be {names.get(wanted, wanted.__name__)}")


def defaults(kind: type) -> ConfigDict:
    """The section as it is without changes."""
    return ConfigDict({field.name: field.default for field in dataclasses.fields(kind)})
