"""EvaLearn's figures of an array of right and wrong answers, [N sequences, M positions], each beside what chance would give.

Every figure is a mean over sequences of a number of each, so that one bootstrap, by sequence, serves all. `micro` is the mean
over all sequences, `macro` the mean over types of the means of their sequences. The published figures mix the two (`OFFICIAL`).

Two nulls stand beside each figure. `bernoulli`: every answer is right with the accuracy of its type, independently. `shuffled`:
each sequence keeps its number of right answers, in any order alike; what exceeds it comes from the order within sequences.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.evaluate.statistics import Interval, combined, interval

AVERAGES = ("macro", "micro")
OFFICIAL = {
    "accuracy": "micro", "slope": "macro", "first": "macro", "consecutive": "macro", "late": "micro", "offset": "macro",
}  # fmt: skip
"""Figure → how the published code averages it."""


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What was right.

    Attributes:
      right_NM: 0 or 1.
      types: of each sequence.
      zero_shot_NM: the same problems alone, for `offset`.
      late: K of `late`, the accuracy over positions after K.

    ValueError: shapes that do not fit, other values than 0 and 1, or K that leaves no position.
    """

    right_NM: np.ndarray
    types: tuple[str, ...]
    zero_shot_NM: np.ndarray | None = None
    late: int = 3

    def __post_init__(self) -> None:
        shape = self.right_NM.shape
        if len(shape) != 2 or not all(shape) or len(self.types) != shape[0]:
            raise ValueError(f"right has shape {shape} and there are {len(self.types)} types; want [N, M] and N types")
        if not np.isin(self.right_NM, (0, 1)).all():
            raise ValueError("right has values other than 0 and 1; leave out what has no grade")
        if self.zero_shot_NM is not None and self.zero_shot_NM.shape != shape:
            raise ValueError(f"zero_shot has shape {self.zero_shot_NM.shape}; want {shape}")
        if not 0 <= self.late < shape[1]:
            raise ValueError(
                f"late is {self.late}, which leaves none of {shape[1]} positions; want 0 to {shape[1] - 1}"
            )


# --- a number of each sequence ------------------------------------------------------------------------------------------


def accuracy(right_NM: np.ndarray) -> np.ndarray:
    """`(N,)` fraction of right answers."""
    return right_NM.mean(1)


def slope(right_NM: np.ndarray) -> np.ndarray:
    """`(N,)` least-squares slope over positions, in accuracy a position; its mean is the slope of the mean curve. 0 for M = 1."""
    centered_M = np.arange(right_NM.shape[1]) - (right_NM.shape[1] - 1) / 2
    return right_NM @ centered_M / max(float(centered_M @ centered_M), 1.0)


def first(right_NM: np.ndarray) -> np.ndarray:
    """`(N,)` position of the first right answer, from 1; M + 1 where there is none."""
    return np.where(right_NM.any(1), right_NM.argmax(1), right_NM.shape[1]) + 1.0


def consecutive(right_NM: np.ndarray) -> np.ndarray:
    """`(N,)` length of the longest run of right answers."""
    longest_N = run_N = np.zeros(len(right_NM))
    for right_N in right_NM.T:
        run_N = (run_N + 1) * right_N
        longest_N = np.maximum(longest_N, run_N)
    return longest_N


def late(right_NM: np.ndarray, K: int) -> np.ndarray:
    """`(N,)` accuracy over the positions after K."""
    return right_NM[:, K:].mean(1)


def offset(right_NM: np.ndarray, zero_shot_NM: np.ndarray) -> np.ndarray:
    """`(N,)` how many positions it takes, from the first problem that the model fails alone, to a right answer: 1 where that one
    is right now, M + 2 minus its position where none is; NaN where the model fails none alone."""
    M = right_NM.shape[1]
    failed_N = first(1 - zero_shot_NM)
    after_NM = right_NM * (np.arange(1, M + 1) >= failed_N[:, None])
    return np.where(failed_N > M, np.nan, first(after_NM) - failed_N + 1)


# --- chance -------------------------------------------------------------------------------------------------------------


def shuffled_first(M: int, right: int, start: int = 1) -> float:
    """Expected `offset` from position `start` (`first` for 1) of a sequence with so many right answers in any order alike."""
    return sum(math.comb(M - t, right) for t in range(M - start + 2)) / math.comb(M, right)


def shuffled_consecutive(M: int, right: int) -> float:
    """Expected longest run of right answers of such a sequence."""
    every = math.comb(M, right)
    return sum(1 - _without_longer_runs(M, right, run) / every for run in range(right))


def _without_longer_runs(M: int, right: int, run: int) -> int:
    """How many sequences have no run above `run`: right answers in the gaps between wrong ones, at most `run` in each."""
    gaps = M - right + 1
    return sum(
        (-1) ** i * math.comb(gaps, i) * math.comb(right - i * (run + 1) + gaps - 1, gaps - 1)
        for i in range(gaps + 1)
        if right >= i * (run + 1)
    )


