"""Which blocks are kept: what comes again, oldest out, never a block without those before it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.serve.blocks import BLOCK, Blocks
from rmjax.serve.items import key


def text(*blocks, rest=(1,)):
    """A sequence of whole blocks, each of one number, and a rest."""
    return key([*np.repeat(blocks, BLOCK).tolist(), *rest])


def stored(blocks, sequence, together=10_000):
    blocks.begin()
    return blocks.run(sequence, together)


def test_what_is_kept_is_found_up_to_the_first_block_that_differs():
    blocks = Blocks(8)
    new = stored(blocks, text(1, 2, 3))
    assert [*new] == [0, 1, 2]
    assert blocks.kept(text(1, 2, 3)) == tuple(new.values())
    assert blocks.kept(text(1, 2, 4)) == (new[0], new[1])
    assert blocks.kept(text(2, 1)) == ()


def test_a_sequence_is_left_a_token():
    blocks = Blocks(8)
    stored(blocks, text(1, 2))
    assert len(blocks.kept(text(1, 2, rest=()))) == 1


def test_alone_it_is_stored_the_second_time():
    blocks = Blocks(8)
    assert stored(blocks, text(1, 2, 5), together=0) == {}
    assert [*stored(blocks, text(1, 2, 6), together=0)] == [0, 1]
    assert [*stored(blocks, text(1, 2, 6), together=0)] == [2]


def test_the_least_recently_used_goes():
    blocks = Blocks(3)
    for number in (1, 2, 3):
        stored(blocks, text(number))
    blocks.begin()
    blocks.use(text(1), 1)
    stored(blocks, text(4))
    assert [bool(blocks.kept(text(number))) for number in (1, 2, 3, 4)] == [True, False, True, True]


def test_what_a_turn_uses_stays():
    blocks = Blocks(2)
    blocks.begin()
    places = [*blocks.run(text(1), 999).values(), *blocks.run(text(2), 999).values()]
    assert sorted(places) == [0, 1] and blocks.run(text(3), 999) == {}
    assert len(stored(blocks, text(3))) == 1


@given(st.lists(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3), max_size=12))
@settings(max_examples=100, deadline=None)
def test_the_places_hold_what_they_are_taken_for(turns):
    """Played on a pool of texts; in a turn it is read before it is written, as on the device."""
    blocks, pool = Blocks(5), {}
    for turn in turns:
        sequences = [text(*numbers) for numbers in turn]
        found = [blocks.kept(each) for each in sequences]
        for numbers, places in zip(turn, found, strict=True):
            assert [pool[place] for place in places] == [tuple(numbers[: n + 1]) for n in range(len(places))]
        blocks.begin()
        for sequence, places in zip(sequences, found, strict=True):
            blocks.use(sequence, len(places))
        written = []
        for numbers, sequence in zip(turn, sequences, strict=True):
            for n, place in blocks.run(sequence, 999).items():
                pool[place] = tuple(numbers[: n + 1])
                written.append(place)
        assert len({*written}) == len(written) and len(blocks) <= 5
