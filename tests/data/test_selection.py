"""Sources that look at the model: the groups of the largest value are kept, and unpacking undoes packing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Tree, fill, unpack
from rmjax.data.pipeline import FileSource
from rmjax.data.selection import Selecting


@st.composite
def trees(draw):
    ids = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    sequences = draw(st.lists(ids, min_size=1, max_size=3, unique_by=tuple))
    ranks = draw(st.permutations(range(len(sequences))))
    return Tree.from_sequences(
        sequences, ranks, weight=draw(st.sampled_from([0.5, 1.0])), record=draw(st.integers(0, 99))
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(trees(), max_size=3), min_size=1, max_size=3))
def test_unpacking_undoes_packing(rows):
    forest = fill(ForestShape(len(rows), 48, 3, 3), rows)
    found: list[list[Tree]] = [[] for _ in rows]
    for r, _, tree in unpack(forest):
        found[r].append(tree)
    again = fill(ForestShape(len(rows), 48, 3, 3), found)
    for name in ("tokens_RT", "positions_RT", "group_RT", "branch_RT", "readout_RGN", "record_RG"):
        assert np.array_equal(getattr(again, name), getattr(forest, name)), name
    assert all(np.array_equal(again.columns[name], array) for name, array in forest.columns.items())


class Batches:
    """Two groups a batch, of records 0, 1; 2, 3; …"""

    def __init__(self):
        self.position = 0

    def __next__(self):
        if self.position == 3:
            raise StopIteration
        first = 2 * self.position
        self.position += 1
        rows = [[Tree.from_sequences([[1, 2, r], [1, 3, r]], [0, 1], record=r)] for r in (first, first + 1)]
        return fill(ForestShape(2, 8, 1, 2), rows)

    def get_state(self):
        return self.position

    def set_state(self, state):
        self.position = state


def chosen(source, state, step):
    return sorted(np.ravel(source.next(state, step).record_RG).tolist())


def test_the_groups_of_the_largest_value_are_kept_and_the_state_is_seen():
    def make():
        return Selecting(FileSource(Batches()), ForestShape(2, 8, 1, 2), lambda sign, f: sign * f.record_RG, 2)

    assert chosen(make(), 1.0, 1) == [2, 3] and chosen(make(), -1.0, 1) == [0, 1]
    source = make()
    chosen(source, 1.0, 1)
    kept = source.get_state()
    assert chosen(source, 1.0, 2) == [4, 5] and source.next(1.0, 3) is None
    source.set_state(kept)
    assert chosen(source, 1.0, 2) == [4, 5]
