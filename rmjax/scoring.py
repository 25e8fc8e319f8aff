"""Rewards of records: encode, pack into forests, one compiled call, unpack.

Training evaluations and `RewardModel` share it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rmjax.data.formats import Encoder
from rmjax.data.packing import ForestShape, Tree, arrange, pack
from rmjax.data.record import Comparison
from rmjax.models.forest import Forest

Rewards = Callable[[Any, Forest], jax.Array]


def score(
    rewards: Rewards,
    params: Any,
    encoder: Encoder,
    comparisons: Sequence[Comparison],
    batch_tokens: int,
    progress=False,
) -> list[list[float]]:
    """One list of rewards per record, in the order of its outputs; with several references their mean.

    Args:
      rewards: (params, forest) → rewards_RGN, jitted.
      batch_tokens: tokens a batch at most (one row at least).
    """
    trees = [(i, *part) for i, c in enumerate(comparisons) for part in encoder.scoring_trees(c, i)]
    sums = [np.zeros(len(c.outputs)) for c in comparisons]
    if not trees:
        return []
    shape = fitting_shape([tree for *_, tree in trees], batch_tokens)
    with tqdm(total=len(trees), desc="scoring", unit="group", disable=not progress) as bar:
        for forest, places in pack([tree for *_, tree in trees], shape):
            values_RGN = np.asarray(rewards(params, forest), np.float64)
            for r, row in enumerate(places):
                for g, t in enumerate(row):
                    i, outputs, _ = trees[t]
                    sums[i][outputs] += values_RGN[r, g, : len(outputs)]
            bar.update(sum(map(len, places)))
    return [(s / max(1, len(c.references))).tolist() for s, c in zip(sums, comparisons, strict=True)]


def fitting_shape(trees: Sequence[Tree], batch_tokens: int) -> ForestShape:
    """Sizes of batches for these trees: as few batches as `batch_tokens` tokens (or one row) allow, about equally full. Rows are
    one of 1, 2, 3, 4, 6, 8, 12, … or as many as are allowed, the other sizes powers of two, so that few are ever compiled."""
    # Long rows leave less of themselves empty; beyond 512 a dense mask costs more than that saves.
    usual = min(512, _power_of_two(sum(tree.size for tree in trees)))
    row_tokens = max(128, usual, _power_of_two(max(tree.size for tree in trees)))
    groups = _power_of_two(min(row_tokens // min(tree.size for tree in trees), 32))
    needed, most = len(arrange(trees, row_tokens, groups)), max(1, batch_tokens // row_tokens)
    even = -(-needed // -(-needed // most))
    return ForestShape(
        rows=min(_two_digits(even), most),
        row_tokens=row_tokens,
        groups=groups,
        branches=_power_of_two(max(len(tree.branches) for tree in trees)),
    )


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _two_digits(n: int) -> int:
    """The next number with at most two binary digits that count, less than half more than n."""
    step = 1 << max(0, n.bit_length() - 2)
    return -(-n // step) * step
