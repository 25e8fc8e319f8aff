"""How far apart a reward model puts samples of one policy: the distribution of |Δr|, as in MetaRM's figure."""

import itertools
from collections.abc import Sequence

import numpy as np

QUANTILES = (0.1, 0.5, 0.9)


def reward_gaps(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """|r_i − r_j| of every pair of answers to the same prompt, from one list of rewards per prompt."""
    pairs = itertools.chain.from_iterable(itertools.combinations(group, 2) for group in scores)
    return np.abs([a - b for a, b in pairs])


def describe_gaps(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean and quantiles of |Δr|, in units of reward; `gap_share` is the mean over the standard deviation of all rewards,
    which a mere change of scale leaves as it is; and J between its bounds (`losses.difference`), averaged over prompts."""
    gaps = reward_gaps(scores)
    spread = float(np.std(np.concatenate([np.asarray(group) for group in scores])))
    found = {f"gap_{round(100 * q)}": float(np.quantile(gaps, q)) for q in QUANTILES}
    found |= {"gap_mean": float(gaps.mean()), "gap_share": float(gaps.mean()) / spread if spread else 0.0}
    # Between the bounds, J of a group is the mean of 2 σ(|Δr|) − 1 = tanh(|Δr| / 2) over its pairs.
    rescaled = [float(np.mean(np.tanh(reward_gaps([group]) / 2))) for group in scores if len(group) > 1]
    return found | {"difference_rescaled": float(np.mean(rescaled))}
