"""Trees on the host, and how they are packed into the rows of a batch.

A tree is a shared prefix and one branch for each candidate. Sharing is exact: every full sequence is tokenized by itself, then
the longest common token prefix is stored once, and the positions of a branch continue from it.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.models.columns import Column, declared
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
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further declared columns by full name: a number, N, N × N, or N arrays over the tokens of prefix and branch."""

    def value(self, column: Column) -> Any:
        """What the tree knows of a column; None is nothing."""
        if column.full_name in _OWN:
            return getattr(self, column.name)
        return self.columns.get(column.full_name, None if column.axes == "RT" else column.of_absent)

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
        """Shares the longest common prefix (of what columns say of its tokens, too)."""
        shared = min(cls.shared_length(sequences), _alike(facts.get("columns", {}), sequences))
        branches = tuple(np.asarray(s[shared:], np.int32) for s in sequences)
        prefix = np.asarray(sequences[0][:shared], np.int32)
        return cls(prefix, branches, _dense(ranks), **facts)

    @classmethod
    def for_language_model(
        cls, ids: Sequence[int], learned_from: int, columns: Mapping[str, Any] | None = None, **facts
    ) -> "Tree":
        """A text of which the tokens from number `learned_from` on are predicted, each from those before it; `columns` are
        further ones, those over tokens as long as `ids` or longer."""
        branch = np.asarray(ids, np.int32)
        predicted = np.arange(1, len(branch) + 1)  # by the token before it; behind the last one nothing is
        learned = (predicted >= learned_from) & (predicted < len(branch))
        targets = {
            "target_RT": [np.append(branch[1:], np.int32(0))],
            "target_weight_RT": [learned.astype(np.float32)],
        }
        own = {n: [value[0][: len(branch)]] if n.endswith("_RT") else value for n, value in (columns or {}).items()}
        return cls(branch[:0], (branch,), np.full(1, np.inf, np.float32), columns=own | targets, **facts)


_OWN = ("ranks_RGN", "weight_RG", "margin_RG", "type_RG")
"""Columns that are attributes of a tree."""


def _alike(columns: Mapping[str, Any], sequences: Sequence[list[int]]) -> int:
    """Number of tokens from the start of which the columns say the same in all sequences."""
    length = min(map(len, sequences))
    for name, value in columns.items():
        if name.endswith("_RT"):
            differ = np.flatnonzero(np.ptp([values[:length] for values in value], axis=0))
            length = min([length, *differ[:1].tolist()])
    return length


def _dense(ranks: Sequence[float]) -> np.ndarray:
    """0, 1, 2, … in the order of `ranks`: two that differ in fp64 only would be tied in fp32. inf (unknown) stays."""
    known = sorted({rank for rank in ranks if np.isfinite(rank)})
    place = {rank: number for number, rank in enumerate(known)}
    return np.asarray([place.get(rank, rank) for rank in ranks], np.float32)


