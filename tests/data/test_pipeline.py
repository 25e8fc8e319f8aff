"""The input pipeline: nothing lost, nothing twice, orders by seed, and a state that continues exactly."""

import dataclasses
import functools
import itertools
import json
import logging
from collections import Counter

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Tree
from rmjax.data.pipeline import LOOKAHEAD, PackForests, Shard, batches, batches_together, tree_dataset
from rmjax.data.pool import PolicyPool
from rmjax.data.record import Comparison
from rmjax.data.samplerows import parse_sample
from rmjax.parallel.hosts import EndTogether

SHAPE = ForestShape(rows=2, row_tokens=24, groups=3, branches=2)


def encode(record: int, index: int) -> list[Tree]:
    """Trees of 1 to 23 tokens, two of them for every fifth record; `type` numbers them."""
    sizes = [1 + (7 * record) % 23, 9][: 1 + (record % 5 == 0)]
    return [Tree.from_sequences([[record + 1] * size], [0], record=index, type=n) for n, size in enumerate(sizes)]


def stream(count: int = 40, *, seed: int = 0, epochs: int | None = 1, **options) -> grain.MapDataset:
    return tree_dataset(range(count), encode, seed=seed, epochs=epochs, **options)


def seen(forests) -> list[tuple[int, int]]:
    """(record, tree number) of every group, in order."""
    found: list[tuple[int, int]] = []
    for forest in forests:
        present = forest.record_RG >= 0
        found += zip(forest.record_RG[present].tolist(), forest.type_RG[present].tolist(), strict=True)
    return found


def every_tree(count: int) -> list[tuple[int, int]]:
    return [(record, n) for record in range(count) for n in range(1 + (record % 5 == 0))]


def assert_same(found: list, wanted: list) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- nothing lost, nothing twice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_tree_once_an_epoch(epochs, prefetch):
    forests = list(batches(stream(epochs=epochs), SHAPE, prefetch))
    assert Counter(seen(forests)) == Counter(every_tree(40) * epochs)
    assert len(forests) > 5


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 30), seed=st.integers(0, 99), lookahead=st.integers(0, 8), rows=st.integers(1, 3))
def test_every_tree_once_whatever_the_sizes(count, seed, lookahead, rows):
    shape = ForestShape(rows, row_tokens=24, groups=2, branches=1)
    forests = list(PackForests(stream(count, seed=seed), shape, lookahead))
    assert sorted(seen(forests)) == every_tree(count)
    assert all((forest.record_RG >= 0).any() for forest in forests)


def test_no_tree_waits_long():
    """A tree stays within a few batches of its place in the stream, however large it is."""
    order = [(tree.record, tree.type) for trees in stream(400) for tree in trees]
    place = {entry: i for i, entry in enumerate(seen(PackForests(stream(400), SHAPE)))}
    behind = max(place[entry] - i for i, entry in enumerate(order))
    assert behind <= LOOKAHEAD + 2 + SHAPE.rows * SHAPE.groups
    assert behind > 1  # the packer did reorder


def test_rows_are_filled():
    forests = list(PackForests(stream(400), SHAPE))
    assert np.mean([(forest.group_RT > 0).mean() for forest in forests[:-LOOKAHEAD]]) > 0.85


# --- what cannot be placed --------------------------------------------------------------------------------------------


def test_trees_that_fit_no_row_are_skipped_counted_and_logged(caplog):
    shape = ForestShape(rows=2, row_tokens=20, groups=3, branches=2)
    too_long = [record for record in range(40) if 1 + (7 * record) % 23 > 20]
    assert len(too_long) == 6
    iterator = iter(PackForests(stream(), shape))
    with caplog.at_level(logging.WARNING):
        found = seen(iterator)
    assert sorted(found) == [entry for entry in every_tree(40) if entry[0] not in too_long or entry[1] == 1]
    assert iterator.get_state()["skipped"] == 6
    # At the first, second and fourth: seen at once, and never a flood.
    assert [record.getMessage().split(" groups")[0] for record in caplog.records] == [f"skipped {n}" for n in (1, 2, 4)]
    assert "tokens exceed a row of 20; raise row_tokens" in caplog.text


