"""Margins: by how much a scorer puts the better of two answers above the worse one, pair by pair."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rmjax.data.record import Comparison
from rmjax.evaluate.comparisons import known_ranks
from rmjax.evaluate.rows import Row
from rmjax.evaluate.scorers import checked

MARGIN = "margin"


@dataclasses.dataclass(frozen=True)
class Margins:
    """P ordered pairs of answers.

    Attributes:
      values_P: score of the better answer minus that of the worse one.
      prompts: of each pair.
      better: its text.
      worse: likewise.
    """

    values_P: NDArray[np.float64]
    prompts: list[str]
    better: list[str]
    worse: list[str]


def margins(records: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Margins:
    """All ordered pairs of all records; those without a known order have none.

    Raises:
      ScoreError: scores do not fit the records, or one is not finite.
    """
    found: list[tuple[float, str, str, str]] = []
    for c, of_c in zip(records, checked(records, scores), strict=True):
        ranks = known_ranks(c) or (0.0,) * len(of_c)
        ordered = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
        found += [(of_c[i] - of_c[j], c.prompt, c.outputs[i], c.outputs[j]) for i, j in ordered]
    values, prompts, better, worse = map(list, zip(*found, strict=True)) if found else ([], [], [], [])
    return Margins(np.asarray(values, np.float64), prompts, better, worse)  # type: ignore[arg-type]  # of zip


def margin_rows(records: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> list[Row]:
    """In long form: `margin` of every ordered pair; the column `better` says whether the better answer has more words than the
    worse one (`longer`), fewer (`shorter`) or as many (`equal`).

    Raises:
      ScoreError: as `margins`.
    """
    found = margins(records, scores)
    lengths = zip(found.better, found.worse, strict=True)
    sides = [np.sign(len(better.split()) - len(worse.split())) for better, worse in lengths]
    names = {1: "longer", -1: "shorter", 0: "equal"}
    facts = zip(found.prompts, found.values_P.tolist(), sides, strict=True)
    return [
        Row(str(number), prompt, MARGIN, value, {"better": names[int(side)]})
        for number, (prompt, value, side) in enumerate(facts)
    ]