@dataclasses.dataclass(frozen=True)
class ForestShape:
    """Static sizes of a batch."""

    rows: int
    row_tokens: int
    groups: int  # a row
    branches: int  # a group

    columns: tuple[str, ...] = ()  # full names of on-demand columns that the batch has beside the others

    def empty(self) -> Forest:
        """A batch without a tree, on the host."""
        R, T, G, N = self.rows, self.row_tokens, self.groups, self.branches
        known = declared()
        if missing := [name for name in self.columns if name not in known]:
            raise ValueError(f"no column {missing[0]} is declared; there are {', '.join(known)}")
        arrays: dict[str, Any] = dict(  # on the host they are numpy's
            tokens_RT=np.zeros((R, T), np.int32),
            positions_RT=np.zeros((R, T), np.int32),
            group_RT=np.zeros((R, T), np.int32),
            branch_RT=np.zeros((R, T), np.int32),
            readout_RGN=np.full((R, G, N), -1, np.int32),
            record_RG=np.full((R, G), -1, np.int32),
            columns={
                name: column.array(R, T, G, N)
                for name, column in known.items()
                if not column.on_demand or name in self.columns
            },
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
    known = declared()
    for r, trees in enumerate(rows):
        start = 0
        for g, tree in enumerate(trees):
            spans = _spans(tree, start)
            _place_tokens(forest, r, g, tree, spans)
            forest.record_RG[r, g] = tree.record
            for name, array in forest.columns.items():
                _place_fact(array, r, g, tree, known[name], spans)
            start = spans[-1].stop
    return forest


def unpack(forest: Forest) -> list[tuple[int, int, Tree]]:
    """(row, group, tree) of every group of a forest on the host: what `fill` laid out, columns included."""
    groups = np.argwhere(np.any(np.asarray(forest.readout_RGN) >= 0, axis=-1)).tolist()
    return [(r, g, _unpacked(forest, r, g)) for r, g in groups]


def _unpacked(forest: Forest, r: int, g: int) -> Tree:
    own = np.flatnonzero(forest.group_RT[r] == g + 1)
    branch, count = forest.branch_RT[r, own], int(np.sum(forest.readout_RGN[r, g] >= 0))
    prefix, branches = own[branch == 0], [own[branch == n + 1] for n in range(count)]
    facts: dict[str, Any] = {}
    for name, column in declared().items():
        if name not in forest.columns:
            continue
        array = forest.columns[name]
        if column.axes == "RT":
            facts[name] = [array[r, np.concatenate([prefix, part])] for part in branches]
        else:
            facts[name] = (
                array[r, g] if column.axes == "RG" else array[(r, g, *[slice(count)] * (len(column.axes) - 2))]
            )
    attributes = {name.rpartition("_")[0]: facts.pop(name) for name in _OWN}
    tokens = np.asarray(forest.tokens_RT[r])
    return Tree(
        tokens[prefix], tuple(tokens[part] for part in branches), record=int(forest.record_RG[r, g]), columns=facts,
        **attributes,
    )  # fmt: skip


def _spans(tree: Tree, start: int) -> list[slice]:
    """Where in the row prefix and branches stand."""
    spans = []
    for part in (tree.prefix, *tree.branches):
        spans.append(slice(start, start + len(part)))
        start += len(part)
    return spans


def _place_fact(array: Any, r: int, g: int, tree: Tree, column: Column, spans: Sequence[slice]) -> None:
    value, count = tree.value(column), len(tree.branches)
    if column.axes == "RG":
        array[r, g] = value
    elif column.axes == "RGN":
        array[r, g, :count] = value
    elif column.axes == "RGNN":
        array[r, g, :count, :count] = value
    elif value is not None:
        shared = len(tree.prefix)
        array[r, spans[0]] = value[0][:shared]
        for span, values in zip(spans[1:], value, strict=True):
            array[r, span] = values[shared:]


def _place_tokens(forest: Forest, r: int, g: int, tree: Tree, spans: Sequence[slice]) -> None:
    for n, (part, span) in enumerate(zip((tree.prefix, *tree.branches), spans, strict=True)):
        offset = 0 if n == 0 else len(tree.prefix)
        forest.tokens_RT[r, span] = part
        forest.positions_RT[r, span] = offset + np.arange(len(part))
        forest.group_RT[r, span] = g + 1
        forest.branch_RT[r, span] = n
        if n > 0:
            forest.readout_RGN[r, g, n - 1] = span.stop - 1


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
    return arrange_sizes([tree.size for tree in trees], row_tokens, groups)


def arrange_sizes(sizes: Sequence[int], row_tokens: int, groups: int) -> list[list[int]]:
    """`arrange` of trees of so many tokens."""
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if not _place(i, sizes[i], rows, spaces, groups):
            spaces.append((row_tokens, len(rows)))  # an empty row has most room: the order holds
            rows.append([])
            _place(i, sizes[i], rows, spaces, groups)
    return rows


def _arranged(trees: Sequence[Tree], shape: ForestShape) -> list[list[int]]:
    """`arrange` for a shape; ValueError for a tree that fits no row of it."""
    for tree in trees:
        if reason := shape.refuse(tree):
            raise ValueError(f"record {tree.record}: {reason}")
    return arrange(trees, shape.row_tokens, shape.groups)


def packed(trees: Sequence[Tree], shape: ForestShape, unit: int = 1) -> Forest:
    """All trees in one batch, in as few rows as best fit needs. Their number is `unit` times 1, 2, 3, 4, 6, 8, 12, …, so that few
    shapes are ever compiled, whatever `shape.rows` is.

    Raises:
      ValueError: a tree that fits no row.
    """
    rows = _arranged(trees, shape)
    whole = dataclasses.replace(shape, rows=unit * at_most_two_digits(max(1, -(-len(rows) // unit))))
    return fill(whole, [[trees[i] for i in row] for row in rows])


def at_most_two_digits(n: int) -> int:
    """The next number with at most two binary digits that count, less than half more than n."""
    step = 1 << max(0, n.bit_length() - 2)
    return -(-n // step) * step


def pack(trees: Sequence[Tree], shape: ForestShape) -> Iterator[tuple[Forest, list[list[int]]]]:
    """All trees in as few rows as best fit needs, largest first; with each batch, which tree stands at [row][group].

    Raises:
      ValueError: a tree that fits no row.
    """
    rows = _arranged(trees, shape)
    for first in range(0, len(rows), shape.rows):
        places = [rows[r] if r < len(rows) else [] for r in range(first, first + shape.rows)]
        yield fill(shape, [[trees[i] for i in row] for row in places]), places
