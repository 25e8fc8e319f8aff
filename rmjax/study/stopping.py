"""Early stopping of a sweep's members: pure functions of what all members have logged so far.

A history is [(step, value), …] of one metric, steps rising. Values are compared as larger is better; negate a loss. NaN is worst.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

History = Sequence[tuple[int, float]]
Rule = Callable[[str, Mapping[str, History]], str | None]
"""(a running member, member → history) → why it is to be stopped, None if it is not."""


def median(after: int, least: int = 3) -> Rule:
    """Stops a member whose best value so far is below the median of the other members' mean values up to the same step.

    The median stopping rule of Google Vizier (Golovin et al. 2017, section 3.2.2).

    Args:
      after: no member is stopped before this step.
      least: other members that must have come as far.

    Raises:
      ValueError: `after` is below 1.
    """
    if after < 1:
        raise ValueError(
            f"the median rule from step {after}; give the step, 1 or more, from which on members are compared"
        )

    def rule(member: str, histories: Mapping[str, History]) -> str | None:
        step, best = _last(histories[member])
        if step < after:
            return None
        others = [
            float(np.mean([_worst(value) for at, value in history if at <= step]))
            for name, history in histories.items()
            if name != member and history and history[0][0] <= step <= history[-1][0]
        ]
        if len(others) < least:
            return None
        middle = float(np.median(others))
        return (
            f"best {best:.4g} up to step {step}, below the median {middle:.4g} of {len(others)}"
            if best < middle
            else None
        )

    return rule


def halving(first: int, factor: int = 3) -> Rule:
    """Successive halving, asynchronous (ASHA, Li et al. 2020, algorithm 2, in the form that stops): at the steps first,
    first · factor, first · factor², … a member goes on only if it is among the best 1 / factor of those that have come there.
    It is asked once at each rung: who comes first has fewer to be compared with, and may go on until the next one.

    Args:
      first: step of the first rung.
      factor: η, 2 or more.

    Raises:
      ValueError: `first` is below 1 or `factor` below 2.
    """
    if first < 1 or factor < 2:
        raise ValueError(f"halving from step {first} by {factor}; give a step of 1 or more and a factor of 2 or more")

    passed: dict[str, int] = {}  # member → the last rung at which it was let go on

    def rule(member: str, histories: Mapping[str, History]) -> str | None:
        rung = passed.get(member, 0) * factor or first
        while rung <= _last(histories[member])[0]:
            if reason := _behind(member, histories, rung, factor):
                return reason
            passed[member] = rung
            rung *= factor
        return None

    return rule


def _behind(member: str, histories: Mapping[str, History], rung: int, factor: int) -> str | None:
    """Why a member stops at a rung that it has come to."""
    there = {name: _at(history, rung) for name, history in histories.items() if _last(history)[0] >= rung}
    kept = max(1, len(there) // factor)
    place = 1 + sum(value > there[member] for value in there.values())
    if len(there) < factor or (place <= kept and there[member] > float("-inf")):
        return None
    return f"place {place} of {len(there)} at step {rung}, where the best {kept} go on"


def _worst(value: float) -> float:
    return float("-inf") if math.isnan(value) else value


def _last(history: History) -> tuple[int, float]:
    """(newest step, best value); (0, −∞) of an empty one."""
    return (history[-1][0], max(_worst(value) for _, value in history)) if history else (0, float("-inf"))


def _at(history: History, step: int) -> float:
    """The newest value that was logged up to a step; the first one, where the first came later."""
    before = [value for at, value in history if at <= step]
    return _worst(before[-1] if before else history[0][1])
