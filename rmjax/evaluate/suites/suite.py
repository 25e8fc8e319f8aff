"""What a suite is: how a benchmark's files load, and which evaluator makes numbers of its scores."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rmjax.data.record import Comparison
from rmjax.evaluate.evaluators import Evaluator


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A benchmark's records.

    Attributes:
      records: what is scored.
      unreadable: reason → number of rows that were broken (`on_error="skip"`).
      dropped: reason → number of rows, or of what was drawn of them, that are left out by the suite's rules.
      contradicting: number of records whose scores contradict their ranks, which count.
      unknown: field name → number of rows in which it was ignored.
      kept: defect → number of rows that have it and count nevertheless, as they do where the benchmark is published.
      published: what differs from the published counts (`benchmark.against_published`); empty where none are known.
    """

    records: list[Comparison]
    unreadable: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    contradicting: int = 0
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """How a benchmark is read and evaluated.

    Attributes:
      load: an entry (`rmjax.settings.EVALUATIONS`) → its records. Raises as the readers in `rmjax.data.sources`.
      evaluator: makes rows and numbers of their scores.
    """

    load: Callable[[Any], Loaded]
    evaluator: Evaluator


def said(counts: Mapping[str, int]) -> str:
    """`3 × cut, 1 × order unknown`."""
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())
