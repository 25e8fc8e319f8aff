"""Preference accuracy: does a scorer order answers as the labels do?

A row earns a credit in [0, 1]:

* a pair: 1 if the better output scores higher, 0 if lower, 1/2 if both score the same;
* one best output among N, the others tied: 1 if the best one scores highest; where it shares the
  highest score with others, 1 / (number of outputs that share it); else 0. A record does not tell
  whether it was written as `best`, as `chosen` with several `rejected` or as such `ranks`, so all
  three are treated by this rule;
* any other ranking: the mean over all pairs of outputs that the ranking orders, each treated as a
  pair (Kendall's tau-b without its tie correction, moved to [0, 1]).

Rows whose credit comes from a tie in score are counted in `ties`. Beside these, `pairwise` has the
accuracy over all ordered pairs of all rows. Intervals resample prompts, so rows that share a
prompt do not pass for independent ones.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rmjax.data.record import Comparison, select
from rmjax.evaluate.baselines import of_preferences
from rmjax.evaluate.rows import Row, gain, grouped, mean, of_metric, values
from rmjax.evaluate.scorers import Baseline, check_scores, checked
from rmjax.evaluate.statistics import Interval

logger = logging.getLogger(__name__)

Scores = Sequence[Sequence[float]]
CREDIT, TIED, PAIR = "credit", "tied", "pair"


class Accuracy(TypedDict):
    """Mean credit with its 95 % interval, number of rows (or pairs), how many of them were tied."""

    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    ties: int


class Breakdown(TypedDict):
    """Accuracy over everything and for each category."""

    overall: Accuracy
    categories: dict[str, Accuracy]


class Evaluation(Breakdown):
    """What `evaluate_comparisons` returns."""

    pairwise: Breakdown
    baselines: dict[str, Breakdown]
    differences: dict[str, Interval]
    rows: int
    skipped: dict[str, int]
    without_reference: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one scorer did on one row.

    Attributes:
      credit: in [0, 1].
      tied: the credit comes, at least in part, from equal scores.
      pairs: credit 0, 1/2 or 1 of every ordered pair of the row.
    """

    credit: float
    tied: bool
    pairs: tuple[float, ...]


def known_ranks(comparison: Comparison) -> tuple[float, ...] | None:
    """Ranks of the outputs, smaller is better; from the quality scores if there are no ranks."""
    if comparison.ranks is not None:
        return comparison.ranks
    if comparison.scores is not None:
        return tuple(-score for score in comparison.scores)
    return None


def unusable(comparison: Comparison) -> str | None:
    """Why a row has no accuracy, or None if it has one."""
    ranks = known_ranks(comparison)
    if len(comparison.outputs) < 2:
        return "one output"
    if ranks is None:
        return "order unknown"
    if len(set(ranks)) < 2:
        return "all outputs ranked equal"
    return None


def evaluate_comparison(comparison: Comparison, scores: Sequence[float]) -> Verdict | None:
    """Credit of one row, or None where `unusable` says so.

    Args:
      comparison: the row.
      scores: one per output, higher is better, in any unit.

    Raises:
      ScoreError: the number of scores is not the number of outputs, or a score is not finite.
    """
    check_scores(comparison, scores)
    ranks = known_ranks(comparison)
    if ranks is None or unusable(comparison):
        return None
    ranks_N, scores_N = np.asarray(ranks, np.float64), np.asarray(scores, np.float64)
    pairs_P = _pair_credits(ranks_N, scores_N)
    pairs = tuple(pairs_P.tolist())
    if _is_best_of(ranks_N):
        top_N = scores_N == scores_N.max()
        hit = bool(top_N[np.argmin(ranks_N)])
        return Verdict(hit / int(top_N.sum()), hit and int(top_N.sum()) > 1, pairs)
    return Verdict(float(pairs_P.mean()), bool((pairs_P == 0.5).any()), pairs)


def with_best_as_reference(comparison: Comparison) -> Comparison:
    """The top-ranked output becomes the reference and leaves the candidates.

    POLAR's protocol for preference benchmarks (arXiv 2507.05197, section 4.2): of three ranked
    answers the first is the reference, and the model is right if r(second) > r(third). A row that
    has a reference, fewer than three outputs, no single best one or no order among the others is
    returned as it is.
    """
    ranks = known_ranks(comparison)
    if comparison.references or ranks is None or ranks.count(min(ranks)) != 1:
        return comparison
    best = ranks.index(min(ranks))
    rest = [index for index in range(len(ranks)) if index != best]
    if len({ranks[index] for index in rest}) < 2:
        return comparison
    return dataclasses.replace(select(comparison, rest), references=(comparison.outputs[best],))


