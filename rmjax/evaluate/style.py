r"""Style control: how much of a preference is length and Markdown, and what the reward knows beyond it.

Features of an answer are its number of words, list items, headers and bold spans outside code blocks. A pair has the
differences (z₀ − z₁) / (z₀ + z₁), 0 where both are 0, each scaled to a mean square of 1 over the pairs, as are the margins of
the reward. Three logistic regressions without an intercept say which answer is better: by the reward alone, by style alone,
by both (WorldPM, arXiv 2505.10527, equations 4 and 5; LMArena's style control is the same with models in the place of the
reward). They are fitted on the pairs that they describe, as there: read coefficients, not losses, as what would hold for
other pairs.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmjax.data.record import Comparison
from rmjax.evaluate.margins import Margins, margins
from rmjax.evaluate.statistics import Interval, cluster_index, interval

FEATURES = ("words", "list items", "headers", "bold")
RESAMPLES = 200
RIDGE = 1e-3
"""Penalty on squared coefficients, per pair: keeps them finite where style or reward tells all pairs apart."""
_CODE = re.compile(r"```.*?(```|\Z)", re.DOTALL)
_PATTERNS = (
    re.compile(r"\S+"),
    re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+", re.MULTILINE),
    re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)


def features(answer: str) -> list[int]:
    """Words, list items, headers and bold spans of an answer; words of code blocks count, their marks do not."""
    outside = _CODE.sub("", answer)
    texts = (answer, outside, outside, outside)
    return [len(pattern.findall(text)) for pattern, text in zip(_PATTERNS, texts, strict=True)]


def style_differences(found: Margins) -> NDArray[np.float64]:
    """`(P, 4)` differences of the better to the worse answer, in [−1, 1]."""
    ours, theirs = (
        np.asarray([features(answer) for answer in side], np.float64) for side in (found.better, found.worse)
    )
    return (ours - theirs) / np.maximum(ours + theirs, 1.0)


def control(records: Sequence[Comparison], scores: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """What style explains of the labels, and of the reward.

    Returns:
      `pairs`; `loss`, the mean of −log σ in nats by `reward`, `style` and `both`; `reward`, its coefficient `alone` and
      `controlled`; `style`, feature → its coefficient beside the reward, all with intervals over prompts; `accuracy` of the
      reward where the better answer is `longer` and where it is `shorter`.

    Raises:
      ScoreError: scores do not fit the records.
      ValueError: no record has an order.
    """
    found = margins(records, scores)
    if not found.values_P.size:
        raise ValueError("no record has an order, so there is no preference to explain")
    style_PF, reward_P1 = _scaled(style_differences(found)), _scaled(found.values_P[:, None])
    both_PF = np.concatenate([reward_P1, style_PF], axis=1)
    designs = {"reward": reward_P1, "style": style_PF, "both": both_PF}
    fitted = {name: fit(design) for name, design in designs.items()}
    alone, controlled = (_intervals(design, found.prompts, seed) for design in (reward_P1, both_PF))
    return {
        "pairs": int(found.values_P.size),
        "loss": {name: float(np.logaddexp(0, -designs[name] @ weights).mean()) for name, weights in fitted.items()},
        "reward": {"alone": alone[0], "controlled": controlled[0]},
        "style": dict(zip(FEATURES, controlled[1:], strict=True)),
        "accuracy": _by_length(found, seed),
    }


def _scaled(values_PF: NDArray[np.float64]) -> NDArray[np.float64]:
    size_F = np.sqrt((values_PF**2).mean(0))
    return values_PF / np.where(size_F > 0, size_F, 1.0)


def fit(design_PF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients that make Σ −log σ(x · w) + RIDGE · P · |w|² / 2 least, by Newton's method: each row is better minus worse."""
    pairs, size = design_PF.shape
    weights_F = np.zeros(size)
    for _ in range(50):
        missing_P = 1 / (1 + np.exp(np.clip(design_PF @ weights_F, -500, 500)))  # 1 − σ
        slope_F = design_PF.T @ missing_P - RIDGE * pairs * weights_F
        bend_FF = (design_PF * (missing_P * (1 - missing_P))[:, None]).T @ design_PF + RIDGE * pairs * np.eye(size)
        step_F = np.linalg.solve(bend_FF, slope_F)
        weights_F = weights_F + step_F * min(1.0, 2.0 / max(float(np.abs(step_F).max()), 1e-12))
        if np.abs(step_F).max() < 1e-9:
            break
    return weights_F


def _intervals(design_PF: NDArray[np.float64], prompts: Sequence[str], seed: int) -> list[Interval]:
    rng, cluster_P = np.random.default_rng(seed), cluster_index(prompts)
    members = np.split(np.argsort(cluster_P, kind="stable"), np.cumsum(np.bincount(cluster_P))[:-1])
    drawn_RF = np.stack([
        fit(design_PF[np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])])
        for _ in range(RESAMPLES)
    ])  # fmt: skip
    bounds = np.percentile(drawn_RF, (2.5, 97.5), axis=0).T
    return [
        Interval(value=float(value), low=float(low), high=float(high), n=len(design_PF))
        for value, (low, high) in zip(fit(design_PF), bounds, strict=True)
    ]


def _by_length(found: Margins, seed: int) -> dict[str, Interval]:
    """Accuracy, ties one half, where the better answer has more words and where it has fewer."""
    longer_P = np.sign(style_differences(found)[:, 0])
    credit_P = (np.sign(found.values_P) + 1) / 2
    parts = {"longer": np.flatnonzero(longer_P > 0), "shorter": np.flatnonzero(longer_P < 0)}
    return {name: interval(credit_P[part], [found.prompts[i] for i in part], seed) for name, part in parts.items()}
