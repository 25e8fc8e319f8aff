"""Sweeps as data: a sweep is a list of overrides, {key of the config: value}, and the functions here make such lists.

    def get_sweep():
        return product(sweep("optimizer.learning_rate", (1e-4, 3e-4)), seeds(3))    # 6 members

A plain list of dicts is a sweep too. The names follow big_vision's `hyper`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_DRAWS = 100  # for each member that `sample` is to find, at most
Overrides = dict[str, Any]
Sweep = list[Overrides]


def sweep(key: str, values: Iterable[Any]) -> Sweep:
    """One member for each value of a key, such as "optimizer.learning_rate"."""
    return [{key: value} for value in values]


def seeds(count: int, key: str = "run.seed") -> Sweep:
    """Seeds 0 to `count` − 1."""
    return sweep(key, range(count))


def product(*sweeps: Sequence[Overrides]) -> Sweep:
    """Every combination of a member of each; the last sweep varies fastest.

    Raises:
      ValueError: two of them set one key.
    """
    return [_merged(parts, "product") for parts in itertools.product(*sweeps)]


def zip_(*sweeps: Sequence[Overrides]) -> Sweep:
    """The first members together, then the second ones, and so on.

    Raises:
      ValueError: the sweeps differ in length, or two of them set one key.
    """
    lengths = [len(each) for each in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip_: the sweeps have {lengths} members; give all of them the same number")
    return [_merged(parts, "zip_") for parts in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Overrides]) -> Sweep:
    """The members of the first sweep, then those of the second, and so on."""
    return [dict(member) for each in sweeps for member in each]


def _merged(parts: Sequence[Overrides], name: str) -> Overrides:
    found: Overrides = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise ValueError(f"{name}: two sweeps set {', '.join(sorted(twice))}; keep one of them")
        found |= part
    return found


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where `sample` draws a number from: `low` to `high`, evenly or evenly in its logarithm; whole numbers if asked for."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a scale from {self.low} to {self.high}; give two finite numbers, the lower one first")
        if self.log and self.low <= 0:
            raise ValueError(f"a log scale from {self.low}; give a number above 0")

    def at(self, place: float) -> float:
        """The value at a place between 0 and 1."""
        if self.log:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")  # four digits, as names and tables show them


def linear(low: float, high: float, whole: bool = False) -> Scale:
    """From `low` to `high`, evenly."""
    return Scale(low, high, whole=whole)


def log(low: float, high: float, whole: bool = False) -> Scale:
    """From `low` to `high`, evenly in the logarithm."""
    return Scale(low, high, log=True, whole=whole)


def sample(count: int, scales: Mapping[str, Scale | Sequence[Any]], seed: int = 0) -> Sweep:
    """Random search: `count` members, each key drawn from its scale or from its list of choices.

    All members differ: a draw that came before is left out, and the next one taken. A draw depends on `seed` and its number only,
    so that a larger `count` goes on where a smaller one ended.

    Raises:
      ValueError: a choice is empty, or there are not as many different members.
    """
    for key, scale in scales.items():
        if not isinstance(scale, Scale) and not len(scale):
            raise ValueError(f"sample: {key} has no choice; give one at least")
    found: dict[str, Overrides] = {}
    for number in range(_DRAWS * count):
        if len(found) == count:
            break
        member = {
            key: _drawn(scale, np.random.default_rng([seed, number, place]))
            for place, (key, scale) in enumerate(scales.items())
        }
        found.setdefault(repr(member), member)
    if len(found) < count:
        raise ValueError(f"sample: {len(found)} different members in {_DRAWS * count} draws; ask for at most as many")
    return list(found.values())


def _drawn(scale: Scale | Sequence[Any], random: np.random.Generator) -> Any:
    return scale.at(random.random()) if isinstance(scale, Scale) else scale[int(random.integers(len(scale)))]
