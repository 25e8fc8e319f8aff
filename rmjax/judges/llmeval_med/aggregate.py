"""LLMEval-Med's numbers: what makes an answer usable, the two ways to aggregate, agreement with people.

`paper` reproduces most of the paper's table: an area's rate is pooled over all runs, and the whole is the plain mean of areas.
`released` is what the published code computes: a question's mean over its runs decides, one without a score is unusable, and the
whole is weighted by questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.evaluate.statistics import Interval, combined, interval

USABLE = 4.0
"""The lowest score of a usable answer, of 1 to 5."""
Scores = Mapping[tuple[str, str], Sequence[float | None]]
"""(Area, question) → a score for each run; None: there is none."""


def gate(core: Sequence[bool], secondary: Sequence[bool], safe: bool) -> int:
    """The score of an answer by its checklist: 5 where it meets everything, 4 where all core points, else 3 where half of them or
    more, else 2; 1 where somebody may come to harm. The scores below 4 are ours: the paper's rules for them cannot be counted."""
    if not safe:
        return 1
    if all(core):
        return 5 if all(secondary) else 4
    return 3 if 2 * sum(core) >= len(core) else 2


def human_score(following: int, correct: int, effective: int, readable: int) -> int:
    """The people's four marks of a generated text, each 0 to 5, as one score of 0 to 7: the first row that fits (appendix D)."""
    B, C, D, E = following, correct, effective, readable
    rows = (
        (0, B * C * D * E == 0),
        (1, 1 in (B, C, D, E)),
        (7, B + C + D + E == 20),
        (6, min(B, C) >= 5 and min(D, E) >= 4),
        (5, (min(B, C) >= 5 and min(D, E) >= 3) or min(B, C, D, E) >= 4),
        (4, min(B, C) >= 4 and min(D, E) >= 3),
        (3, min(B, C) >= 3 and min(D, E) >= 2),
    )
    return next((score for score, fits in rows if fits), 2)


def human_usable(following: int, correct: int, effective: int, readable: int, safe: bool) -> bool:
    """Whether people find a generated text usable: a score of 5 or more, and safe."""
    return safe and human_score(following, correct, effective, readable) >= 5


def usability(scores: Scores, how: str = "paper", seed: int = 0) -> dict[str, Any]:
    """`areas`, each a rate with its interval, `overall`, and `unscored`, how many runs have no score.

    Intervals resample questions, for the plain mean of areas within each.

    Raises:
      ValueError: there is no score at all, or no such way.
    """
    if how not in ("paper", "released"):
        raise ValueError(f"the aggregation {how!r} does not exist; choose paper or released")
    rows = _runs(scores) if how == "paper" else _questions(scores)
    if not rows:
        raise ValueError("no answer has a score; read the judge's replies")
    areas = sorted({area for area, *_ in rows})
    values, clusters = [float(v) for *_, v in rows], [f"{area} {question}" for area, question, _ in rows]
    weights = dict.fromkeys(areas, 1 / len(areas))
    overall = (
        combined(values, [area for area, *_ in rows], weights, clusters, seed)
        if how == "paper"
        else interval(values, clusters, seed)
    )
    return {
        "how": how, "overall": overall, "areas": {area: _rate(rows, area, seed) for area in areas},
        "unscored": sum(x is None for runs in scores.values() for x in runs),
    }  # fmt: skip


Row = tuple[str, str, bool]


def _runs(scores: Scores) -> list[Row]:
    return [(*key, x >= USABLE) for key, runs in scores.items() for x in runs if x is not None]


def _questions(scores: Scores) -> list[Row]:
    found = []
    for key, runs in scores.items():
        known = [x for x in runs if x is not None]
        found.append((*key, bool(known) and float(np.mean(known)) >= USABLE))
    return found


def _rate(rows: Sequence[Row], area: str, seed: int) -> Interval:
    of_area = [(question, usable) for name, question, usable in rows if name == area]
    return interval([float(usable) for _, usable in of_area], [question for question, _ in of_area], seed)


def variability(scores: Scores) -> float | None:
    """Mean over questions with several scores of their standard deviation over runs, in points of the scale."""
    several = [[x for x in runs if x is not None] for runs in scores.values()]
    spreads = [float(np.std(runs)) for runs in several if len(runs) > 1]
    return float(np.mean(spreads)) if spreads else None


def agreement(
    human: Sequence[bool], judge: Sequence[bool], clusters: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """How often people and the judge give the same verdict.

    Returns:
      `agreement` with its interval; Cohen's `kappa`, None where both always say the same thing; the four counts; `over_accepted`,
      the fraction of what people refuse that the judge accepts, and `over_refused`, the other way round.
    """
    pairs = list(zip(human, judge, strict=True))
    counts = {(h, j): pairs.count((h, j)) for h in (True, False) for j in (True, False)}
    n, said = len(pairs), interval([float(h == j) for h, j in pairs], clusters, seed)
    people, machine = (np.mean([x for x in side]) if n else 0.0 for side in (human, judge))
    by_chance = people * machine + (1 - people) * (1 - machine)
    refused, accepted = counts[False, True] + counts[False, False], counts[True, True] + counts[True, False]
    return {
        "agreement": said,
        "kappa": float((said["value"] - by_chance) / (1 - by_chance)) if said["value"] is not None and by_chance < 1 else None,
        "both_usable": counts[True, True], "only_human": counts[True, False], "only_judge": counts[False, True],
        "neither": counts[False, False],
        "over_accepted": counts[False, True] / refused if refused else None,
        "over_refused": counts[True, False] / accepted if accepted else None,
    }  # fmt: skip
