"""The shapes of batches that are compiled at start, and how waiting sequences become a batch of one of them.

Sequences that begin alike share their beginning, whoever asked for them: sorted by their tokens, neighbors with a long common
prefix become one tree. Sharing is exact, so it changes no score.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.data.packing import ForestShape, Tree, arrange, fill
from rmjax.models.forest import Forest
from rmjax.serve.blocks import BLOCK, TOKEN_BYTES

GROUPS, BRANCHES = 128, 16
"""Trees a row and sequences a tree, at most."""
SHORTEST, DENSE = 256, 512
"""Tokens of the shortest rows; of the longest where attention, which then grows dearer, is dense, if no sequence is longer."""

PASTS = (1, 4)
"""Kept tokens that a row continues at most, in its own; see `prefixes`."""


def ladder(max_tokens: int, batch_tokens: int, tiled: bool, rows: int = 1) -> tuple[ForestShape, ...]:
    """Rows of powers of two. Where attention is in tiles, a long row costs no more than its trees and leaves less of itself
    empty: batches are `rows` of them, up to the batch's tokens. Else rows are short, and there are 1, 4, 16, … of them.

    Args:
      max_tokens: of a sequence.
      batch_tokens: of a batch at most, one row at least.
      rows: that are always there, say one on each device.
    """
    top = _power_of_two(max(max_tokens, batch_tokens // rows if tiled else min(batch_tokens, DENSE)))
    lengths = [tokens for tokens in (1 << n for n in range(SHORTEST.bit_length() - 1, 31)) if tokens < top] + [top]
    shapes = []
    for tokens in lengths:
        most = max(1, batch_tokens // tokens)
        counts = {rows} if tiled else {most, *(4**n for n in range(8) if 4**n < most)}
        groups = min(GROUPS, max(1, tokens // 8))
        shapes += [ForestShape(n, tokens, groups, BRANCHES) for n in sorted(counts)]
    return tuple(shapes)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences that will be a tree: indices in the order of their tokens, and how many tokens they share. What is kept of them
    from earlier batches is in neither number."""

    members: tuple[int, ...]
    shared: int
    tokens: int
    past: tuple[int, ...] = ()  # places of the blocks that are kept (`blocks.Blocks`)

    @property
    def together(self) -> int:
        """Tokens from the start that several sequences have in common here."""
        return BLOCK * len(self.past) + self.shared if len(self.members) > 1 else 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call of the model: its shape, the groups of each row, and the distinct sequences that they are made of."""

    shape: ForestShape
    rows: tuple[tuple[Group, ...], ...]
    sequences: tuple[bytes, ...]

    @property
    def keys(self) -> list[bytes]:
        """The sequences that it scores."""
        return [self.sequences[i] for row in self.rows for group in row for i in group.members]

    def trees(self) -> list[list[Tree]]:
        """What `packing.fill` takes."""
        return [[_tree(group, self.sequences) for group in row] for row in self.rows]

    def forest(self) -> Forest:
        """What the model takes: tokens that are not kept, at their positions."""
        found = fill(self.shape, self.trees())
        for r, row in enumerate(self.rows):
            for g, group in enumerate(row):
                found.positions_RT[r][found.group_RT[r] == g + 1] += BLOCK * len(group.past)
        return found


Kept = Callable[[bytes], tuple[int, ...]]
"""A sequence → places of the blocks of it that are kept, from its start."""


def plan(
    waiting: Sequence[bytes], shapes: Sequence[ForestShape], quadratic: float = 0.0, kept: Kept | None = None
) -> Batch:
    """The next batch: the group of the sequence that has waited longest, then the next one's, as long as they fit one shape.

    Args:
      waiting: keys of sequences (`items.key`), the oldest first, at least one; equal ones are scored once.
      quadratic: by which fraction each token of a row makes the row's other tokens dearer.
      kept: what is not to be run again; None = nothing is kept.
    """
    sequences = list(dict.fromkeys(waiting))
    longest, most = max(s.row_tokens for s in shapes), max(s.rows * s.row_tokens for s in shapes)
    groups = grouped(sequences, longest) if kept is None else _continuing(sequences, longest, kept)
    groups.sort(key=lambda group: min(group.members))
    taken = [groups[0]]
    for group in groups[1:]:
        if sum(g.tokens for g in taken) + group.tokens > most or _past([*taken, group]) > PASTS[-1] * longest:
            break
        taken.append(group)
    while (found := _fitting(taken, shapes, quadratic)) is None:
        taken.pop()
    shape, rows = found
    return Batch(shape, tuple(tuple(taken[i] for i in row) for row in rows), tuple(sequences))


def _continuing(sequences: Sequence[bytes], most_tokens: int, kept: Kept) -> list[Group]:
    """`grouped`, apart for those that continue each beginning that is kept, by what is not. Those that share nothing else share
    the past's columns: a quarter of a row together, for rows to be filled well."""
    classes: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        classes.setdefault(kept(sequence), []).append(i)
    found = []
    for past, members in classes.items():
        own = [sequences[i][TOKEN_BYTES * BLOCK * len(past) :] for i in members]
        groups = grouped(own, most_tokens)
        for group in _side_by_side(groups, most_tokens // 4) if past else groups:
            found.append(dataclasses.replace(group, members=tuple(members[i] for i in group.members), past=past))
    return found


def _side_by_side(groups: Sequence[Group], most_tokens: int) -> list[Group]:
    """Single sequences as branches of common trees without a prefix; the other groups as they are."""
    found = [group for group in groups if len(group.members) > 1]
    tree = Group((), 0, 0)
    for single in (group for group in groups if len(group.members) == 1):
        if tree.members and (len(tree.members) == BRANCHES or tree.tokens + single.tokens > most_tokens):
            found.append(tree)
            tree = Group((), 0, 0)
        tree = Group((*tree.members, *single.members), 0, tree.tokens + single.tokens)
    return [*found, tree] if tree.members else found


def past_columns(shape: ForestShape, tokens: int) -> int:
    """The least of a shape's pasts that has room for so many tokens."""
    return next(n * shape.row_tokens for n in PASTS if n * shape.row_tokens >= tokens)


def _past(groups: Sequence[Group]) -> int:
    return BLOCK * sum(len(group.past) for group in groups)


def grouped(sequences: Sequence[bytes], most_tokens: int, branches: int = BRANCHES) -> list[Group]:
    """Every sequence in one group. Neighbors in the order of their tokens join where that saves more tokens than those that
    follow would lose, which then share no more than the two have in common."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ids = [np.frombuffer(sequences[i], ">u4") for i in order]
    common = [0, *(_common(a, b) for a, b in zip(ids, ids[1:], strict=False))]  # common[i]: of i − 1 and i
    found: list[Group] = []
    for n, (index, own) in enumerate(zip(order, ids, strict=True)):
        alone = Group((index,), len(own) - 1, len(own))
        joined = _joined(found[-1], index, len(own), common[n]) if found else alone
        saved = found[-1].tokens + len(own) - joined.tokens if found else 0
        fits = joined.tokens <= most_tokens and len(joined.members) <= branches
        if fits and saved > _lost(common[n + 1 : n + branches], joined.shared):
            found[-1] = joined
        else:
            found.append(alone)
    return found


def _joined(group: Group, index: int, length: int, common: int) -> Group:
    """The group with one more."""
    count = len(group.members)
    shared = min(group.shared, common, length - 1)
    apart = group.tokens + (count - 1) * group.shared  # all tokens of the members
    return Group((*group.members, index), shared, apart + length - count * shared)


def _lost(common: Sequence[int], shared: int) -> int:
    """Tokens that the next sequences would save beside the last one and not in a group that shares so little."""
    lost = 0
    for each in common:
        if each <= shared:
            break
        lost += each - shared
    return lost


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens that both begin with."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _fitting(
    groups: Sequence[Group], shapes: Sequence[ForestShape], quadratic: float
) -> tuple[ForestShape, list[list[int]]] | None:
    """The cheapest shape that holds them all, and their places in its rows."""
    largest = max(group.tokens for group in groups)
    trees = [_Sized(group.tokens) for group in groups]
    found: list[tuple[float, ForestShape, list[list[int]]]] = []
    fitting = [s for s in shapes if s.row_tokens >= largest and PASTS[-1] * s.row_tokens >= _past(groups)]
    for tokens in sorted({s.row_tokens for s in fitting}):
        alike = sorted((s for s in fitting if s.row_tokens == tokens), key=lambda s: s.rows)
        rows = arrange(trees, tokens, alike[0].groups)  # type: ignore[arg-type]
        fits = next((s for s in alike if s.rows >= len(rows)), None)
        if fits:
            found.append((fits.rows * tokens * (1 + quadratic * tokens), fits, rows))
    return min(found, key=lambda each: each[0])[1:] if found else None


@dataclasses.dataclass(frozen=True)
class _Sized:
    """All that `arrange` asks of a tree."""

    size: int


def _tree(group: Group, sequences: Sequence[bytes]) -> Tree:
    after = BLOCK * len(group.past)
    ids = [np.frombuffer(sequences[i], ">u4").astype(np.int32)[after:] for i in group.members]
    unknown = np.full(len(ids), np.inf, np.float32)
    return Tree(ids[0][: group.shared], tuple(each[group.shared :] for each in ids), unknown)
