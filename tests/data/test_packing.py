"""Token trees and the rows that pack them: sharing, layout, mask, placing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Packer, Tree, arrange, fill, pack
from rmjax.models.forest import Forest, attention_mask, unshared_tokens

tokens = st.integers(1, 4)  # few different ones, so that prefixes are shared by chance as well
sequence = st.lists(tokens, min_size=1, max_size=7)


@st.composite
def groups_of_sequences(draw, leaves: int = 3):
    """One to `leaves` sequences with a common beginning."""
    prefix = draw(st.lists(tokens, max_size=6))
    return [prefix + draw(sequence) for _ in range(draw(st.integers(1, leaves)))]


def grow(sequences: list[list[int]], number: int = 0, **facts) -> Tree:
    facts = {"weight": 1.0 + number, "margin": 0.5 * number, "type": number, "record": 100 + number, **facts}
    return Tree.from_sequences(sequences, ranks=list(range(len(sequences))), **facts)


def sequences_of(forest: Forest, r: int, g: int) -> list[list[int]]:
    """Every path of a group, read back from the arrays by definition: prefix columns, then the leaf's columns."""
    mine = forest.group_RT[r] == g + 1
    paths = []
    for n in np.flatnonzero(forest.readout_RGN[r, g] >= 0):
        columns = np.flatnonzero(mine & ((forest.branch_RT[r] == 0) | (forest.branch_RT[r] == n + 1)))
        np.testing.assert_array_equal(forest.positions_RT[r, columns], np.arange(len(columns)))
        assert forest.readout_RGN[r, g, n] == columns[-1]
        paths.append(forest.tokens_RT[r, columns].tolist())
    return paths


# --- sharing ----------------------------------------------------------------------------------------------------------


def brute_shared_length(sequences: list[list[int]]) -> int:
    """Columns, from the left, in which all agree; the last token of the shortest is never shared."""
    columns = list(zip(*(s[: min(map(len, sequences)) - 1] for s in sequences), strict=True))
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


@settings(deadline=None)
@given(sequences=st.one_of(groups_of_sequences(5), st.lists(sequence, min_size=1, max_size=5)))
def test_shared_length_is_the_longest_common_prefix_that_leaves_each_a_token(sequences):
    assert Tree.shared_length(sequences) == brute_shared_length(sequences)


@settings(deadline=None)
@given(sequences=groups_of_sequences(5))
def test_a_tree_holds_its_sequences(sequences):
    tree = grow(sequences)
    assert [[*tree.prefix, *leaf] for leaf in tree.branches] == sequences
    assert all(len(leaf) >= 1 for leaf in tree.branches)
    assert tree.size == len(tree.prefix) + sum(len(leaf) for leaf in tree.branches)
    assert tree.ranks.dtype == np.float32 and all(part.dtype == np.int32 for part in (tree.prefix, *tree.branches))


@pytest.mark.parametrize(
    ("sequences", "prefix", "leaves"),
    [
        ([[5, 6, 7], [5, 6, 8, 9]], [5, 6], [[7], [8, 9]]),
        ([[5, 6, 7], [5, 6, 7]], [5, 6], [[7], [7]]),  # identical candidates share all but the read-out
        ([[5], [5], [5]], [], [[5], [5], [5]]),
        ([[5], [5, 6]], [], [[5], [5, 6]]),  # one begins with all of another
        ([[5, 6], [5, 6, 7]], [5], [[6], [6, 7]]),
        ([[5, 6, 7]], [5, 6], [[7]]),
        ([[5, 7], [6, 7]], [], [[5, 7], [6, 7]]),
    ],
)
def test_sharing_by_hand(sequences, prefix, leaves):
    tree = grow(sequences)
    assert tree.prefix.tolist() == prefix
    assert [leaf.tolist() for leaf in tree.branches] == leaves


# --- layout -----------------------------------------------------------------------------------------------------------


def test_layout_by_hand():
    shape = ForestShape(rows=2, row_tokens=8, groups=2, branches=2)
    pair = Tree.from_sequences([[5, 6, 7], [5, 6, 8, 9]], ranks=[0, 1], weight=2.0, margin=0.5, type=3, record=11)
    one = Tree.from_sequences([[4, 4]], ranks=[np.inf], record=12)
    forest = fill(shape, [[], [pair, one]])
    assert forest.shape == (2, 8, 2, 2)
    assert forest.tokens_RT.tolist() == [[0] * 8, [5, 6, 7, 8, 9, 4, 4, 0]]
    assert forest.positions_RT.tolist() == [[0] * 8, [0, 1, 2, 2, 3, 0, 1, 0]]
    assert forest.group_RT.tolist() == [[0] * 8, [1, 1, 1, 1, 1, 2, 2, 0]]
    assert forest.branch_RT.tolist() == [[0] * 8, [0, 0, 1, 2, 2, 0, 1, 0]]
    assert forest.readout_RGN.tolist() == [[[-1, -1], [-1, -1]], [[2, 4], [6, -1]]]
    assert forest.ranks_RGN[1].tolist() == [[0, 1], [np.inf, np.inf]]
    assert np.isinf(forest.ranks_RGN[0]).all()
    assert forest.weight_RG.tolist() == [[0, 0], [2, 1]]
    assert forest.margin_RG.tolist() == [[0, 0], [0.5, 0]]
    assert forest.type_RG.tolist() == [[-1, -1], [3, -1]]
    assert forest.record_RG.tolist() == [[-1, -1], [11, 12]]
    assert not forest.target_weight_RT.any()


