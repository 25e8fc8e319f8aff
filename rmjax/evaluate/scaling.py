"""Scaling laws: loss against compute, L = beta * C**alpha.

POLAR (arXiv 2507.05197, section 4.4) fits the form along the envelope of optimal compute and finds
alpha = -0.0342 with R^2 = 0.9912. Compare exponents and R^2, not beta, which depends on the unit
of compute.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmjax.evaluate.statistics import CONFIDENCE, RESAMPLES, cluster_index


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L = beta * C**alpha.

    Attributes:
      beta: loss at one unit of compute, nats.
      alpha: exponent; negative where more compute helps.
      r_squared: share of the variance of log L that the line explains; 1 is perfect.
      alpha_low: 2.5th percentile of alpha over resamples; None where no resample could be fitted.
      alpha_high: 97.5th percentile.
      n: number of points fitted.
    """

    beta: float
    alpha: float
    r_squared: float
    alpha_low: float | None
    alpha_high: float | None
    n: int

    def __call__(self, compute: ArrayLike) -> NDArray[np.float64]:
        """Loss in nats that the law predicts at `compute`, any shape."""
        return np.asarray(self.beta * np.asarray(compute, np.float64) ** self.alpha)


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: a run's validation loss (nats) after so much compute (FLOP)."""

    run: str
    compute: float
    loss: float


def fit_power_law(
    compute: ArrayLike,
    losses: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> PowerLaw:
    """Least squares of log L on log C, with a bootstrap interval of the exponent.

    Args:
      compute: `(N,)` positive, FLOP (or any unit: it changes beta only).
      losses: `(N,)` positive, nats.
      clusters: `N` labels; points with equal ones, say of one run, are resampled together. None:
        points are independent.
      seed: of the bootstrap.

    Raises:
      ValueError: a number is not positive and finite, fewer than two different amounts of compute,
        or the lengths differ.
    """
    x_N, y_N = _log(compute, "compute"), _log(losses, "loss")
    if x_N.size != y_N.size:
        raise ValueError(f"{x_N.size} amounts of compute have {y_N.size} losses")
    if np.unique(x_N).size < 2:
        raise ValueError("a power law needs at least two different amounts of compute")
    alpha = _slopes(np.ones((1, x_N.size)), x_N, y_N)[0]
    residual_N = y_N - y_N.mean() - alpha * (x_N - x_N.mean())
    spread = float(((y_N - y_N.mean()) ** 2).sum())
    low, high = _alpha_interval(x_N, y_N, clusters, seed)
    return PowerLaw(
        beta=float(np.exp(y_N.mean() - alpha * x_N.mean())),
        alpha=float(alpha),
        r_squared=1 - float((residual_N**2).sum()) / spread if spread else 1.0,
        alpha_low=low,
        alpha_high=high,
        n=int(x_N.size),
    )


def envelope(runs: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> list[Point]:
    """Measured points at which no run was better for the same or less compute.

    A run's loss between two of its measurements is interpolated in log-log, to compare runs that
    were measured at different moments; after its last one a run keeps its loss. Only measured
    points are returned, so that a fit to them does not count interpolated ones as evidence.

    Args:
      runs: name -> (compute, validation losses), each `(N,)` and positive. A run is one training
        curve, or the finished runs of one model size at several data budgets.

    Returns:
      Points by rising compute and strictly falling loss: the lower envelope.

    Raises:
      ValueError: a number is not positive and finite, or lengths differ.
    """
    curves = {name: _curve(name, *run) for name, run in runs.items()}
    points = [
        Point(name, float(np.exp(x)), float(np.exp(y)))
        for name, (x_N, y_N) in curves.items()
        for x, y in zip(x_N, y_N, strict=True)
        if all(y <= _best_until(curve, x) + 1e-12 for curve in curves.values())
    ]
    points.sort(key=lambda point: (point.compute, point.loss))
    best, kept = np.inf, []
    for point in points:
        if point.loss < best:
            best = point.loss
            kept.append(point)
    return kept


def _log(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_N = np.asarray(values, np.float64)
    if values_N.ndim != 1 or not (np.isfinite(values_N) & (values_N > 0)).all():
        raise ValueError(f"{name}: a power law needs a list of positive, finite numbers")
    return np.asarray(np.log(values_N))


def _curve(name: str, compute: ArrayLike, losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x_N, y_N = _log(compute, f"run {name}, compute"), _log(losses, f"run {name}, loss")
    if x_N.size != y_N.size:
        raise ValueError(f"run {name}: {x_N.size} amounts of compute have {y_N.size} losses")
    order_N = np.argsort(x_N, kind="stable")
    return x_N[order_N], y_N[order_N]


def _best_until(curve: tuple[NDArray[np.float64], NDArray[np.float64]], x: float) -> float:
    """Lowest log loss that a run had reached by log compute `x`; infinite before it began."""
    x_N, y_N = curve
    if not x_N.size or x < x_N[0]:
        return np.inf
    return float(min(y_N[x_N <= x].min(), np.interp(x, x_N, y_N)))


def _slopes(weights_RN: NDArray[np.float64], x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted least-squares slopes; resamples with a single x have none and are left out."""
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    x_RN = x_N - weights_RN @ x_N[:, None] / total_R1
    variance_R = (weights_RN * x_RN**2).sum(axis=1)
    covariance_R = (weights_RN * x_RN * y_N).sum(axis=1)
    fit_R = variance_R > 1e-12 * (1 + float(x_N.var()))
    return np.asarray(covariance_R[fit_R] / variance_R[fit_R])


def _alpha_interval(
    x_N: NDArray[np.float64],
    y_N: NDArray[np.float64],
    clusters: Sequence[Hashable] | None,
    seed: int,
) -> tuple[float | None, float | None]:
    index_N = cluster_index(range(x_N.size) if clusters is None else clusters)
    if index_N.size != x_N.size:
        raise ValueError(f"{x_N.size} points have {index_N.size} cluster labels")
    count = int(index_N.max()) + 1
    rng = np.random.default_rng(seed)
    draws_RC = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    slopes_R = _slopes(draws_RC[:, index_N].astype(np.float64), x_N, y_N)
    if not slopes_R.size or count < 3:
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(slopes_R, (tail, 100 - tail))
    return float(low), float(high)
