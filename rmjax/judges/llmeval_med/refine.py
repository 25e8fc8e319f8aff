"""Refining a checklist and its prompt by what people say: the disagreements of a development set choose what is added.

The paper describes the loop in words only. Here each round takes the answers that the judge accepts, and of a library of changes
adds the one that refuses most of those that people refuse, less those that they accept; a test set is judged untouched, beside a
control that adds changes at random.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from rmjax.judges.llmeval_med.aggregate import agreement


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that a judge is told beside what it is told already."""

    text: str
    where: str = "checklist"  # checklist: a further core point | prompt: a further rule of grading


@dataclasses.dataclass(frozen=True)
class Case:
    """An answer, and whether people find it usable."""

    question: str
    answer: str
    usable: bool


Judge = Callable[[Sequence[Change], Sequence[Case]], list[bool | None]]
"""What was added, and answers → whether each is usable; None: no readable reply."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A round: all that was added up to it, and agreement with people on both sets."""

    changes: tuple[Change, ...]
    dev: dict[str, Any]
    test: dict[str, Any]


def refine(
    judge: Judge,
    dev: Sequence[Case],
    test: Sequence[Case],
    library: Sequence[Change],
    rounds: int,
    at_random: random.Random | None = None,
) -> list[Step]:
    """The rounds, from nothing added to at most so many changes; it ends early where no change helps on `dev`.

    Args:
      at_random: the control: changes are drawn by it, and it never ends early.

    Raises:
      ValueError: a set is empty, or a case is in both.
    """
    if not dev or not test:
        raise ValueError("a set of answers is empty; give answers for development and for the test")
    if both := set(dev) & set(test):
        raise ValueError(f"{len(both)} answers are in both sets; keep the test apart")
    chosen: list[Change] = []
    steps = [_step(judge, chosen, dev, test)]
    for _ in range(rounds):
        left = [change for change in library if change not in chosen]
        found = (at_random.choice(left) if left else None) if at_random else _best(judge, chosen, left, dev)
        if found is None:
            break
        chosen.append(found)
        steps.append(_step(judge, chosen, dev, test))
    return steps


def _best(judge: Judge, chosen: Sequence[Change], left: Sequence[Change], dev: Sequence[Case]) -> Change | None:
    """The change that refuses most wrongly accepted answers, less rightly accepted ones; None where none refuses more of them."""
    accepted = [case for case, verdict in zip(dev, judge(chosen, dev), strict=True) if verdict]
    gains = {}
    for change in left if accepted else ():
        verdicts = judge([*chosen, change], accepted)
        refused = [case for case, verdict in zip(accepted, verdicts, strict=True) if verdict is False]
        gains[change] = sum(-1 if case.usable else 1 for case in refused)
    best = max(gains, key=lambda change: gains[change], default=None)
    return best if best is not None and gains[best] > 0 else None


def _step(judge: Judge, chosen: Sequence[Change], dev: Sequence[Case], test: Sequence[Case]) -> Step:
    return Step(tuple(chosen), *(_agreement(judge, chosen, cases) for cases in (dev, test)))


def _agreement(judge: Judge, chosen: Sequence[Change], cases: Sequence[Case]) -> dict[str, Any]:
    verdicts = judge(chosen, cases)
    read = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict is not None]
    found = agreement(
        [case.usable for case, _ in read], [bool(v) for _, v in read], [case.question for case, _ in read]
    )
    return {**found, "unread": len(cases) - len(read)}
