"""Evaluators: scorer + records → rows in long form, and the numbers of a training log.

The same objects evaluate in training, alone and in studies.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.record import Comparison
from rmjax.evaluate.calibration import calibrate, expected_error, temperature
from rmjax.evaluate.comparisons import evaluate_comparisons, overall, preference_rows, reasons
from rmjax.evaluate.discrimination import discriminate, discrimination_rows, policy_accuracy
from rmjax.evaluate.gaps import describe_gaps, gap_rows, gap_summary
from rmjax.evaluate.margins import margin_rows
from rmjax.evaluate.rows import Row, grouped, values
from rmjax.evaluate.scorers import Scorer
from rmjax.evaluate.style import control

_log = logging.getLogger(__name__)
Scores = Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One way to evaluate a scorer.

    Attributes:
      name: in `EVALUATORS`.
      rows: records and their scores → rows in long form.
      numbers: rows → name → number, for a log; called with rows only.
      summary: records, their scores and the bootstrap's seed → all that a result file has of them, baselines included.
      left_out: records → why some give no rows → how many.
      refuse: of records, before they are scored: ValueError where no number can come of them.
    """

    name: str
    rows: Callable[[Sequence[Comparison], Scores], list[Row]]
    numbers: Callable[[Sequence[Row]], Mapping[str, float]]
    summary: Callable[[Sequence[Comparison], Scores, int], Mapping[str, Any]]
    left_out: Callable[[Sequence[Comparison]], dict[str, int]] = lambda records: {}
    refuse: Callable[[Sequence[Comparison]], None] = lambda records: None

    def __call__(self, scorer: Scorer, records: Sequence[Comparison]) -> list[Row]:
        """Scores the records: their rows in long form.

        Raises:
          ScoreError: a score is not finite.
        """
        return self.rows(records, scorer.score(records))

    def metrics(self, scorer: Scorer, records: Sequence[Comparison]) -> dict[str, float]:
        """The numbers of a scorer on the records; none, with a warning, where there is nothing to evaluate.

        Raises:
          ScoreError: a score is not finite.
        """
        rows = self(scorer, records)
        found = dict(self.numbers(rows)) if rows else {}
        if not found:
            _log.warning("%s: none of %d records can be evaluated (%s): no numbers", self.name, len(records),
                         self.left_out(records) or "there is none")  # fmt: skip
        return found


def _preference_numbers(rows: Sequence[Row]) -> dict[str, float]:
    found: Any = overall(rows)
    return {name: float(found[name]) for name in ("accuracy", "low", "high", "ties")}


def _discrimination_numbers(rows: Sequence[Row]) -> dict[str, float]:
    found = policy_accuracy(rows)
    mean: Any = found["overall"]
    return {"accuracy": mean["value"], "low": mean["low"], "high": mean["high"], "ties": float(found["ties"])}


def _calibration_numbers(rows: Sequence[Row]) -> dict[str, float]:
    if not rows:
        return {}
    margins_P = np.asarray(values(rows))
    found = {"loss": float(np.logaddexp(0.0, -margins_P).mean()), "ece": expected_error(margins_P)}
    fitted = temperature(margins_P)
    return found if fitted is None else {**found, "temperature": fitted}


def _style_numbers(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy where the better answer is the longer one, and where it is the shorter one."""
    return {
        f"accuracy_{name}": float(np.mean((np.sign(values(members)) + 1) / 2))
        for name, members in grouped(rows, "better").items()
        if name != "equal"
    }


def _one_answer(records: Sequence[Comparison]) -> dict[str, int]:
    single = sum(len(c.outputs) < 2 for c in records)
    return {"one output": single} if single else {}


EVALUATORS = {
    evaluator.name: evaluator
    for evaluator in (
        Evaluator("preference", preference_rows, _preference_numbers, evaluate_comparisons, reasons),
        Evaluator("discrimination", discrimination_rows, _discrimination_numbers,
                  lambda records, scores, seed: discriminate(records, scores, seed=seed)),
        Evaluator("calibration", margin_rows, _calibration_numbers, calibrate, reasons),
        Evaluator("style", margin_rows, _style_numbers, control, reasons),
        Evaluator("gaps", gap_rows, gap_summary, lambda records, scores, seed: describe_gaps(scores), _one_answer),
    )
}  # fmt: skip
"""Name → evaluator. To add one, write its rows and numbers and list it here."""
