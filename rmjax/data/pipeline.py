"""The input pipeline: a grain dataset of trees, packed into forests, with an iterator state of a few integers.

The order is shuffled by group before packing. A batch is a function of the stream position and the short list of trees
that did not fit the batches before, so the state is exact and small however the trees were made.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import grain

from rmjax.data.forest import Forest, ForestShape, Packer, Tree
from rmjax.data.record import Comparison

_log = logging.getLogger(__name__)
LOOKAHEAD = 16
"""Trees that may wait for a later batch; more fill rows better and reorder the stream more."""
HOPELESS = 1000
"""Groups refused while a batch is still empty that are an error: an endless stream would go on refusing."""


class PackForests(grain.IterDataset):
    """Packs the trees of a finite or endless `MapDataset` of lists of trees into forests."""

    def __init__(self, parent: grain.MapDataset, shape: ForestShape, lookahead: int = LOOKAHEAD):
        super().__init__()
        self._source, self._shape, self._lookahead = parent, shape, lookahead

    def __iter__(self) -> "ForestIterator":
        return ForestIterator(self._source, self._shape, self._lookahead)


class ForestIterator(grain.DatasetIterator):
    """Its state is {"next": index, "waiting": [[index, tree number], …], "skipped": count}."""

    def __init__(self, source: grain.MapDataset, shape: ForestShape, lookahead: int):
        super().__init__()
        self._source, self._shape, self._lookahead = source, shape, lookahead
        self._next, self._skipped = 0, 0
        self._waiting: list[tuple[int, int, Tree]] = []

    def __next__(self) -> Forest:
        packer, refused_before = Packer(self._shape), self._skipped
        self._waiting = [entry for entry in self._waiting if not packer.offer(entry[2])]
        while len(self._waiting) <= self._lookahead and self._next < len(self._source):
            index = self._next
            self._next += 1
            for number, tree in enumerate(self._source[index] or ()):
                reason = self._shape.refuse(tree)
                if reason is not None:
                    self._skip(index, reason)
                    if self._skipped - refused_before >= HOPELESS and not any(packer.rows):
                        raise ValueError(f"none of {HOPELESS} groups fits a row, the last because {reason}")
                elif not packer.offer(tree):
                    self._waiting.append((index, number, tree))
        if not any(packer.rows):
            raise StopIteration
        return packer.forest()

    def _skip(self, index: int, reason: str) -> None:
        self._skipped += 1
        if self._skipped & (self._skipped - 1) == 0:  # powers of two: seen at once, never a flood
            _log.warning("skipped %d groups so far, the last at stream index %d: %s", self._skipped, index, reason)

    def get_state(self) -> dict[str, Any]:
        waiting = [[index, number] for index, number, _ in self._waiting]
        return {"next": self._next, "waiting": waiting, "skipped": self._skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next, self._skipped = state["next"], state["skipped"]
        self._waiting = [(index, number, self._source[index][number]) for index, number in state["waiting"]]


def tree_dataset(
    source: Any,
    encode: Callable[[Any, int], list[Tree]],
    *,
    seed: int,
    epochs: int | None = None,
    draw: Callable[..., Comparison] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.MapDataset:
    """Shuffled lists of trees from a random-access source of records.

    Args:
      source: `__len__` and `__getitem__`, giving records (or what `draw` takes).
      encode: (record, index in the source) → trees, such as `Encoder.trees`.
      epochs: passes over the source, each in an order of its own; None = endless.
      draw: (element, rng) -> Comparison, for sources that are sampled from (policy pools); rng is a function of seed
        and stream position.
      shard: (index, count) of this process; process i takes elements i, i + count, …
    """
    if len(source) == 0:
        raise ValueError("the data set is empty: nothing to train on")
    indexed = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)

    def read(index: int, rng=None) -> list[Tree]:
        record = source[index]
        if draw is not None:
            record = draw(record, rng)
        return encode(record, index)

    trees = indexed.random_map(read) if draw is not None else indexed.map(read)
    return trees[shard[0] :: shard[1]]  # last, so that no two processes draw with the same rng


def batches(trees: grain.MapDataset, shape: ForestShape, prefetch: int = 2) -> grain.IterDataset:
    """Forests, made `prefetch` batches ahead in a thread so that the step does not wait."""
    return _ahead(PackForests(trees, shape), prefetch)


def batches_together(
    streams: Mapping[str, tuple[grain.MapDataset, ForestShape]], prefetch: int = 2
) -> grain.IterDataset:
    """A forest of each stream by its name, side by side; ends with the first stream that does. The state holds the position
    of every stream."""
    packed = [PackForests(*stream) for stream in streams.values()]
    together = grain.experimental.ZipIterDataset(packed, strict=False)
    return _ahead(together.map(lambda forests: dict(zip(streams, forests, strict=True))), prefetch)


def _ahead(dataset: grain.IterDataset, prefetch: int) -> grain.IterDataset:
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch) if prefetch else dataset
