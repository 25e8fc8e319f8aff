"""Batches on a mesh: which rows a process makes, and how they become part of one global batch."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rmjax.data.pipeline import Shard
from rmjax.models.columns import declared
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import RULES, Rules

_log = logging.getLogger(__name__)
_LOGICAL = {"R": "rows", "T": "tokens"}
"""The logical axes that the letters in the names of a forest's arrays stand for; the others are not cut."""


def forest_shardings(mesh: Mesh, rules: Rules = RULES) -> Forest:
    """The sharding of every array of a forest, by the letters of its name: rows over the data axes, tokens over `context`.

    All declared columns are in it, on-demand ones too; `matching` gives those of a batch.
    """

    def sharding(name: str) -> NamedSharding:
        letters = name.rpartition("_")[2]
        spec: Any = nn.logical_to_mesh_axes([_LOGICAL.get(letter) for letter in letters], rules)
        return NamedSharding(mesh, spec)

    names = [field.name for field in dataclasses.fields(Forest) if field.name != "columns"]
    found: dict[str, Any] = {name: sharding(name) for name in names}
    columns: dict[str, Any] = {name: sharding(name) for name in declared()}
    return Forest(**found, columns=columns)


def matching(shardings: Forest, batch: Forest) -> Forest:
    """The shardings of the columns that the batch has."""
    return dataclasses.replace(shardings, columns={name: getattr(shardings, name) for name in batch.columns})


def shard_of_process(mesh: Mesh, rules: Rules, rows: int, streams: int) -> Shard:
    """The streams that make the rows on this process's devices; `rows` of the global batch, in `streams` equal parts. A
    process that has to pack rows of others as well says so in a warning."""
    sharding: Any = forest_shardings(mesh, rules).record_RG
    indices = sharding.addressable_devices_indices_map((rows, 1)).values()
    held = {row for index in indices if index for row in range(*index[0].indices(rows))}
    mine = sorted({row * streams // rows for row in held})
    if len(mine) * rows > len(held) * streams:
        _log.warning(
            "this process holds %d of a batch's %d rows and reads for %d: make data.streams, which is %d, a multiple of %d",
            len(held), rows, len(mine) * rows // streams, streams, rows // len(held),
        )  # fmt: skip
    return Shard(streams, tuple(mine))


def place(batch: Forest | Mapping[str, Forest], shardings: Forest, share: Shard) -> Any:
    """Host forests, which hold the rows of `share`, as global arrays."""
    if not isinstance(batch, Forest):
        return {name: place(forest, shardings, share) for name, forest in batch.items()}
    rows = len(batch.tokens_RT) // len(share.mine)  # of a stream
    first_row = {stream: rows * k for k, stream in enumerate(share.mine)}
    total = rows * share.streams

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            here = [first_row[r // rows] + r % rows for r in range(*index[0].indices(total))]
            return array[here][(slice(None), *index[1:])]

        return jax.make_array_from_callback((total, *array.shape[1:]), sharding, part)

    return jax.tree.map(put, batch, matching(shardings, batch))
