"""Statistics of measured values: means with intervals, paired differences, ratios, values of several seeds.

An interval says how far a mean could have been off, had other prompts been drawn. Percentile
bootstrap (Efron, 1979): resample whole clusters with replacement, take the mean of each resample,
report the 2.5th and the 97.5th percentile. Rows that answer the same prompt are not independent, so
a cluster is usually a prompt.
"""

from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
_MAX_CELLS = 4_000_000  # counts held at once: 32 MB


class Interval(TypedDict):
    """A mean with its 95 % interval; all None when there was nothing to average."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def interval(values: ArrayLike, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Interval:
    """Mean of `values` with a 95 % percentile bootstrap interval.

    Args:
      values: `(N,)` finite numbers, in any unit; the result has the same unit.
      clusters: `N` labels, say prompts. Values that share a label are drawn together. None: every
        value is its own cluster.
      seed: of the resampling; the same arguments give the same interval.

    Returns:
      value, low and high, and n, the number of values (not of clusters). With n = 0 the three
      numbers are None. With one cluster, low = high = value: one cluster says nothing of the
      spread, so read such an interval as unknown, not as narrow.

    Raises:
      ValueError: a value is not finite, or `clusters` has another length than `values`.
    """
    values_N = _finite_vector(values)
    if values_N.size == 0:
        return Interval(value=None, low=None, high=None, n=0)
    sums_C, counts_C = _cluster_totals(values_N, clusters)
    atoms_A2, weights_A = np.unique(np.stack([sums_C, counts_C], axis=1), axis=0, return_counts=True)
    means_R = _resampled_means(atoms_A2, weights_A, np.random.default_rng(seed))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means_R, (tail, 100 - tail))
    mean = _weighted_means(weights_A[None], atoms_A2)[0]
    return Interval(value=float(mean), low=float(low), high=float(high), n=int(values_N.size))


def difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """Mean of `first - second`, paired: both are resampled together.

    An interval above 0 says that `first` is better on these rows; it is much narrower than two
    separate intervals suggest, because both scorers meet the same easy and hard rows.

    Args:
      first: `(N,)` values, say the credits of a reward model.
      second: `(N,)` values of the same rows, say the credits of a baseline.
      clusters: as in `interval`.
      seed: as in `interval`.

    Raises:
      ValueError: as `interval`, or the two have different lengths.
    """
    first_N, second_N = _finite_vector(first), _finite_vector(second)
    if first_N.size != second_N.size:
        raise ValueError(f"a paired difference of {first_N.size} and {second_N.size} values")
    return interval(first_N - second_N, clusters, seed)


def ratio(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """Geometric mean of `first / second`, paired: the mean difference of the logarithms, as a factor.

    A ratio and its inverse then say the same, which a mean of ratios does not.

    Args:
      first: `(N,)` positive values, say the losses or seconds of one method.
      second: `(N,)` positive values of the same rows.
      clusters: as in `interval`.
      seed: as in `interval`.

    Raises:
      ValueError: as `difference`, or a value is not positive.
    """
    first_N, second_N = _finite_vector(first), _finite_vector(second)
    if not ((first_N > 0).all() and (second_N > 0).all()):
        raise ValueError("a ratio has a value that is not positive; give positive ones")
    logs = difference(np.log(first_N), np.log(second_N), clusters, seed)
    value, low, high = (None if x is None else float(np.exp(x)) for x in (logs["value"], logs["low"], logs["high"]))
    return Interval(value=value, low=low, high=high, n=logs["n"])


class OverSeeds(TypedDict):
    """A mean over seeds and items, and the mean of each seed that has values."""

    mean: Interval
    seeds: list[float]


def over_seeds(values: Sequence[Sequence[float]], items: Sequence[Sequence[Hashable]] | None = None) -> OverSeeds:
    """Of a value per seed and item: the mean with its interval, and each seed's mean.

    Items are resampled, each with all its values.

    Args:
      values: seed → a value per item.
      items: seed → a label per value, say prompts. None: the values of all seeds are of the same items, in one order.

    Raises:
      ValueError: as `interval`.
    """
    return {"mean": interval(*_pooled(values, items)), "seeds": [float(np.mean(v)) for v in values if len(v)]}


def paired(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    items: Sequence[Sequence[Hashable]] | None = None,
) -> OverSeeds:
    """First minus second, seed by seed and item by item; arguments as of `over_seeds`.

    Raises:
      ValueError: as `difference`, or the two have different numbers of seeds.
    """
    (a, labels), (b, _) = _pooled(first, items), _pooled(second, items)
    seeds = [float(np.mean(one) - np.mean(other)) for one, other in zip(first, second, strict=True) if len(one)]
    return {"mean": difference(a, b, labels), "seeds": seeds}


def _pooled(
    values: Sequence[Sequence[float]], items: Sequence[Sequence[Hashable]] | None
) -> tuple[NDArray[np.float64], list[Hashable]]:
    labels = [range(len(v)) for v in values] if items is None else items
    return np.concatenate([np.asarray(v, np.float64) for v in values]), [label for found in labels for label in found]


def cluster_index(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """`(N,)` number of each label's cluster, counted in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.asarray([numbers.setdefault(label, len(numbers)) for label in clusters], np.int64)


def _finite_vector(values: ArrayLike) -> NDArray[np.float64]:
    values_N = np.asarray(values, np.float64)
    if values_N.ndim != 1:
        raise ValueError(f"values have shape {values_N.shape}; pass one number per row")
    if not np.isfinite(values_N).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(values_N)))} is not finite")
    return values_N


def _cluster_totals(
    values_N: NDArray[np.float64], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if clusters is None:
        return values_N, np.ones_like(values_N)
    if len(clusters) != values_N.size:
        raise ValueError(f"{values_N.size} values have {len(clusters)} cluster labels")
    index_N = cluster_index(clusters)
    sums_C = np.bincount(index_N, values_N).astype(np.float64)
    return sums_C, np.bincount(index_N).astype(np.float64)


def _resampled_means(
    atoms_A2: NDArray[np.float64], weights_A: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of `RESAMPLES` resamples.

    Clusters with equal (sum, count) are interchangeable, so drawing how often each *distinct* one
    occurs is the same bootstrap; accuracies have a handful of distinct ones.
    """
    clusters = int(weights_A.sum())
    step = max(1, _MAX_CELLS // weights_A.size)
    means = []
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        draws_RA = rng.multinomial(clusters, weights_A / clusters, size=size)
        means.append(_weighted_means(draws_RA, atoms_A2))
    return np.concatenate(means)


def _weighted_means(draws_RA: NDArray[np.int64], atoms_A2: NDArray[np.float64]) -> NDArray[np.float64]:
    totals_R2 = draws_RA @ atoms_A2
    return totals_R2[:, 0] / totals_R2[:, 1]
