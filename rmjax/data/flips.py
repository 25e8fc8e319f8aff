"""Labels flipped on purpose: what learning from noisy preferences is tested with.

Source: Collaborative Reward Modeling (arXiv 2505.10597) adds symmetric noise by hand; the choice of records is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import SupportsIndex, cast

import numpy as np

from rmjax.data.again import Found
from rmjax.data.record import Comparison

_PAIRS = ("pair_target", "pair_margin")
"""Fields of a record that say its order of (i, j), and say it of (j, i) once that is turned round. What models found (strengths)
stays."""
FLIPPED = "flipped"


@dataclasses.dataclass(frozen=True)
class Flips:
    """Records of which some are flipped, as they are read; a grain data source.

    Attributes:
      records: as they were.
      chosen: indices of those that are flipped.
    """

    records: Found
    chosen: frozenset[int]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Comparison:
        at = index.__index__()
        return marked(self.records[at], at in self.chosen)

    def __iter__(self) -> Iterator[Comparison]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:  # grain stores it in its checkpoints, so it must not vary
        return f"Flips({len(self.chosen)} of {len(self)})"


def flips(records: Found, fraction: float, seed: int) -> Found:
    """The records with ⌊fraction · N⌋ of them flipped, drawn without replacement; all are marked in the field `flipped`."""
    if not fraction:
        return records
    count = int(np.floor(fraction * len(records) + 1e-9))
    found = Flips(records, frozenset(np.random.default_rng(seed).permutation(len(records))[:count].tolist()))
    return list(found) if isinstance(records, list) else cast(Found, found)


def marked(c: Comparison, is_flipped: bool) -> Comparison:
    """The record, or its reverse, with the field `flipped`; one that was flipped before is as it was then."""
    was = c.columns.get(FLIPPED) == 1.0
    found = reverse(c) if is_flipped else c
    return dataclasses.replace(found, columns={**found.columns, FLIPPED: float(was != is_flipped)})


def reverse(c: Comparison) -> Comparison:
    """The record with its order turned round: best becomes worst. Of two outputs, ranks, scores and votes change places."""
    pairs = {name: tuple(zip(*c.columns[name], strict=True)) for name in _PAIRS if name in c.columns}
    return dataclasses.replace(
        c, ranks=c.ranks and _mirrored(c.ranks), scores=c.scores and _mirrored(c.scores),
        votes=c.votes and tuple(map(_mirrored, c.votes)), columns={**c.columns, **pairs},
    )  # fmt: skip


def _mirrored(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(max(values) + min(values) - value for value in values)
