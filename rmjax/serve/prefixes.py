"""Keys and values of beginnings, kept on the device from batch to batch: what a batch begins with and is known is not run again.

Axis letters as in `models.transformer`; C columns of the past, in B blocks; K blocks to be stored, of N tokens. Shapes are as
few as the ladder's: a row continues `PASTS` times its own tokens at most.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rmjax.data.packing import ForestShape
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.serve.blocks import BLOCK, TOKEN_BYTES, Blocks
from rmjax.serve.ladder import PASTS, Batch, Group, past_columns

_log = logging.getLogger(__name__)
Pool = dict[str, jax.Array]
"""`k`, `v`: [L, blocks, BLOCK, J, E], in the dtype of activations."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What a batch takes out of the pool and leaves there."""

    past_RB: np.ndarray  # places of blocks; the number of the pool's blocks where there is none
    past_RCM: np.ndarray  # `ForestMask`'s
    column_KB: (
        np.ndarray
    )  # [K, BLOCK]: of the tokens of blocks to be stored, counted through the rows; one may be in several blocks
    place_K: np.ndarray  # of these blocks; the number of the pool's where none is stored


class Prefixes:
    """The pool of a single model on one device. Not for several threads at once.

    Args:
      config: with attention in tiles.
      tokens: that the pool has room for; rounded down to whole blocks.
    """

    def __init__(self, config: TransformerConfig, tokens: int):
        self._config, self._blocks = config, Blocks(tokens // BLOCK)
        self._pool = self._empty()

    @property
    def tokens(self) -> int:
        """That are kept now."""
        return BLOCK * len(self._blocks)

    @property
    def size(self) -> int:
        """Of the pool, in bytes."""
        return sum(x.nbytes for x in self._pool.values())

    def kept(self, key: bytes) -> tuple[int, ...]:
        """`Blocks.kept`."""
        return self._blocks.kept(key)

    def clear(self) -> None:
        """Forgets everything; to be called where the parameters change."""
        self._blocks = Blocks(self._blocks.count)

    def compile(self, params: Any, shape: ForestShape) -> None:
        """Runs every past of a shape once, on nothing."""
        for times in PASTS:
            self.run(params, shape.empty(), self._nothing(shape, times * shape.row_tokens))

    def step(self, batch: Batch) -> Step | None:
        """The batch's part of the pool; None where it takes nothing and leaves nothing. `run` must follow."""
        self._blocks.begin()
        for row in batch.rows:
            for group in row:
                self._blocks.use(batch.sequences[group.members[0]], len(group.past))
        stored = self._stored(batch)
        columns = max(BLOCK * sum(len(group.past) for group in row) for row in batch.rows)
        if not columns and not stored:
            return None
        step = self._nothing(batch.shape, past_columns(batch.shape, columns))
        for r, row in enumerate(batch.rows):
            at = 0
            for g, group in enumerate(row):
                end = at + len(group.past)
                step.past_RB[r, at:end] = group.past
                step.past_RCM[r, at * BLOCK : end * BLOCK, 0] = g + 1
                step.past_RCM[r, at * BLOCK : end * BLOCK, 1] = np.arange((end - at) * BLOCK)
                at = end
        for k, (place, column_B) in enumerate(stored):
            step.place_K[k], step.column_KB[k] = place, column_B
        return step

    def run(self, params: Any, forest: Forest, step: Step) -> np.ndarray:
        """Rewards [R, G, N]. After a failure, or a key or value that is not finite, nothing is kept."""
        pool, self._pool = self._pool, {}
        try:
            rewards, self._pool, sound = _continued(
                params, pool, forest, step.past_RB, step.past_RCM, step.column_KB, step.place_K, config=self._config
            )
            found = np.asarray(rewards)
        except Exception:
            self.clear()
            self._pool = self._empty()
            raise
        if not sound:
            _log.error("a key or value is not finite; the prefix cache is emptied")
            self.clear()
        return found

    def _empty(self) -> Pool:
        c = self._config
        zeros = np.zeros((c.depth, self._blocks.count, BLOCK, c.kv_heads, c.head_width), jnp.dtype(c.dtype))
        return {name: jax.device_put(zeros, may_alias=False) for name in ("k", "v")}  # jnp.zeros would be compiled

    def _nothing(self, shape: ForestShape, columns: int) -> Step:
        R, K, none = shape.rows, shape.rows * shape.row_tokens // BLOCK, self._blocks.count
        return Step(
            np.full((R, columns // BLOCK), none, np.int32),
            np.zeros((R, columns, 2), np.int32),
            np.zeros((K, BLOCK), np.int32),
            np.full(K, none, np.int32),
        )

    def _stored(self, batch: Batch) -> list[tuple[int, np.ndarray]]:
        """Places, and the columns of what is to lie there; no more blocks than the batch has tokens for."""
        tokens = batch.shape.row_tokens
        stored: list[tuple[int, np.ndarray]] = []
        for r, row in enumerate(batch.rows):
            start = r * tokens
            for group in row:
                for key, column_T in _members(group, batch, start):
                    room = batch.shape.rows * tokens // BLOCK - len(stored)
                    for n, place in self._blocks.run(key, group.together, room).items():
                        own = slice((n - len(group.past)) * BLOCK, (n + 1 - len(group.past)) * BLOCK)
                        stored.append((place, column_T[own]))
                start += group.tokens
        return stored


def _members(group: Group, batch: Batch, start: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Each sequence of a group that begins at a column of its row, and the columns of its tokens after the past."""
    prefix, branch = np.arange(start, start + group.shared), start + group.shared
    for member in group.members:
        key = batch.sequences[member]
        own = len(key) // TOKEN_BYTES - BLOCK * len(group.past) - group.shared
        yield key, np.concatenate([prefix, np.arange(branch, branch + own)])
        branch += own


@functools.partial(jax.jit, static_argnames="config", donate_argnames="pool")
def _continued(
    params: Any, pool: Pool, forest: Forest, past_RB: Array, past_RCM: Array, column_KB: Array, place_K: Array, *,
    config: TransformerConfig,
) -> tuple[Float[Array, "R G N"], Pool, Bool[Array, ""]]:  # fmt: skip
    """Rewards, the pool with what is stored, and whether all of that is finite."""
    past = {name: _taken(x, past_RB) for name, x in pool.items()}
    model = RewardTransformer(config)
    rewards, new = model.apply({"params": params}, forest, past, past_RCM, method="continued")  # type: ignore[misc]
    blocks = {name: _blocks(x, column_KB) for name, x in new.items()}
    unused = (place_K == pool["k"].shape[1])[:, None, None, None]
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x) | unused) for x in blocks.values()]))
    return rewards, {name: x.at[:, place_K].set(blocks[name], mode="drop") for name, x in pool.items()}, sound


def _taken(x: Array, past_RB: Int[Array, "R B"]) -> Float[Array, "L R C J E"]:
    """Blocks of the pool; zeros where there is none, for whatever a masked value is, it is multiplied by 0."""
    (L, _, _, J, E), R = x.shape, past_RB.shape[0]
    return jnp.take(x, past_RB, axis=1, mode="fill", fill_value=0).reshape(L, R, -1, J, E)


def _blocks(new: Float[Array, "L R T J E"], column_KB: Int[Array, "K N"]) -> Float[Array, "L K N J E"]:
    L, _, _, J, E = new.shape
    return jnp.take(new.reshape(L, -1, J, E), column_KB, axis=1)