def test_groups_of_too_many_candidates_are_skipped_with_the_reason(caplog):
    trees = tree_dataset(
        range(4), lambda r, i: [Tree.from_sequences([[1]] * (r + 1), [0] * (r + 1), record=i)], seed=0, epochs=1
    )
    with caplog.at_level(logging.WARNING):
        found = seen(PackForests(trees, SHAPE))
    assert sorted(record for record, _ in found) == [0, 1]
    assert "3 candidates exceed 2 branches a group; raise data.candidates" in caplog.text


def test_where_nothing_fits_the_stream_ends():
    assert list(PackForests(stream(), ForestShape(1, 0, 1, 1))) == []


def test_an_endless_stream_of_which_nothing_fits_is_an_error():
    with pytest.raises(ValueError, match="none of 1000 groups fits a row, the last because .* raise row_tokens"):
        next(iter(PackForests(stream(epochs=None), ForestShape(1, 0, 1, 1))))


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="the data set is empty"):
        tree_dataset([], encode, seed=0)


# --- order ------------------------------------------------------------------------------------------------------------


def records(trees: grain.MapDataset, count: int | None = None) -> list[int]:
    return [tree.record for i in range(count or len(trees)) for tree in trees[i][:1]]


def test_the_seed_gives_the_order():
    assert records(stream(seed=3)) == records(stream(seed=3))
    assert records(stream(seed=3)) != records(stream(seed=4))
    assert records(stream(seed=3)) != sorted(records(stream(seed=3)))


def test_each_epoch_has_an_order_of_its_own():
    order = records(stream(epochs=3))
    epochs = [order[:40], order[40:80], order[80:]]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_without_a_number_of_epochs_the_stream_is_endless_and_begins_alike():
    endless = stream(epochs=None)
    assert len(endless) > 10**12
    assert records(endless, 120) == records(stream(epochs=3))
    forests = list(itertools.islice(iter(PackForests(endless, SHAPE)), 60))
    assert len(forests) == 60


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("epochs", [1, 2, None])
def test_parts_of_the_stream_do_not_overlap(count, epochs):
    whole = records(stream(epochs=epochs), 40 * (epochs or 2))
    for process in range(count):
        wanted = whole[process::count]
        assert records(stream(epochs=epochs)[process::count], len(wanted)) == wanted


# --- drawing ----------------------------------------------------------------------------------------------------------


def drawn(seed: int, epochs: int | None = 2, **options) -> grain.MapDataset:
    """Numbers drawn by the pipeline's generator, as the token of a tree."""

    def draw(element: int, rng: np.random.Generator) -> Comparison:
        return Comparison(str(element), (str(rng.integers(1, 10**6)),))

    def read(c: Comparison, index: int) -> list[Tree]:
        assert c.prompt == str(10 * index)
        return [Tree.from_sequences([[int(c.outputs[0])]], [0], record=index)]

    return tree_dataset([10 * i for i in range(8)], read, seed=seed, epochs=epochs, draw=draw, **options)


def tokens(trees: grain.MapDataset, count: int) -> list[int]:
    return [int(trees[i][0].branches[0][0]) for i in range(count)]


def test_draws_are_a_function_of_seed_and_position():
    first = tokens(drawn(1), 16)
    assert first == tokens(drawn(1), 16)
    assert first[::-1] == [int(drawn(1)[i][0].branches[0][0]) for i in reversed(range(16))]
    assert len(set(first)) == 16  # another draw of the same element in the next epoch
    assert not set(first) & set(tokens(drawn(2), 16))
    assert tokens(drawn(1, epochs=None), 16) == first


def test_parts_of_the_stream_draw_differently():
    shares = [tokens(drawn(1)[process::2], 8) for process in (0, 1)]
    assert shares[0] != shares[1]
    assert [number for pair in zip(*shares, strict=True) for number in pair] == tokens(drawn(1), 16)


