"""Preference accuracy: does a scorer order answers as the labels do?

A row earns a credit in [0, 1]:

* a pair: 1 if the better output scores higher, 0 if lower, 1/2 if both score the same;
* one best output among N, the others tied: 1 if the best one scores highest; where it shares the
  highest score with others, 1 / (number of outputs that share it); else 0. A record does not tell
  whether it was written as `best`, as `chosen` with several `rejected` or as such `ranks`, so all
  three are judged by this rule;
* any other ranking: the mean over all pairs of outputs that the ranking orders, each judged as a
  pair (Kendall's tau-b without its tie correction, moved to [0, 1]).

Rows whose credit comes from a tie in score are counted in `ties`. Beside these, `pairwise` has the
accuracy over all ordered pairs of all rows. Intervals resample prompts, so rows that share a
prompt do not pass for independent ones.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rmjax.data.record import Comparison, select
from rmjax.evaluate import baselines
from rmjax.evaluate.bootstrap import Interval, difference, interval

logger = logging.getLogger(__name__)

Scores = Sequence[Sequence[float]]


class ScoreError(ValueError):
    """A scorer gave too few, too many or non-finite scores for a row, which is named."""


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


def check_scores(comparison: Comparison, scores: Sequence[float]) -> None:
    """Raises ScoreError unless there is one finite score for each output."""
    if len(scores) != len(comparison.outputs):
        raise ScoreError(f"{comparison.place}: {len(comparison.outputs)} outputs have {len(scores)} scores")
    if not np.isfinite(np.asarray(scores, np.float64)).all():
        raise ScoreError(f"{comparison.place}: a score is not finite ({list(scores)}); the model is broken")


def judge(comparison: Comparison, scores: Sequence[float]) -> Verdict | None:
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
      `pairwise`, the same over pairs; `baselines.NAME` likewise, NAME one of length and
      word_overlap, and of longer where a row has a reference; `differences.NAME`, the paired
      difference in accuracy of model minus baseline; `rows`, the number given; `skipped`, reason
      -> number of rows without a known order (in no accuracy); `without_reference`, the number of
      judged rows that have none.

    Raises:
      ValueError: scores do not fit the rows, or a score is not finite.
    """
    if len(comparisons) != len(scores):
        raise ValueError(f"{len(comparisons)} comparisons have {len(scores)} lists of scores")
    verdicts = [judge(c, s) for c, s in zip(comparisons, scores, strict=True)]
    judged = [c for c, verdict in zip(comparisons, verdicts, strict=True) if verdict]
    model = [verdict for verdict in verdicts if verdict]
    rivals = _baseline_verdicts(judged)
    prompts = [comparison.prompt for comparison in judged]
    return Evaluation(
        **_by_row(judged, model, seed),
        pairwise=_by_pair(judged, model, seed),
        baselines={name: _by_row(judged, rival, seed) for name, rival in rivals.items()},
        differences={
            name: difference(_credits(model), _credits(rival), prompts, seed) for name, rival in rivals.items()
        },
        rows=len(comparisons),
        skipped=_skipped(comparisons),
        without_reference=sum(not comparison.references for comparison in judged),
    )


def paired_gain(comparisons: Sequence[Comparison], first: Scores, second: Scores, seed: int = 0) -> Interval:
    """Paired difference in accuracy of two reward models on the same rows, first minus second.

    Args:
      comparisons: the rows; those without a known order are left out.
      first: scores of one model, a list per row.
      second: scores of the other.
      seed: of the bootstrap.

    Raises:
      ValueError: as `evaluate_comparisons`.
    """
    rows = [
        (comparison.prompt, judge(comparison, one), judge(comparison, other))
        for comparison, one, other in zip(comparisons, first, second, strict=True)
    ]
    judged = [(prompt, one.credit, other.credit) for prompt, one, other in rows if one and other]
    prompts, ours, theirs = zip(*judged, strict=True) if judged else ((), (), ())
    return difference(ours, theirs, prompts, seed)


def accuracy(
    credits: Sequence[float],
    ties: int,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Accuracy:
    """Mean credit with its interval, under the names that evaluation files use."""
    mean = interval(credits, clusters, seed)
    return Accuracy(accuracy=mean["value"], low=mean["low"], high=mean["high"], n=mean["n"], ties=ties)


def _is_best_of(ranks_N: NDArray[np.float64]) -> bool:
    return len(np.unique(ranks_N)) == 2 and int((ranks_N == ranks_N.min()).sum()) == 1


def _pair_credits(ranks_N: NDArray[np.float64], scores_N: NDArray[np.float64]) -> NDArray[np.float64]:
    better_NN = ranks_N[:, None] < ranks_N[None, :]
    order_NN = np.sign(scores_N[:, None] - scores_N[None, :])
    return (order_NN[better_NN] + 1) / 2


def _baseline_verdicts(judged: Sequence[Comparison]) -> dict[str, list[Verdict]]:
    scorers = dict(baselines.BASELINES)
    if any(comparison.references for comparison in judged):
        scorers["longer"] = baselines.longer
    verdicts = {name: [judge(c, scorer(c)) for c in judged] for name, scorer in scorers.items()}
    return {name: [v for v in row if v is not None] for name, row in verdicts.items()}


def _credits(verdicts: Sequence[Verdict]) -> list[float]:
    return [verdict.credit for verdict in verdicts]


def _by_row(judged: Sequence[Comparison], verdicts: Sequence[Verdict], seed: int) -> Breakdown:
    return _breakdown(
        [v.credit for v in verdicts],
        [v.tied for v in verdicts],
        [c.prompt for c in judged],
        [c.category for c in judged],
        seed,
    )


def _by_pair(judged: Sequence[Comparison], verdicts: Sequence[Verdict], seed: int) -> Breakdown:
    rows = [(c, credit) for c, v in zip(judged, verdicts, strict=True) for credit in v.pairs]
    return _breakdown(
        [credit for _, credit in rows],
        [credit == 0.5 for _, credit in rows],
        [comparison.prompt for comparison, _ in rows],
        [comparison.category for comparison, _ in rows],
        seed,
    )


def _breakdown(
    credits: Sequence[float],
    tied: Sequence[bool],
    prompts: Sequence[str],
    categories: Sequence[str | None],
    seed: int,
) -> Breakdown:
    members: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        if category is not None:
            members.setdefault(category, []).append(index)

    def over(indices: Sequence[int]) -> Accuracy:
        return accuracy(
            [credits[i] for i in indices],
            sum(tied[i] for i in indices),
            [prompts[i] for i in indices],
            seed,
        )

    return Breakdown(
        overall=over(range(len(credits))),
        categories={name: over(members[name]) for name in sorted(members)},
    )


def _skipped(comparisons: Sequence[Comparison]) -> dict[str, int]:
    reasons = Counter(reason for c in comparisons if (reason := unusable(c)))
    for reason, count in reasons.items():
        logger.warning("%d of %d rows have no accuracy: %s", count, len(comparisons), reason)
    return dict(reasons)