def evaluate_comparisons(comparisons: Sequence[Comparison], scores: Scores, seed: int = 0) -> Evaluation:
    """Accuracy of a reward model and of the baselines on the same rows.

    Args:
      comparisons: the rows.
      scores: a list per row, a score per output, higher is better.
      seed: of the bootstrap.

    Returns:
      `overall` and `categories.NAME`, each {accuracy, low, high, n, ties}, by the rule for rows;
      `pairwise`, the same over pairs; `baselines.NAME` likewise, NAME one of length, shorter and
      word_overlap, and of longer where a row has a reference; `differences.NAME`, the paired
      difference in accuracy of model minus baseline; `rows`, the number given; `skipped`, reason
      -> number of rows without a known order (in no accuracy); `without_reference`, the number of
      evaluated rows that have none.

    Raises:
      ScoreError: scores do not fit the rows, or a score is not finite.
    """
    model = preference_rows(comparisons, scores)
    usable = [comparison for comparison in comparisons if not unusable(comparison)]
    baselines = {
        name: preference_rows(comparisons, Baseline(name).score(comparisons)) for name in of_preferences(usable)
    }
    return Evaluation(
        **_by_row(model, seed),
        pairwise=_by_pair(model, seed),
        baselines={name: _by_row(rows, seed) for name, rows in baselines.items()},
        differences={
            name: gain(of_metric(model, CREDIT), of_metric(rows, CREDIT), seed) for name, rows in baselines.items()
        },
        rows=len(comparisons),
        skipped=_skipped(comparisons),
        without_reference=sum(not comparison.references for comparison in usable),
    )


def preference_rows(comparisons: Sequence[Comparison], scores: Scores) -> list[Row]:
    """In long form: `credit` and `tied` (1 or 0) of every record with a known order, `pair` (credit 0, 1/2 or 1) of its ordered
    pairs. Column: `category`, where a record has one.

    Raises:
      ScoreError: as `evaluate_comparisons`.
    """
    rows = []
    for number, (comparison, found) in enumerate(zip(comparisons, checked(comparisons, scores), strict=True)):
        if verdict := evaluate_comparison(comparison, found):
            groups = {} if comparison.category is None else {"category": comparison.category}
            item = comparison.id or comparison.place or str(number)
            measured = [(CREDIT, verdict.credit), (TIED, float(verdict.tied)), *((PAIR, x) for x in verdict.pairs)]
            rows += [Row(item, comparison.prompt, metric, value, groups) for metric, value in measured]
    return rows


def credits_of(comparisons: Sequence[Comparison], scores: Scores) -> list[float]:
    """The credit of every row with a known order, in their order; ScoreError as `evaluate_comparisons`."""
    return values(of_metric(preference_rows(comparisons, scores), CREDIT))


def reasons(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Why rows have no accuracy → how many."""
    return dict(Counter(reason for c in comparisons if (reason := unusable(c))))


def paired_gain(comparisons: Sequence[Comparison], first: Scores, second: Scores, seed: int = 0) -> Interval:
    """Paired difference in accuracy of two reward models on the same rows, first minus second.

    Args:
      comparisons: the rows; those without a known order are left out.
      first: scores of one model, a list per row.
      second: scores of the other.
      seed: of the bootstrap.

    Raises:
      ScoreError: as `evaluate_comparisons`.
    """
    ours, theirs = (of_metric(preference_rows(comparisons, scores), CREDIT) for scores in (first, second))
    return gain(ours, theirs, seed)


def overall(rows: Sequence[Row], seed: int = 0) -> Accuracy:
    """Accuracy over `preference_rows`, by the rule for rows."""
    found = mean(of_metric(rows, CREDIT), seed)
    return _accuracy(found, ties=int(sum(values(of_metric(rows, TIED)))))


def _accuracy(found: Interval, ties: int) -> Accuracy:
    return Accuracy(accuracy=found["value"], low=found["low"], high=found["high"], n=found["n"], ties=ties)


def _is_best_of(ranks_N: NDArray[np.float64]) -> bool:
    return len(np.unique(ranks_N)) == 2 and int((ranks_N == ranks_N.min()).sum()) == 1


def _pair_credits(ranks_N: NDArray[np.float64], scores_N: NDArray[np.float64]) -> NDArray[np.float64]:
    better_NN = ranks_N[:, None] < ranks_N[None, :]
    order_NN = np.sign(scores_N[:, None] - scores_N[None, :])
    return (order_NN[better_NN] + 1) / 2


def _by_row(rows: Sequence[Row], seed: int) -> Breakdown:
    return Breakdown(
        overall=overall(rows, seed),
        categories={name: overall(members, seed) for name, members in grouped(rows, "category").items()},
    )


def _by_pair(rows: Sequence[Row], seed: int) -> Breakdown:
    def over(pairs: Sequence[Row]) -> Accuracy:
        return _accuracy(mean(pairs, seed), ties=values(pairs).count(0.5))

    pairs = of_metric(rows, PAIR)
    return Breakdown(
        overall=over(pairs), categories={name: over(members) for name, members in grouped(pairs, "category").items()}
    )


def _skipped(comparisons: Sequence[Comparison]) -> dict[str, int]:
    found = reasons(comparisons)
    for reason, count in found.items():
        logger.warning("%d of %d rows have no accuracy: %s", count, len(comparisons), reason)
    return found