def test_a_policy_pool_is_drawn_from():
    rows = [
        {"prompt_id": p, "prompt": p, "policy": policy, "output": f"{p}/{policy}/{s}"}
        for p in "xyz"
        for policy in "abcd"
        for s in range(3)
    ]
    pool = PolicyPool(parse_sample(row, f"f:{i}") for i, row in enumerate(rows))
    groups: list[Comparison] = []

    def read(c: Comparison, index: int) -> list[Tree]:
        assert c.id == pool[index]
        groups.append(c)
        return []

    trees = tree_dataset(pool, read, seed=0, epochs=4, draw=functools.partial(pool.draw, negatives=2))
    assert list(trees) == [[]] * 12
    assert {len(c.outputs) for c in groups} == {3}
    assert len({c.outputs for c in groups}) > 8


# --- state ------------------------------------------------------------------------------------------------------------


def variants() -> dict[str, grain.IterDataset]:
    small = ForestShape(rows=1, row_tokens=20, groups=2, branches=2)  # some are refused, many wait
    return {
        "plain": PackForests(stream(), SHAPE),
        "skipping": PackForests(stream(), small),
        "impatient": PackForests(stream(epochs=2), SHAPE, lookahead=0),
        "drawn": PackForests(drawn(3), SHAPE),
        "a part of it": PackForests(stream(epochs=2)[1::3], SHAPE),
        "prefetched": batches(stream(), SHAPE, prefetch=2),
        "prefetched far": batches(stream(), small, prefetch=50),
        "two": batches_together({"a": (stream(), SHAPE), "b": (drawn(3, epochs=None), small)}),
        "two not ahead": batches_together({"a": (stream(), small), "b": (stream(seed=5), SHAPE)}, prefetch=0),
    }


@pytest.mark.parametrize("name", variants())
def test_the_state_after_any_batch_continues_exactly(name):
    """grain's `assert_equal_output_after_checkpoint` wants states of one structure and elements that compare by ==."""
    data = variants()[name]
    iterator = iter(data)
    states, forests = [json.dumps(iterator.get_state())], []
    for forest in iterator:
        forests.append(forest)
        states.append(json.dumps(iterator.get_state()))
    assert len(forests) >= 3
    for k, state in enumerate(states):
        fresh = iter(data)
        fresh.set_state(json.loads(state))
        assert json.dumps(fresh.get_state()) == state
        assert_same(list(fresh), forests[k:])


def test_streams_side_by_side_are_the_streams():
    """Until the shorter one ends; each in its own order."""
    shape = ForestShape(rows=1, row_tokens=20, groups=2, branches=2)
    together = list(batches_together({"a": (stream(), SHAPE), "b": (stream(seed=5, epochs=None), shape)}))
    alone = list(PackForests(stream(), SHAPE))
    assert_same([batch["a"] for batch in together], alone)
    other = itertools.islice(iter(PackForests(stream(seed=5, epochs=None), shape)), len(alone))
    assert_same([batch["b"] for batch in together], list(other))


def test_some_states_have_trees_waiting():
    """Without this the test above would say little."""

    def waiting(data: grain.IterDataset) -> list[list]:
        iterator = iter(data)
        return [iterator.get_state()["waiting"] for _ in iterator]

    assert max(map(len, waiting(variants()["skipping"]))) > 5
    plain = itertools.chain(*waiting(variants()["plain"]))
    assert any(number == 1 for _, number in plain)  # second trees of a record among them


def test_an_iterator_can_be_set_back_and_forth():
    iterator = iter(PackForests(stream(), SHAPE))
    first = list(itertools.islice(iterator, 2))
    state = iterator.get_state()
    rest = list(iterator)
    iterator.set_state(state)
    assert_same(list(iterator), rest)
    iterator.set_state({"next": 0, "waiting": [], "skipped": 0})
    assert_same(list(iterator), first + rest)