def test_language_model_targets_by_hand():
    shape = ForestShape(rows=1, row_tokens=9, groups=2, branches=1)
    forest = fill(
        shape,
        [[Tree.for_language_model([5, 6, 7, 8], learned_from=2), Tree.for_language_model([9, 4, 3], learned_from=1)]],
    )
    # Column t predicts the next token of its own text; the last of a text predicts nothing, not the next text's first.
    assert forest.target_RT.tolist() == [[6, 7, 8, 0, 4, 3, 0, 0, 0]]
    assert forest.target_weight_RT.tolist() == [[0, 1, 1, 0, 1, 1, 0, 0, 0]]
    assert forest.ranks_RGN.tolist() == [[[np.inf], [np.inf]]]


@settings(deadline=None)
@given(ids=st.lists(tokens, min_size=1, max_size=8), learned_from=st.integers(1, 9))
def test_every_token_from_learned_from_on_is_predicted_once(ids, learned_from):
    forest = fill(ForestShape(1, 8, 1, 1), [[Tree.for_language_model(ids, learned_from)]])
    columns = np.flatnonzero(forest.target_weight_RT[0])
    assert [c + 1 for c in columns] == list(range(learned_from, len(ids)))
    assert forest.target_RT[0, columns].tolist() == ids[learned_from:]


# --- packing ----------------------------------------------------------------------------------------------------------

shapes = st.builds(
    ForestShape, rows=st.integers(1, 3), row_tokens=st.integers(27, 60), groups=st.integers(1, 4), branches=st.just(3)
)


@settings(deadline=None)
@given(shape=shapes, drawn=st.lists(groups_of_sequences(), max_size=12))
def test_pack_places_every_tree_once_and_whole(shape, drawn):
    trees = [grow(sequences, i) for i, sequences in enumerate(drawn)]
    seen = []
    for forest, places in pack(trees, shape):
        assert any(places), "an empty batch"
        assert forest.shape == (shape.rows, shape.row_tokens, shape.groups, shape.branches)
        placed = [(r, g, i) for r, row in enumerate(places) for g, i in enumerate(row)]
        seen += [i for _, _, i in placed]
        # As many real tokens as the trees have: none overlaps another, none is left over.
        assert (forest.group_RT > 0).sum() == sum(trees[i].size for _, _, i in placed)
        assert (forest.record_RG >= 0).sum() == len(placed)
        for r, g, i in placed:
            assert sequences_of(forest, r, g) == drawn[i]
            N = len(drawn[i])
            assert forest.ranks_RGN[r, g].tolist() == list(range(N)) + [np.inf] * (3 - N)
            facts = (forest.weight_RG, forest.margin_RG, forest.type_RG, forest.record_RG)
            assert [array[r, g] for array in facts] == [1.0 + i, 0.5 * i, i, 100 + i]
    assert sorted(seen) == list(range(len(trees)))


@settings(deadline=None)
@given(shape=shapes, drawn=st.lists(groups_of_sequences(), max_size=8))
def test_group_and_leaf_numbers_are_valid_and_padding_is_blank(shape, drawn):
    for forest, places in pack([grow(sequences) for sequences in drawn], shape):
        for r, row in enumerate(places):
            assert set(forest.group_RT[r]) - {0} == set(range(1, len(row) + 1))
            assert (forest.readout_RGN[r, len(row) :] == -1).all()
        padding = forest.group_RT == 0
        for array in (forest.tokens_RT, forest.positions_RT, forest.branch_RT, forest.target_weight_RT):
            assert not array[padding].any()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=40), groups=st.integers(1, 5))
def test_rows_hold_every_tree_once_and_none_was_begun_while_another_had_room(sizes, groups):
    rows = arrange([grow([[5] * size]) for size in sizes], 20, groups)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    taken = [sum(sizes[i] for i in row) for row in rows]
    assert all(rows) and all(tokens <= 20 and len(row) <= groups for tokens, row in zip(taken, rows, strict=True))
    for r, row in enumerate(rows):  # what began a row had no room in those before it
        assert all(taken[q] + sizes[row[0]] > 20 or len(rows[q]) == groups for q in range(r))


def test_a_tree_goes_to_the_fullest_row_that_has_room():
    sizes = [1, 9, 10, 12]  # the first one would fit beside 12 as well
    rows = arrange([grow([[5] * size]) for size in sizes], 20, 3)
    assert [[sizes[i] for i in row] for row in rows] == [[12], [10, 9, 1]]


