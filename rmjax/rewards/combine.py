"""Rewards of rewards: weighted sums, clipping, whitening. Each is asked for by name; none happens by itself."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, Reward, Value, Values, checked


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Σ weight · reward over named parts. Where a part fails, the sum fails: a missing part is not 0.

    ValueError: no part, or a weight that is not finite.
    """

    parts: Mapping[str, tuple[Reward, float]]

    def __post_init__(self) -> None:
        bad = [name for name, (_, weight) in self.parts.items() if not math.isfinite(weight)]
        if bad or not self.parts:
            raise ValueError(
                f"the weight of {bad[0]} is not finite; correct it" if bad else "there is no part; give one"
            )

    @property
    def name(self) -> str:
        """Parts and weights."""
        return " + ".join(f"{weight:g} {name}" for name, (_, weight) in self.parts.items())

    def each(self, records: Sequence[Comparison]) -> dict[str, Values]:
        """What each part says, unweighted, by its name: for the log."""
        return {name: checked(records, reward(records), name) for name, (reward, _) in self.parts.items()}

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        found = self.each(records)
        return [
            [self._sum({name: values[i][n] for name, values in found.items()}) for n in range(len(c.outputs))]
            for i, c in enumerate(records)
        ]

    def _sum(self, values: Mapping[str, Value]) -> Value:
        total = 0.0
        for name, value in values.items():
            if isinstance(value, Failure):
                return Failure(f"{name}: {value.reason}")
            total += self.parts[name][1] * value
        return total


@dataclasses.dataclass(frozen=True)
class Changed:
    """A reward whose values go through a function of all values of a call; failures stay what they are."""

    reward: Reward
    change: Callable[[np.ndarray], np.ndarray]  # [values of all outputs] → as many
    how: str

    @property
    def name(self) -> str:
        """What was done, and to what."""
        return f"{self.how} {self.reward.name}"

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        found = checked(records, self.reward(records), self.reward.name)
        numbers = [value for values in found for value in values if not isinstance(value, Failure)]
        new = iter(self.change(np.asarray(numbers, np.float64)).tolist())
        return [[value if isinstance(value, Failure) else next(new) for value in values] for values in found]


def clipped(reward: Reward, low: float, high: float) -> Changed:
    """Values from `low` to `high`. ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; want low < high")
    return Changed(reward, lambda values: np.clip(values, low, high), f"clipped to {low:g} … {high:g}:")


def whitened(reward: Reward, eps: float = 1e-8) -> Changed:
    """(r − mean) / (std + eps) over all outputs of a call, so a value depends on what else is in it; equal values become
    exactly 0."""

    def white(values: np.ndarray) -> np.ndarray:
        if not len(values):
            return values
        relative = values - values[0]  # exactly 0 where all are equal
        relative = relative - np.mean(relative)
        std = float(np.std(relative))
        return relative / (std + eps) if std else relative

    return Changed(reward, white, "whitened")
