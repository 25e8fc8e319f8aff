"""The input pipeline: a grain dataset of trees, packed into forests, with an iterator state of a few integers.

The order is shuffled by group before packing. A batch is a function of the stream position and the short list of trees
that did not fit the batches before, so the state is exact and small however the trees were made.

Several processes share one batch: its rows are packed from so many independent streams, and a process packs those whose
rows it holds. Batches depend on the number of streams, not on who packs them.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np

from rmjax.data.packing import ForestShape, Packer, Tree
from rmjax.data.record import Comparison
from rmjax.models.forest import Forest

_log = logging.getLogger(__name__)
LOOKAHEAD = 16
"""Trees that may wait for a later batch; more fill rows better and reorder the stream more."""
HOPELESS = 1000
"""Groups refused while a batch is still empty that are an error: an endless stream would go on refusing."""


_NO_PAIR = "its candidates have the same tokens, so that no pair tells them apart"


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
            trees = self._source[index]
            refused = [_NO_PAIR] if trees is not None and not trees else []
            for number, tree in enumerate(trees or ()):
                reason = self._shape.refuse(tree)
                if reason is not None:
                    refused.append(reason)
                elif not packer.offer(tree):
                    self._waiting.append((index, number, tree))
            for reason in refused:
                self._skip(index, reason)
                if self._skipped - refused_before >= HOPELESS and not any(packer.rows):
                    raise ValueError(f"none of {HOPELESS} groups fits a row, the last because {reason}")
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


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of a batch a process makes: of `streams` equal parts of its rows, those numbered `mine`."""

    streams: int = 1
    mine: tuple[int, ...] = (0,)


class PackStreams(grain.IterDataset):
    """Packs stream i of n, elements i, i + n, … of the parent, into the i-th n-th of a batch's rows; gives the rows of
    `share`. Never ends: rows of a stream that is exhausted are empty, since no process knows of the others' streams.

    Raises ValueError when the rows do not divide into the streams.
    """

    def __init__(self, parent: grain.MapDataset, shape: ForestShape, share: Shard, lookahead: int = LOOKAHEAD):
        super().__init__()
        if shape.rows % share.streams:
            raise ValueError(f"{shape.rows} rows do not divide into {share.streams} streams; change rows or the other")
        part = dataclasses.replace(shape, rows=shape.rows // share.streams)
        self._streams = {i: PackForests(parent[i :: share.streams], part, lookahead) for i in share.mine}
        self._empty = part.empty()

    def __iter__(self) -> "StreamsIterator":
        return StreamsIterator({i: iter(stream) for i, stream in self._streams.items()}, self._empty)


class StreamsIterator(grain.DatasetIterator):
    """Its state is {"streams": {number: that of a `ForestIterator`}}: the states of all processes together are that of the
    batch."""

    def __init__(self, streams: dict[int, ForestIterator], empty: Forest):
        super().__init__()
        self._streams, self._empty = streams, empty

    def __next__(self) -> Forest:
        forests = [next(stream, self._empty) for stream in self._streams.values()]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *forests)

    def get_state(self) -> dict[str, Any]:
        return {"streams": {str(i): stream.get_state() for i, stream in self._streams.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        for i, stream in self._streams.items():
            stream.set_state(state["streams"][str(i)])


def tree_dataset(
    source: Any,
    encode: Callable[[Any, int], list[Tree]],
    *,
    seed: int,
    epochs: int | None = None,
    draw: Callable[..., Comparison] | None = None,
) -> grain.MapDataset:
    """Shuffled lists of trees from a random-access source of records.

    Args:
      source: `__len__` and `__getitem__`, giving records (or what `draw` takes).
      encode: (record, index in the source) → trees, such as `Encoder.trees`.
      epochs: passes over the source, each in an order of its own; None = endless.
      draw: (element, rng) -> Comparison, for sources that are sampled from (policy pools); rng is a function of seed
        and stream position.
    """
    if len(source) == 0:
        raise ValueError("the data set is empty: nothing to train on")
    indexed = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)

    def read(index: int, rng=None) -> list[Tree]:
        record = source[index]
        if draw is not None:
            record = draw(record, rng)
        return encode(record, index)

    return indexed.random_map(read) if draw is not None else indexed.map(read)


WHOLE = Shard()


def batches(trees: grain.MapDataset, shape: ForestShape, prefetch: int = 2, share: Shard = WHOLE) -> grain.IterDataset:
    """Forests, made `prefetch` batches ahead in a thread so that the step does not wait. From several streams they do not
    end, and are empty after the last tree."""
    return _ahead(_packed(trees, shape, share), prefetch)


def batches_together(
    streams: Mapping[str, tuple[grain.MapDataset, ForestShape]], prefetch: int = 2, share: Shard = WHOLE
) -> grain.IterDataset:
    """A forest of each data set by its name, side by side; ends with the first that does. The state holds the position of
    every one."""
    packed = [_packed(*stream, share) for stream in streams.values()]
    together = grain.experimental.ZipIterDataset(packed, strict=False)
    return _ahead(together.map(lambda forests: dict(zip(streams, forests, strict=True))), prefetch)


def _packed(trees: grain.MapDataset, shape: ForestShape, share: Shard) -> grain.IterDataset:
    return PackForests(trees, shape) if share.streams == 1 else PackStreams(trees, shape, share)


def _ahead(dataset: grain.IterDataset, prefetch: int) -> grain.IterDataset:
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch) if prefetch else dataset


class Source(Protocol):
    """Where the loop's batches come from."""

    def next(self, state: Any, step: int) -> Any:
        """The batch of step `step` (from 1) on the host, a forest or several by name; None where the data has ended.

        Args:
          state: the training state that the step starts from. Who reads its values waits for the step before.
        """
        ...

    def get_state(self) -> Any:
        """What a checkpoint keeps (JSON), so that `set_state` goes on behind the last batch."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes to where `get_state` was called."""
        ...

    def metrics(self, step: int) -> Mapping[str, float]:
        """What there is to log of the batch of a step that was drawn, beside what the step says of it; mostly nothing."""
        ...


class FileSource:
    """Batches of files, whatever the state and the step are."""

    def __init__(self, batches: Any):
        self._batches = batches  # an iterator with `get_state` and `set_state`

    def next(self, state: Any, step: int) -> Any:
        """See `Source`."""
        del state, step
        return next(self._batches, None)

    def get_state(self) -> Any:
        """See `Source`."""
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        """See `Source`."""
        self._batches.set_state(state)

    def metrics(self, step: int) -> Mapping[str, float]:
        """See `Source`."""
        del step
        return {}
