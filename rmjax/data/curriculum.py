"""A source that gives a window of batches in order, easy pairs first, and says with each how much of it is to be left out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmjax.data.packing import ForestShape, Packer, Tree, unpack
from rmjax.data.pipeline import Source
from rmjax.models.forest import Forest


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How much is left out, and when batches are sorted.

    Attributes:
      noise: fraction of flipped labels assumed.
      ramp: steps in which the fraction left out grows from 0 to this.
      window: batches that are drawn and sorted together; 1 = as they come.
      start: steps before which nothing is sorted.
    """

    noise: float
    ramp: int = 0
    window: int = 1
    start: int = 0

    def discard(self, noise: float, step: int) -> float:
        """The fraction that is left out at a step, from 1."""
        return noise * min(1.0, step / self.ramp) if self.ramp else noise


class Curriculum:
    """Gives another source's batches with the column discard_RG filled; windows of them sorted by the model's margins.

    In sorted batches errors are not evenly spread: what is left out is a fraction of the window, so nothing of its first batches
    and most of its last ones.

    Which order that is depends on the state, so the first step of a window waits for the one before, and the order is a part of
    this source's state: a run that goes on from a checkpoint within a window gives the same batches.

    Args:
      source: gives forests on the host.
      shape: of them.
      margins: (training state, forest) → reward of the better answer less that of the worse, a number for each group, [R, G].
      schedule: see there.
      estimate: margins of a window's groups → fraction of flipped labels; None = as `schedule` says.
    """

    def __init__(
        self, source: Source, shape: ForestShape, margins: Callable[[Any, Forest], np.ndarray], schedule: Schedule,
        estimate: Callable[[np.ndarray], float] | None = None,
    ):  # fmt: skip
        self._source, self._shape, self._margins = source, shape, margins
        self._schedule, self._estimate, self._noise = schedule, estimate, schedule.noise
        self._begin: Any = None  # where the source stood before the window
        self._drawn, self._order, self._given = 0, list[int](), 0
        self._batches: list[Forest] = []

    def next(self, state: Any, step: int) -> Any:
        """See `Source`."""
        is_sorted = self._schedule.window > 1 and step > self._schedule.start
        forest = self._of_window(state, step) if is_sorted else self._source.next(state, step)
        if forest is None:
            return None
        discard = self._schedule.discard(self._noise, step)
        discard = self._of_hardest(discard) if is_sorted else discard
        return forest.replace(discard_RG=np.full(forest.record_RG.shape, discard, np.float32))

    def _of_window(self, state: Any, step: int) -> Forest | None:
        if self._given == len(self._batches):
            self._begin, trees, margins = self._source.get_state(), [], []
            for forest in self._draw(state, step, self._schedule.window):
                margins_RG = self._margins(state, forest)
                for r, g, tree in unpack(forest):
                    trees.append(tree)
                    margins.append(float(margins_RG[r, g]))
            self._order = sorted(range(len(trees)), key=lambda i: -margins[i])  # stable: of equal ones the first drawn
            self._batches, self._given = in_order([trees[i] for i in self._order], self._shape), 0
            if self._estimate and margins:
                self._noise = self._estimate(np.asarray(margins))
        if not self._batches:
            return None
        self._given += 1
        return self._batches[self._given - 1]

    def _of_hardest(self, discard: float) -> float:
        """The fraction of the given batch that is among the hardest `discard` of its window."""
        counts = np.asarray([np.sum(forest.record_RG >= 0) for forest in self._batches])
        end, count = int(np.sum(counts[: self._given])), int(counts[self._given - 1])
        first = round((1 - discard) * int(np.sum(counts)))  # position of the first that is left out
        return min(1.0, max(0, end - first) / max(count, 1))

    def _draw(self, state: Any, step: int, count: int) -> list[Forest]:
        drawn: list[Forest] = []
        while len(drawn) < count and (forest := self._source.next(state, step)) is not None:
            drawn.append(forest)
        self._drawn = len(drawn)
        return drawn

    def get_state(self) -> Any:
        """See `Source`."""
        if self._given == len(self._batches):
            return {"source": self._source.get_state(), "noise": self._noise}
        window = {"drawn": self._drawn, "order": self._order, "given": self._given}
        return {"source": self._begin, "noise": self._noise, "window": window}

    def metrics(self, step: int) -> Mapping[str, float]:
        """See `Source`."""
        return self._source.metrics(step)

    def set_state(self, state: Any) -> None:
        """See `Source`."""
        self._source.set_state(state["source"])
        self._noise, self._batches, self._given = state["noise"], [], 0
        if window := state.get("window"):
            self._begin, self._order = state["source"], list(window["order"])
            trees = [tree for forest in self._draw(None, 0, window["drawn"]) for _, _, tree in unpack(forest)]
            self._batches = in_order([trees[i] for i in self._order], self._shape)
            self._given = window["given"]


def in_order(trees: list[Tree], shape: ForestShape) -> list[Forest]:
    """Batches of trees in their order: a new one begins with the first that the last has no room for."""
    packers: list[Packer] = []
    for tree in trees:
        if not packers or not packers[-1].offer(tree):
            packers.append(Packer(shape))
            packers[-1].offer(tree)
    return [packer.forest() for packer in packers]
