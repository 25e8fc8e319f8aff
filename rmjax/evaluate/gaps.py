"""How far apart a reward model puts samples of one policy: the distribution of |Δr|."""

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rmjax.data.record import Comparison
from rmjax.evaluate.rows import Row, of_metric, values
from rmjax.evaluate.scorers import checked

QUANTILES = (0.1, 0.5, 0.9)
GAP, REWARD, RESCALED = "gap", "reward", "difference_rescaled"


def gap_rows(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> list[Row]:
    """In long form, of the answers to one prompt: `gap`, |r_i − r_j| of every pair, `reward` of each, and `difference_rescaled`,
    J between its bounds (`losses.difference`), where there are two or more. Rewards and gaps are in units of reward.

    Raises:
      ScoreError: scores do not fit the records, or a score is not finite.
    """
    items = [(c.id or c.place or str(i), c.prompt) for i, c in enumerate(comparisons)]
    return _rows(items, checked(comparisons, scores))


def _rows(items: Sequence[tuple[str, Hashable]], scores: Sequence[Sequence[float]]) -> list[Row]:
    rows = []
    for (item, cluster), group in zip(items, scores, strict=True):
        gaps = reward_gaps([group])
        measured = [(GAP, float(gap)) for gap in gaps] + [(REWARD, reward) for reward in group]
        if len(gaps):  # Between the bounds, J of a group is the mean of 2 σ(|Δr|) − 1 = tanh(|Δr| / 2) over its pairs.
            measured.append((RESCALED, float(np.mean(np.tanh(gaps / 2)))))
        rows += [Row(item, cluster, metric, value) for metric, value in measured]
    return rows


def reward_gaps(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """|r_i − r_j| of every pair of answers to the same prompt, from one list of rewards per prompt."""
    pairs = itertools.chain.from_iterable(itertools.combinations(group, 2) for group in scores)
    return np.abs([a - b for a, b in pairs])


def gap_fractions(gaps: ArrayLike) -> list[float]:
    """The fraction of the gaps in each of 20 equal bins from 0 to the largest one, whatever their scale."""
    values_P = np.asarray(gaps, np.float64)
    counts_B, _ = np.histogram(values_P / max(float(values_P.max()), 1e-12), np.linspace(0, 1, 21))
    return (counts_B / len(values_P)).tolist()


def describe_gaps(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean and quantiles of |Δr|, in units of reward; `gap_share` is the mean over the standard deviation of all rewards,
    which a mere change of scale leaves as it is; and J between its bounds (`losses.difference`), averaged over prompts. Empty
    where no prompt has two answers."""
    return gap_summary(_rows([(str(i), i) for i in range(len(scores))], scores))


def gap_summary(rows: Sequence[Row]) -> dict[str, float]:
    """`describe_gaps` of `gap_rows`."""
    gaps, rewards = np.asarray(values(of_metric(rows, GAP))), values(of_metric(rows, REWARD))
    if not gaps.size:
        return {}
    spread = float(np.std(np.asarray(rewards)))
    found = {f"gap_{round(100 * q)}": float(np.quantile(gaps, q)) for q in QUANTILES}
    found |= {"gap_mean": float(gaps.mean()), "gap_share": float(gaps.mean()) / spread if spread else 0.0}
    return found | {RESCALED: float(np.mean(values(of_metric(rows, RESCALED))))}