def test_a_state_stays_as_it_was_taken():
    iterator = iter(PackForests(stream(), SHAPE))
    next(iterator)
    state = iterator.get_state()
    copy = json.dumps(state)
    list(iterator)
    assert json.dumps(state) == copy


def test_prefetching_gives_the_same_batches():
    assert_same(list(batches(stream(), SHAPE, prefetch=3)), list(batches(stream(), SHAPE, prefetch=0)))


def test_an_error_while_reading_reaches_the_caller_of_a_prefetched_batch():
    def read(record: int, index: int) -> list[Tree]:
        raise ValueError(f"record {record} is broken")

    with pytest.raises(ValueError, match="record . is broken"):
        next(iter(batches(tree_dataset(range(3), read, seed=0), SHAPE)))


# --- several processes ------------------------------------------------------------------------------------------------

ROWS = ForestShape(rows=8, row_tokens=24, groups=3, branches=2)


def shared(*mine: int, epochs: int | None = None, prefetch: int = 2):
    """The batches of a process that packs these of four streams."""
    return iter(batches(stream(epochs=epochs), ROWS, prefetch, Shard(4, mine)))


def stacked(*parts):
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


@pytest.mark.parametrize("shares", [[(0,), (1,), (2,), (3,)], [(0, 1), (2, 3)]], ids=["four", "two"])
def test_the_parts_of_all_processes_are_the_batch_of_one(shares):
    whole = itertools.islice(shared(0, 1, 2, 3), 12)
    parts = zip(*(shared(*mine) for mine in shares), strict=True)
    assert_same([stacked(*part) for part in itertools.islice(parts, 12)], list(whole))
    assert len(next(shared(*shares[0])).tokens_RT) == 8 // len(shares)  # and no more is read


def test_streams_lose_nothing_and_give_nothing_twice():
    found = EndTogether(shared(0, 1, 2, 3, epochs=3))
    assert Counter(seen(found)) == Counter(every_tree(40) * 3)
    assert next(found, None) is None


def test_a_stream_that_ends_early_leaves_its_rows_empty():
    iterator = shared(0, 1, 2, 3, epochs=1, prefetch=0)
    forests = list(itertools.islice(iterator, 30))
    full = np.array([(forest.group_RT > 0).reshape(4, -1).any(axis=1) for forest in forests])
    assert any(row.any() and not row.all() for row in full)
    assert not full[-1].any()


def test_another_number_of_processes_goes_on_where_they_stopped():
    """The state of a batch is that of its streams, whoever packs them."""
    whole = list(itertools.islice(shared(0, 1, 2, 3), 12))
    two = [shared(0, 1), shared(2, 3)]
    for _ in range(5):
        parts = [next(iterator) for iterator in two]
    assert_same([stacked(*parts)], whole[4:5])
    states = [json.loads(json.dumps(iterator.get_state()))["streams"] for iterator in two]
    for shares in ([(0, 1, 2, 3)], [(0,), (1,), (2,), (3,)]):
        iterators = [shared(*mine) for mine in shares]
        for iterator in iterators:
            iterator.set_state({"streams": states[0] | states[1]})
        rest = itertools.islice(zip(*iterators, strict=True), 7)
        assert_same([stacked(*part) for part in rest], whole[5:])


def test_data_sets_side_by_side_are_shared_alike():
    def together(*mine):
        both = {"a": (stream(epochs=None), ROWS), "b": (stream(seed=5, epochs=None), dataclasses.replace(ROWS, rows=4))}
        return itertools.islice(batches_together(both, share=Shard(4, mine)), 5)

    parts = zip(together(0, 1), together(2, 3), strict=True)
    stuck = [{name: stacked(one[name], other[name]) for name in "ab"} for one, other in parts]
    assert_same(stuck, list(together(0, 1, 2, 3)))


def test_rows_that_do_not_divide_into_streams():
    with pytest.raises(ValueError, match="8 rows do not divide into 3 streams"):
        batches(stream(), ROWS, share=Shard(3, (0,)))
