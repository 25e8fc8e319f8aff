"""Waiting sequences → batches: each one once, sharing exact, shapes of the ladder alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.serve.blocks import BLOCK
from rmjax.serve.items import key
from rmjax.serve.ladder import PASTS, grouped, ladder, past_columns, plan

SHAPES = ladder(64, 256, tiled=False)
TILED = ladder(64, 512, tiled=True)
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=64).map(key), min_size=1, max_size=40)


def batches(waiting, shapes):
    while waiting:
        batch = plan(waiting, shapes)
        yield batch
        assert waiting[0] in batch.keys, "the oldest one waits on"
        waiting = [each for each in waiting if each not in set(batch.keys)]


@given(SEQUENCES, st.sampled_from([SHAPES, TILED]))
@settings(max_examples=100, deadline=None)
def test_every_sequence_is_in_one_batch_and_can_be_read_back(waiting, shapes):
    seen = []
    for batch in batches(waiting, shapes):
        assert batch.shape in shapes and len(batch.rows) <= batch.shape.rows
        for row, trees in zip(batch.rows, batch.trees(), strict=True):
            assert sum(tree.size for tree in trees) <= batch.shape.row_tokens and len(row) <= batch.shape.groups
            for group, tree in zip(row, trees, strict=True):
                assert tree.size == group.tokens and len(tree.branches) <= batch.shape.branches
                assert all(len(branch) for branch in tree.branches)
                whole = [key(np.concatenate([tree.prefix, branch])) for branch in tree.branches]
                assert whole == [batch.sequences[i] for i in group.members]
                seen += whole
    assert sorted(seen) == sorted(set(waiting))


def test_answers_to_a_prompt_share_it_in_whatever_order_they_come():
    header, prompts = [9] * 20, [[i] * 30 for i in range(4)]
    answers = {key([*header, *prompts[p], 50 + a]): p for a in range(8) for p in range(4)}
    groups = grouped(list(answers), most_tokens=64)
    assert sorted(len(group.members) for group in groups) == [8] * 4
    assert all(len({list(answers.values())[i] for i in group.members}) == 1 for group in groups)
    assert {group.shared for group in groups} == {50}


def test_a_single_answer_does_not_part_a_prompts_answers():
    """It sorts before them and shares a header with them."""
    lone, many = key([9] * 20 + [1] * 20), [key([9] * 20 + [2] * 20 + [50 + a]) for a in range(6)]
    groups = grouped([lone, *many], most_tokens=128)
    assert sorted((len(group.members), group.shared) for group in groups)[-1] == (6, 40)


def test_equal_sequences_are_run_once():
    assert plan([key([1, 2])] * 5, SHAPES).keys == [key([1, 2])]


def test_a_few_texts_do_not_pay_for_a_full_batch():
    dense = ladder(128, 1024, tiled=False)
    for count, tokens in ((1, 256), (8, 1024)):
        shape = plan([key([i] * 100) for i in range(count)], dense).shape
        assert shape.rows * shape.row_tokens == tokens
    assert plan([key([1] * 10)], TILED).shape.row_tokens == 256


def test_long_rows_cost_more_where_attention_is_dense():
    shapes = ladder(128, 1024, tiled=False)
    waiting = [key([i] * 100) for i in range(4)]
    assert plan(waiting, shapes, 0.0).shape.row_tokens == 512
    assert plan([key([i] * 120) for i in range(8)], shapes, 0.1).shape.row_tokens == 256


@pytest.mark.parametrize(
    ("longest", "batch_tokens", "tiled", "rows", "wanted"),
    [
        (100, 512, False, 1, [(1, 256), (2, 256), (1, 512)]),
        (600, 2048, False, 1, [(1, 256), (4, 256), (8, 256), (1, 512), (4, 512), (1, 1024), (2, 1024)]),
        (100, 2048, True, 1, [(1, 256), (1, 512), (1, 1024), (1, 2048)]),
        (100, 2048, True, 4, [(4, 256), (4, 512)]),
        (3000, 2048, True, 1, [(1, 256), (1, 512), (1, 1024), (1, 2048), (1, 4096)]),
        (20, 64, True, 1, [(1, 64)]),
    ],
)
def test_the_ladder(longest, batch_tokens, tiled, rows, wanted):
    shapes = ladder(longest, batch_tokens, tiled, rows)
    assert [(shape.rows, shape.row_tokens) for shape in shapes] == wanted


def test_what_is_kept_is_not_run_and_its_columns_are_shared():
    """Answers to two prompts, one of which is kept whole: its answers are branches side by side."""
    known, other = [7] * BLOCK, [8] * BLOCK
    waiting = [key([*prompt, 20 + n, n]) for prompt in (known, other) for n in range(9)]
    batch = plan(waiting, SHAPES, kept=lambda each: (3,) if each.startswith(key(known)) else ())
    groups = {(len(group.members), group.shared, group.tokens, group.past) for row in batch.rows for group in row}
    assert groups == {(9, 0, 18, (3,)), (9, BLOCK, BLOCK + 18, ())}
    assert sorted(batch.keys) == sorted(waiting)


def test_a_row_continues_no_more_than_its_past_has_room_for():
    waiting = [key([*[n] * 8 * BLOCK, 1]) for n in range(40)]
    batch = plan(waiting, TILED, kept=lambda each: tuple(range(8 * each[3], 8 * each[3] + 8)))
    total = sum(BLOCK * len(group.past) for row in batch.rows for group in row)
    assert 0 < total <= past_columns(batch.shape, total) == PASTS[-1] * batch.shape.row_tokens
