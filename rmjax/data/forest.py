"""The one batch: rows that pack trees. A tree is a shared prefix and one branch (leaf) per candidate.

R rows, T tokens a row, G groups (trees) a row, N leaves a group. Token i may attend to j iff they are of the same
group, j is on the prefix or on i's own leaf, and j <= i. Sharing is exact: every full sequence is tokenized, then the
longest common token prefix is stored once; positions of a leaf continue from it.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


@dataclasses.dataclass(frozen=True)
class Tree:
    """One group on the host, before packing."""

    prefix: np.ndarray  # [P] token ids
    leaves: tuple[np.ndarray, ...]  # N arrays of token ids, none empty
    ranks: np.ndarray  # [N], smaller is better, inf = unknown
    weight: float = 1.0
    margin: float = 0.0
    type: int = -1
    record: int = -1
    learned_from: int | None = None  # language model: first token (of the whole sequence) that is predicted

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(map(len, self.leaves))

    @staticmethod
    def shared_length(sequences: Sequence[list[int]]) -> int:
        """Length of the longest common prefix that leaves every sequence a token of its own."""
        limit = min(map(len, sequences)) - 1
        first, last = min(sequences), max(sequences)  # the extremes in order differ earliest
        shared = 0
        while shared < limit and first[shared] == last[shared]:
            shared += 1
        return shared

    @classmethod
    def from_sequences(cls, sequences: Sequence[list[int]], ranks: Sequence[float], **facts) -> "Tree":
        shared = cls.shared_length(sequences)
        leaves = tuple(np.asarray(s[shared:], np.int32) for s in sequences)
        prefix = np.asarray(sequences[0][:shared], np.int32)
        return cls(prefix, leaves, np.asarray(ranks, np.float32), **facts)

    @classmethod
    def for_language_model(cls, ids: Sequence[int], learned_from: int, **facts) -> "Tree":
        leaf = np.asarray(ids, np.int32)
        return cls(leaf[:0], (leaf,), np.full(1, np.inf, np.float32), learned_from=learned_from, **facts)


@flax.struct.dataclass
class Forest:
    """The batch. Absent groups and leaves have readout −1; padding has group 0."""

    tokens_RT: Array  # int32
    positions_RT: Array  # int32, from 0 in each group
    group_RT: Array  # int32, 1 … G; 0 = padding
    leaf_RT: Array  # int32, 1 … N; 0 = the shared prefix
    readout_RGN: Array  # int32, column of each leaf's last token, −1 = absent
    ranks_RGN: Array  # float32, smaller is better, inf = unknown or absent
    weight_RG: Array  # float32
    margin_RG: Array  # float32
    type_RG: Array  # int32, −1 = none
    record_RG: Array  # int32, index in the source, −1 = none
    target_RT: Array  # int32, next token of the same path (language-model losses)
    target_weight_RT: Array  # float32, 0 where nothing is to be predicted

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(R, T, G, N)."""
        (R, T), (_, G, N) = self.tokens_RT.shape, self.readout_RGN.shape
        return R, T, G, N


@dataclasses.dataclass(frozen=True)
class ForestShape:
    """Static sizes of a batch."""

    rows: int
    row_tokens: int
    groups: int  # a row
    leaves: int  # a group

    def empty(self) -> Forest:
        R, T, G, N = self.rows, self.row_tokens, self.groups, self.leaves
        arrays: dict[str, Any] = dict(  # on the host they are numpy's
            tokens_RT=np.zeros((R, T), np.int32),
            positions_RT=np.zeros((R, T), np.int32),
            group_RT=np.zeros((R, T), np.int32),
            leaf_RT=np.zeros((R, T), np.int32),
            readout_RGN=np.full((R, G, N), -1, np.int32),
            ranks_RGN=np.full((R, G, N), np.inf, np.float32),
            weight_RG=np.zeros((R, G), np.float32),
            margin_RG=np.zeros((R, G), np.float32),
            type_RG=np.full((R, G), -1, np.int32),
            record_RG=np.full((R, G), -1, np.int32),
            target_RT=np.zeros((R, T), np.int32),
            target_weight_RT=np.zeros((R, T), np.float32),
        )
        return Forest(**arrays)

    def refuse(self, tree: Tree) -> str | None:
        """Why the tree can never be placed, or None."""
        if tree.size > self.row_tokens:
            return f"{tree.size} tokens exceed a row of {self.row_tokens}; raise row_tokens"
        if len(tree.leaves) > self.leaves:
            return f"{len(tree.leaves)} candidates exceed {self.leaves} leaves a group; raise data.leaves"
        return None


def fill(shape: ForestShape, rows: Sequence[Sequence[Tree]]) -> Forest:
    """Lays out the trees of each row."""
    forest = shape.empty()
    for r, trees in enumerate(rows):
        column = 0
        for g, tree in enumerate(trees):
            _place_facts(forest, r, g, tree)
            column = _place_tokens(forest, r, g, tree, column)
    return forest


