"""Trees on the host, and how they are packed into the rows of a batch.

A tree is a shared prefix and one branch for each candidate. Sharing is exact: every full sequence is tokenized by itself, then
the longest common token prefix is stored once, and the positions of a branch continue from it.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rmjax.models.forest import Forest


@dataclasses.dataclass(frozen=True)
class Tree:
    """One group on the host, before packing."""

    prefix: np.ndarray  # [P] token ids
    branches: tuple[np.ndarray, ...]  # N arrays of token ids, none empty
    ranks: np.ndarray  # [N], smaller is better, inf = unknown
    weight: float = 1.0
    margin: float = 0.0
    type: int = -1
    record: int = -1
    learned_from: int | None = None  # language model: first token (of the whole sequence) that is predicted

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))

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
        branches = tuple(np.asarray(s[shared:], np.int32) for s in sequences)
        prefix = np.asarray(sequences[0][:shared], np.int32)
        return cls(prefix, branches, np.asarray(ranks, np.float32), **facts)

    @classmethod
    def for_language_model(cls, ids: Sequence[int], learned_from: int, **facts) -> "Tree":
        branch = np.asarray(ids, np.int32)
        return cls(branch[:0], (branch,), np.full(1, np.inf, np.float32), learned_from=learned_from, **facts)


@dataclasses.dataclass(frozen=True)
class ForestShape:
    """Static sizes of a batch."""

    rows: int
    row_tokens: int
    groups: int  # a row
    branches: int  # a group

    def empty(self) -> Forest:
        R, T, G, N = self.rows, self.row_tokens, self.groups, self.branches
        arrays: dict[str, Any] = dict(  # on the host they are numpy's
            tokens_RT=np.zeros((R, T), np.int32),
            positions_RT=np.zeros((R, T), np.int32),
            group_RT=np.zeros((R, T), np.int32),
            branch_RT=np.zeros((R, T), np.int32),
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
        if len(tree.branches) > self.branches:
            return f"{len(tree.branches)} candidates exceed {self.branches} branches a group; raise data.candidates"
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
    forest.ranks_RGN[r, g, : len(tree.branches)] = tree.ranks
    forest.weight_RG[r, g] = tree.weight
    forest.margin_RG[r, g] = tree.margin
    forest.type_RG[r, g] = tree.type
    forest.record_RG[r, g] = tree.record


def _place_tokens(forest: Forest, r: int, g: int, tree: Tree, column: int) -> int:
    start = len(tree.prefix)
    for n, part in enumerate((tree.prefix, *tree.branches)):
        span = slice(column, column + len(part))
        offset = 0 if n == 0 else start
        forest.tokens_RT[r, span] = part
        forest.positions_RT[r, span] = offset + np.arange(len(part))
        forest.group_RT[r, span] = g + 1
        forest.branch_RT[r, span] = n
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