def test_rows_of_a_large_set_are_full():
    sizes = np.random.default_rng(0).integers(100, 400, 20_000)
    rows = arrange([grow([[5] * int(size)]) for size in sizes], 512, 8)
    assert len(rows) * 512 < 1.2 * sizes.sum()


def test_pack_takes_the_same_tree_twice():
    tree, other = grow([[5, 6]], 1), grow([[7, 8]], 2)
    batches = list(pack([tree, other, tree], ForestShape(rows=1, row_tokens=6, groups=3, branches=1)))
    assert sorted(i for _, places in batches for row in places for i in row) == [0, 1, 2]


def test_pack_gives_nothing_for_nothing():
    assert list(pack([], ForestShape(1, 4, 1, 1))) == []


@pytest.mark.parametrize(
    ("sequences", "message"),
    [([[5] * 9], "9 tokens exceed a row of 8; raise row_tokens"), ([[5]] * 3, "3 candidates exceed 2 branches")],
)
def test_a_tree_that_can_never_be_placed_is_refused(sequences, message):
    shape = ForestShape(rows=2, row_tokens=8, groups=2, branches=2)
    tree = grow(sequences)
    assert message in str(shape.refuse(tree))
    with pytest.raises(ValueError, match=message):
        next(pack([grow([[5]]), tree], shape))


def test_a_tree_that_just_fits_is_not_refused():
    shape = ForestShape(rows=1, row_tokens=8, groups=1, branches=2)
    assert shape.refuse(grow([[5] * 8])) is None
    assert shape.refuse(grow([[5] * 7, [5] * 7])) is None  # 6 shared and 1 each
    assert shape.refuse(grow([[5] * 8, [5] * 7])) is not None
    assert shape.refuse(grow([[5], [6]])) is None


def test_the_fullest_row_with_room_is_chosen():
    packer = Packer(ForestShape(rows=3, row_tokens=10, groups=3, branches=1))
    first, second, third, fourth = (grow([[5] * size], record=size) for size in (6, 7, 3, 4))
    assert all(packer.offer(tree) for tree in (first, second, third, fourth))
    assert packer.rows == [[first, fourth], [second, third], []]


def test_a_row_takes_no_more_groups_than_it_has_slots():
    packer = Packer(ForestShape(rows=1, row_tokens=100, groups=2, branches=1))
    assert [packer.offer(grow([[5]])) for _ in range(3)] == [True, True, False]
    assert len(packer.rows[0]) == 2


def test_a_row_is_filled_to_the_last_token():
    packer = Packer(ForestShape(rows=1, row_tokens=6, groups=3, branches=1))
    assert [packer.offer(grow([[5] * size])) for size in (4, 3, 2, 1)] == [True, False, True, False]
    assert (packer.forest().group_RT > 0).all()


# --- mask -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_attention_mask_is_the_definition(data):
    R, T = 2, 7
    array = st.lists(st.lists(st.integers(0, 3), min_size=T, max_size=T), min_size=R, max_size=R)
    group, leaf = np.array(data.draw(array)), np.array(data.draw(array))
    mask = np.asarray(attention_mask(jnp.asarray(group), jnp.asarray(leaf)))
    assert mask.dtype == bool and mask.shape == (R, T, T)
    for r, i, j in itertools.product(range(R), range(T), range(T)):
        same = group[r, i] == group[r, j] and group[r, i] != 0
        assert mask[r, i, j] == (same and leaf[r, j] in (0, leaf[r, i]) and j <= i)


def test_a_prefix_does_not_see_its_leaves_and_leaves_do_not_see_each_other():
    forest = fill(ForestShape(1, 5, 1, 2), [[grow([[5, 6, 7], [5, 8]])]])  # columns: 5 | 6 7 | 8, one of padding
    wanted = ["10000", "11000", "11100", "10010", "00000"]
    assert attention_mask(forest.group_RT, forest.branch_RT)[0].astype(int).tolist() == [
        list(map(int, w)) for w in wanted
    ]


@settings(deadline=None, max_examples=30)
@given(drawn=st.lists(groups_of_sequences(), min_size=1, max_size=6))
def test_unshared_tokens_counts_the_separate_sequences(drawn):
    shape = ForestShape(rows=3, row_tokens=60, groups=6, branches=3)
    counted = sum(int(unshared_tokens(forest)) for forest, _ in pack([grow(s) for s in drawn], shape))
    assert counted == sum(len(s) for sequences in drawn for s in sequences)


def test_a_forest_is_a_pytree_of_its_arrays():
    forest = ForestShape(1, 4, 1, 1).empty()
    assert len(jax.tree.leaves(forest)) == len(dataclasses.fields(forest)) - 1 + len(forest.columns) == 12
    assert jax.tree.map(lambda x: x, forest).shape == (1, 4, 1, 1)