def _place_facts(forest: Forest, r: int, g: int, tree: Tree) -> None:
    forest.ranks_RGN[r, g, : len(tree.leaves)] = tree.ranks
    forest.weight_RG[r, g] = tree.weight
    forest.margin_RG[r, g] = tree.margin
    forest.type_RG[r, g] = tree.type
    forest.record_RG[r, g] = tree.record


def _place_tokens(forest: Forest, r: int, g: int, tree: Tree, column: int) -> int:
    start = len(tree.prefix)
    for n, part in enumerate((tree.prefix, *tree.leaves)):
        span = slice(column, column + len(part))
        offset = 0 if n == 0 else start
        forest.tokens_RT[r, span] = part
        forest.positions_RT[r, span] = offset + np.arange(len(part))
        forest.group_RT[r, span] = g + 1
        forest.leaf_RT[r, span] = n
        if n > 0:
            forest.readout_RGN[r, g, n - 1] = column + len(part) - 1
            if tree.learned_from is not None:
                _place_targets(forest, r, column, part, tree.learned_from - offset)
        column += len(part)
    return column


def _place_targets(forest: Forest, r: int, column: int, part: np.ndarray, learned_from: int) -> None:
    span = slice(column, column + len(part) - 1)
    forest.target_RT[r, span] = part[1:]
    forest.target_weight_RT[r, span] = np.arange(1, len(part)) >= learned_from


def _place(item: Any, size: int, rows: list[list[Any]], spaces: list[tuple[int, int]], groups: int) -> bool:
    """Puts the item into the fullest row that has room for it; False if none has. `spaces` are (tokens left, row) of the rows
    that can take more, in order."""
    at = bisect.bisect_left(spaces, (size, -1))
    if at == len(spaces):
        return False
    space, row = spaces.pop(at)
    rows[row].append(item)
    if len(rows[row]) < groups:
        bisect.insort(spaces, (space - size, row))
    return True


class Packer:
    """Places trees into the rows of one batch, best fit first."""

    def __init__(self, shape: ForestShape):
        self.shape = shape
        self.rows: list[list[Tree]] = [[] for _ in range(shape.rows)]
        self._spaces = [(shape.row_tokens, row) for row in range(shape.rows)]

    def offer(self, tree: Tree) -> bool:
        """Puts the tree into the fullest row that has room for it and a group slot left; False if none has."""
        return _place(tree, tree.size, self.rows, self._spaces, self.shape.groups)

    def forest(self) -> Forest:
        return fill(self.shape, self.rows)


def arrange(trees: Sequence[Tree], row_tokens: int, groups: int) -> list[list[int]]:
    """Rows of indices of trees: each tree, largest first, is in the fullest row that had room for it, or began one."""
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for i in sorted(range(len(trees)), key=lambda i: -trees[i].size):
        if not _place(i, trees[i].size, rows, spaces, groups):
            spaces.append((row_tokens, len(rows)))  # an empty row has most room: the order holds
            rows.append([])
            _place(i, trees[i].size, rows, spaces, groups)
    return rows


def pack(trees: Sequence[Tree], shape: ForestShape) -> Iterator[tuple[Forest, list[list[int]]]]:
    """All trees in as few rows as best fit needs, largest first; with each batch, which tree stands at [row][group].

    Raises:
      ValueError: a tree that fits no row.
    """
    for tree in trees:
        if reason := shape.refuse(tree):
            raise ValueError(f"record {tree.record}: {reason}")
    rows = arrange(trees, shape.row_tokens, shape.groups)
    for first in range(0, len(rows), shape.rows):
        places = [rows[r] if r < len(rows) else [] for r in range(first, first + shape.rows)]
        yield fill(shape, [[trees[i] for i in row] for row in places]), places


def attention_mask(group_RT: Array, leaf_RT: Array) -> Bool[Array, "R T T"]:
    """mask[r, i, j]: token i may attend to token j."""
    T = group_RT.shape[1]
    same_group = (group_RT[:, :, None] == group_RT[:, None, :]) & (group_RT > 0)[:, :, None]
    visible = (leaf_RT[:, None, :] == 0) | (leaf_RT[:, None, :] == leaf_RT[:, :, None])
    return same_group & visible & jnp.tril(jnp.ones((T, T), bool))[None]


def unshared_tokens(forest: Forest) -> jax.Array:
    """Tokens that the same candidates would take as separate sequences; over real tokens it is the sharing factor."""
    R, T, G, N = forest.shape
    prefix_RG = jnp.sum(
        (forest.group_RT[:, :, None] == jnp.arange(1, G + 1)) & (forest.leaf_RT == 0)[:, :, None], axis=1
    )
    leaves_RG = jnp.sum(forest.readout_RGN >= 0, axis=-1)
    return jnp.sum(prefix_RG * leaves_RG) + jnp.sum((forest.group_RT > 0) & (forest.leaf_RT > 0))
