"""Calibration: is the better answer better as often as σ(margin) says?

A margin d claims the probability σ(d / T), with T = 1 as the reward is. The curve puts pairs with about equally sure claims
into one bin, whatever side they are on: confidence σ(|d|), right if d > 0, one half for a tie. ECE is the mean distance of
the two over pairs. T is fitted on one half of the prompts and judged on the other, both ways, so that it is not praised for
what it was fitted on.
"""

import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmjax.data.record import Comparison
from rmjax.evaluate.margins import Margins, margins
from rmjax.evaluate.statistics import cluster_index, interval

_log = logging.getLogger(__name__)
BINS = 10
"""Of about equally many pairs."""
RESAMPLES = 500
_LOW, _HIGH = 1e-3, 1e3
"""Between these a temperature is looked for, in units of reward."""


def calibrate(records: Sequence[Comparison], scores: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """How far σ(margin) is from the fraction of pairs that are right.

    Returns:
      `pairs`, their number; `loss`, the mean of −log σ(d) in nats with its interval; `ece`, with its interval over prompts;
      `temperature`, fitted on all pairs (in units of reward; None where the pairs do not bound it); `held_out`, loss and ECE
      with the temperature of the other half of the prompts; `curve`, per bin {confidence, accuracy, low, high, n}.

    Raises:
      ScoreError: scores do not fit the records.
      ValueError: no record has an order.
    """
    found = margins(records, scores)
    if not found.values_P.size:
        raise ValueError("no record has an order, so there is nothing to calibrate against")
    halves = np.asarray([zlib.crc32(prompt.encode()) % 2 for prompt in found.prompts], bool)
    return {
        "pairs": int(found.values_P.size),
        "loss": interval(_losses(found.values_P), found.prompts, seed),
        "ece": _ece_interval(found, seed),
        "temperature": temperature(found.values_P),
        "held_out": _held_out(found.values_P, halves),
        "curve": _curve(found, seed),
    }


def temperature(margins_P: NDArray[np.float64]) -> float | None:
    """The T that makes the mean of −log σ(d / T) least; None where none from 0.001 to 1000 does, say if every pair is right."""
    low, high = np.log(_LOW), np.log(_HIGH)
    ends = low, high
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # unimodal in log T
        a, b = high - golden * (high - low), low + golden * (high - low)
        if _losses(margins_P / np.exp(a)).mean() <= _losses(margins_P / np.exp(b)).mean():
            high = b
        else:
            low = a
    at_border = min(abs((low + high) / 2 - end) for end in ends) < 1e-3
    return None if at_border else float(np.exp((low + high) / 2))


def _losses(margins_P: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(0.0, -margins_P)


def _claims(margins_P: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidence in [0.5, 1] and credit 0, 1/2 or 1 of each pair."""
    return 1 / (1 + np.exp(-np.abs(margins_P))), (np.sign(margins_P) + 1) / 2


def _bins(confidence_P: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Indices of the pairs of each bin, the least sure first; equal confidences share one, so no bin depends on their order."""
    order_P = np.argsort(confidence_P, kind="stable")
    sorted_P = confidence_P[order_P]
    ends = np.cumsum([part.size for part in np.array_split(order_P, BINS) if part.size])
    ends = np.unique(np.searchsorted(sorted_P, sorted_P[ends - 1], side="right"))
    return np.split(order_P, ends[:-1])


def expected_error(margins_P: NDArray[np.float64]) -> float:
    """ECE of these margins."""
    confidence_P, credit_P = _claims(margins_P)
    gaps = [abs(confidence_P[part].mean() - credit_P[part].mean()) * part.size for part in _bins(confidence_P)]
    return float(sum(gaps) / margins_P.size)


def _ece_interval(found: Margins, seed: int) -> dict[str, Any]:
    rng, cluster_P = np.random.default_rng(seed), cluster_index(found.prompts)
    members = np.split(np.argsort(cluster_P, kind="stable"), np.cumsum(np.bincount(cluster_P))[:-1])
    drawn = [
        expected_error(
            found.values_P[np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])]
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    value = expected_error(found.values_P)
    return {
        "value": value,
        "low": float(min(low, value)),
        "high": float(max(high, value)),
        "n": int(found.values_P.size),
    }


def _held_out(margins_P: NDArray[np.float64], first_P: NDArray[np.bool_]) -> dict[str, float] | None:
    if not first_P.any() or first_P.all():
        _log.warning("calibration: all prompts are in one half, so there is no held-out temperature")
        return None
    scaled_P = np.empty_like(margins_P)
    for half_P in (first_P, ~first_P):
        fitted = temperature(margins_P[~half_P])
        if fitted is None:
            _log.warning("calibration: half of the pairs do not bound a temperature, so there is no held-out one")
            return None
        scaled_P[half_P] = margins_P[half_P] / fitted
    return {"loss": float(_losses(scaled_P).mean()), "ece": expected_error(scaled_P)}


def _curve(found: Margins, seed: int) -> list[dict[str, Any]]:
    confidence_P, credit_P = _claims(found.values_P)
    rows = []
    for part in _bins(confidence_P):
        right = interval(credit_P[part], [found.prompts[i] for i in part], seed)
        bounds = {"accuracy": right["value"], "low": right["low"], "high": right["high"], "n": right["n"]}
        rows.append({"confidence": float(confidence_P[part].mean()), **bounds})
    return rows
