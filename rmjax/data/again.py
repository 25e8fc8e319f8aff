"""Records of a file: kept where they are few, made anew at each access where together they would take much memory."""

from __future__ import annotations

import array
import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import SupportsIndex

import numpy as np

from rmjax.data.errors import RecordError
from rmjax.data.readers import RandomAccessSource
from rmjax.data.record import Comparison

KEPT_CHARACTERS = 2**27
"""Of a set's records at most, for them to be kept; with more, every access reads and parses its record."""


@dataclasses.dataclass(frozen=True)
class Again:
    """Records that are made anew at each access; a grain data source.

    Attributes:
      source: what they are made of.
      usable: [N] indices in it.
      prepare: what is done to each of them.
    """

    source: RandomAccessSource
    usable: np.ndarray
    prepare: Callable[[Comparison], Comparison]

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: SupportsIndex) -> Comparison:
        return self.prepare(self.source[int(self.usable[operator.index(index)])])

    def __iter__(self) -> Iterator[Comparison]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:  # grain stores it in its checkpoints, so it must not vary
        return f"Again({self.source!r}, length={len(self)})"


Found = Sequence[Comparison] | Again


def prepared(
    read: Sequence[Comparison] | RandomAccessSource, prepare: Callable[[Comparison], Comparison]
) -> tuple[Found, list[RecordError]]:
    """Records after `prepare`, and the errors of those that it refuses; of a file, kept up to `KEPT_CHARACTERS`."""
    kept: list[Comparison] | None = []
    usable, errors, size = array.array("q"), [], 0
    for i, c in enumerate(read):
        try:
            made = prepare(c)
        except RecordError as error:
            errors.append(error)
            continue
        usable.append(i)
        if kept is None:
            continue
        kept.append(made)
        size += sum(map(len, (made.prompt, *made.outputs, *made.references)))
        if size > KEPT_CHARACTERS and isinstance(read, RandomAccessSource):
            kept = None
    if kept is not None:
        return kept, errors
    assert isinstance(read, RandomAccessSource)
    return Again(read, np.asarray(usable, np.int64), prepare), errors