def bernoulli(of_right: Callable[[int], float], M: int, p: float) -> float:
    """The expectation over sequences of M independent answers, each right with probability p, of what `of_right` gives for a
    number of right ones."""
    return sum(math.comb(M, s) * p**s * (1 - p) ** (M - s) * of_right(s) for s in range(M + 1))


# --- figures ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: its value of each sequence, and what it is expected to be of one with so many right answers (and, for `offset`, a
    start)."""

    values_N: np.ndarray
    null: Callable[[int, int], float]  # (right answers, start)


def _figures(found: Outcomes) -> dict[str, Figure]:
    right_NM, M = found.right_NM.astype(np.float64), found.right_NM.shape[1]
    figures = {
        "accuracy": Figure(accuracy(right_NM), lambda right, start: right / M),
        "slope": Figure(slope(right_NM), lambda right, start: 0.0),
        "first": Figure(first(right_NM), lambda right, start: shuffled_first(M, right)),
        "consecutive": Figure(consecutive(right_NM), lambda right, start: shuffled_consecutive(M, right)),
        "late": Figure(late(right_NM, found.late), lambda right, start: right / M),
    }
    if found.zero_shot_NM is not None:
        values_N = offset(right_NM, found.zero_shot_NM.astype(np.float64))
        figures["offset"] = Figure(values_N, lambda right, start: shuffled_first(M, right, start))
    return figures


def summarize(found: Outcomes, seed: int = 0) -> dict[str, Any]:
    """All figures, by sequence.

    Returns:
      figure → {`official`: how it is averaged as published; `macro` and `micro`, each {value, low, high, n, `bernoulli`,
      `shuffled`, `above_shuffled`: the paired difference with its interval}}; `curve`, accuracy by position, of both averages;
      `slope_error`, the standard error of the micro slope without learning; `sequences` by type.
    """
    starts_N = (
        np.ones(len(found.types), int) if found.zero_shot_NM is None else first(1 - found.zero_shot_NM).astype(int)
    )
    figures: dict[str, Any] = {}
    for name, figure in _figures(found).items():
        kept = np.flatnonzero(np.isfinite(figure.values_N)).tolist()
        if not kept:
            continue
        figures[name] = {"official": OFFICIAL[name]} | {
            average: _averaged(found, figure, kept, starts_N, average, seed) for average in AVERAGES
        }
    M, p = found.right_NM.shape[1], float(found.right_NM.mean())
    spread = M * (M * M - 1) / 12
    return {
        "figures": figures,
        "late_after": found.late,
        "curve": {average: _curve(found, average) for average in AVERAGES},
        "slope_error": math.sqrt(p * (1 - p) / (spread * len(found.types))) if M > 1 else 0.0,
        "sequences": {name: found.types.count(name) for name in sorted(set(found.types))},
    }


def _averaged(
    found: Outcomes, figure: Figure, kept: Sequence[int], starts_N: np.ndarray, average: str, seed: int
) -> dict[str, Any]:
    types = [found.types[n] for n in kept]
    M, right_N = found.right_NM.shape[1], found.right_NM.sum(1).astype(int)
    chance = {name: float(found.right_NM[np.asarray(found.types) == name].mean()) for name in set(types)}
    shuffled = np.asarray([figure.null(int(right_N[n]), int(starts_N[n])) for n in kept])
    independent = [_independent(figure, M, chance[found.types[n]], int(starts_N[n])) for n in kept]
    values = figure.values_N[kept]
    return {
        **mean(values, types, average, seed),
        "bernoulli": mean(independent, types, average, seed)["value"],
        "shuffled": mean(shuffled, types, average, seed)["value"],
        "above_shuffled": mean(values - shuffled, types, average, seed),
    }


def _independent(figure: Figure, M: int, p: float, start: int) -> float:
    return bernoulli(lambda right: figure.null(right, start), M, p)


def mean(values: Any, types: Sequence[str], average: str, seed: int = 0) -> Interval:
    """The micro or macro mean of numbers of sequences, with its interval; sequences are resampled, for macro within types."""
    if average == "micro":
        return interval(values, seed=seed)
    names = sorted(set(types))
    return combined(values, types, dict.fromkeys(names, 1 / len(names)), seed=seed)


def _curve(found: Outcomes, average: str) -> list[float]:
    groups: Mapping[str, np.ndarray] = {
        name: found.right_NM[np.asarray(found.types) == name].mean(0) for name in sorted(set(found.types))
    }
    curve_M = found.right_NM.mean(0) if average == "micro" else np.mean(list(groups.values()), axis=0)
    return curve_M.tolist()
