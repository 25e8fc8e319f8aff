"""A source that looks at the model: of several batches, the groups that are worth most to it now."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmjax.data.packing import ForestShape, Packer, Tree, unpack
from rmjax.data.pipeline import Source
from rmjax.models.forest import Forest


class Selecting:
    """Draws several batches of another source for each one that it gives: the groups of the largest value, packed again.

    Which they are depends on the state, so a step waits for the one before. The state of the source is that of the other one:
    a run that goes on from a checkpoint has the same parameters there, and draws the same groups.

    Args:
      source: gives forests on the host.
      value: (training state, forest) → a number for each of its groups, [R, G].
      batches: how many are drawn for one.
    """

    def __init__(self, source: Source, shape: ForestShape, value: Callable[[Any, Forest], np.ndarray], batches: int):
        self._source, self._shape, self._value, self._batches = source, shape, value, batches

    def next(self, state: Any, step: int) -> Any:
        """See `Source`."""
        found: list[tuple[float, Tree]] = []
        for _ in range(self._batches):
            forest = self._source.next(state, step)
            if forest is not None:
                values_RG = self._value(state, forest)
                found += [(float(values_RG[r, g]), tree) for r, g, tree in unpack(forest)]
        if not found:
            return None
        packer = Packer(self._shape)
        for _, tree in sorted(found, key=lambda entry: -entry[0]):  # stable: of equal values the one drawn first
            packer.offer(tree)
        return packer.forest()

    def get_state(self) -> Any:
        """See `Source`."""
        return self._source.get_state()

    def set_state(self, state: Any) -> None:
        """See `Source`."""
        self._source.set_state(state)

    def metrics(self, step: int) -> Mapping[str, float]:
        """See `Source`."""
        return self._source.metrics(step)
