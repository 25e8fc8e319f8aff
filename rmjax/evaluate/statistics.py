"""Statistics of measured values: means with intervals, paired differences, ratios, values of several seeds.

An interval says how far a mean could have been off, had other prompts been drawn. Percentile
bootstrap (Efron, 1979): resample whole clusters with replacement, take the mean of each resample,
report the 2.5th and the 97.5th percentile. Rows that answer the same prompt are not independent, so
a cluster is usually a prompt.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
FLIPS = 20_000
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


def combined(
    values: ArrayLike,
    parts: Sequence[str],
    weights: Mapping[str, float],
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """Weighted sum of the means of parts, Σ w · mean, with its interval: a benchmark's score over its sections.

    Clusters are resampled within those that have values in the same parts, so that no part is ever empty.

    Args:
      values: `(N,)` finite numbers.
      parts: of each value; those of other parts than `weights` has are left out.
      weights: part → its weight. Every one needs a value.
      clusters: as in `interval`.
      seed: as in `interval`.

    Raises:
      ValueError: as `interval`; or a part has no value.
    """
    values_N = _finite_vector(values)
    labels = list(range(values_N.size)) if clusters is None else list(clusters)
    kept = [i for i, part in enumerate(parts) if part in weights]
    if missing := sorted(weights.keys() - {parts[i] for i in kept}):
        raise ValueError(f"there is no value of {', '.join(missing)}, which the score is made of")
    names = {part: k for k, part in enumerate(weights)}
    index_N, part_N = cluster_index([labels[i] for i in kept]), np.asarray([names[parts[i]] for i in kept])
    sums_CK, counts_CK = np.zeros((2, index_N.max() + 1, len(names)))
    np.add.at(sums_CK, (index_N, part_N), values_N[kept])
    np.add.at(counts_CK, (index_N, part_N), 1)
    weights_K = np.asarray(list(weights.values()), np.float64)
    scores_R = _resampled_scores(sums_CK, counts_CK, weights_K, np.random.default_rng(seed))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(scores_R, (tail, 100 - tail))
    value = float((sums_CK.sum(0) / counts_CK.sum(0)) @ weights_K)
    return Interval(value=value, low=float(low), high=float(high), n=len(kept))


def _resampled_scores(
    sums_CK: NDArray[np.float64],
    counts_CK: NDArray[np.float64],
    weights_K: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    _, stratum_C = np.unique(counts_CK > 0, axis=0, return_inverse=True)
    totals_R2K = np.zeros((RESAMPLES, 2 * weights_K.size))
    whole_C2K = np.concatenate([sums_CK, counts_CK], axis=1)
    for stratum in range(stratum_C.max() + 1):
        atoms_A2K, times_A = np.unique(whole_C2K[stratum_C.ravel() == stratum], axis=0, return_counts=True)
        clusters, step = int(times_A.sum()), max(1, _MAX_CELLS // times_A.size)
        for start in range(0, RESAMPLES, step):
            size = min(step, RESAMPLES - start)
            draws_RA = rng.multinomial(clusters, times_A / clusters, size=size)
            totals_R2K[start : start + size] += draws_RA @ atoms_A2K
    means_RK = totals_R2K[:, : weights_K.size] / totals_R2K[:, weights_K.size :]
    return means_RK @ weights_K


def sign_flips(differences: ArrayLike, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> float:
    """Two-sided p-value of paired differences whose mean is 0 under the null: the signs of whole clusters are flipped.

    With `FLIPS` random flips it is never below 1 / (FLIPS + 1); 1 where all differences are 0.

    Raises:
      ValueError: as `interval`.
    """
    sums_C, _ = _cluster_totals(_finite_vector(differences), clusters)
    sizes_A, times_A = np.unique(np.round(np.abs(sums_C[sums_C != 0]), 9), return_counts=True)
    if not sizes_A.size:
        return 1.0
    heads_FA = np.random.default_rng(seed).binomial(times_A, 0.5, size=(FLIPS, times_A.size))
    flipped_F = np.abs((2 * heads_FA - times_A) @ sizes_A)
    extreme = int((flipped_F >= abs(sums_C.sum()) - 1e-6).sum())
    return (1 + extreme) / (FLIPS + 1)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """q-values (Benjamini and Hochberg, 1995): of discoveries with values up to q, an expected fraction of at most q is false."""
    p_N = np.asarray(p_values, np.float64)
    order_N = np.argsort(p_N)
    raised_N = p_N[order_N] * p_N.size / np.arange(1, p_N.size + 1)
    q_N = np.empty_like(p_N)
    q_N[order_N] = np.minimum(np.minimum.accumulate(raised_N[::-1])[::-1], 1.0)
    return q_N.tolist()


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
