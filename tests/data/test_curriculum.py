"""The curriculum: easy pairs first within a window, the fraction to leave out, and a state that gives the same batches again."""

import json

import numpy as np
import pytest

from rmjax.data.curriculum import Curriculum, Schedule
from rmjax.data.packing import ForestShape, Packer, Tree

SHAPE = ForestShape(1, 8, 2, 2, ("discard_RG",))
MARGINS = [3.0, -1.0, 5.0, 2.0, 7.0, 0.0, 1.0, -4.0]


def tree(i: int) -> Tree:
    return Tree(np.asarray([i]), (np.asarray([i]), np.asarray([i])), np.asarray([0, 1]), record=i)


class Counting:
    """Batches of trees 0 1, 2 3, …"""

    at = 0

    def next(self, state, step):
        if self.at == len(MARGINS):
            return None
        packer = Packer(SHAPE)
        for i in (self.at, self.at + 1):
            packer.offer(tree(i))
        self.at += 2
        return packer.forest()

    def get_state(self):
        return self.at

    def set_state(self, state):
        self.at = state


def margins(state, forest):
    return np.asarray([[MARGINS[i] for i in row] for row in np.maximum(forest.record_RG, 0)]) * state


def source(estimate=None, **schedule):
    return Curriculum(Counting(), SHAPE, margins, Schedule(0.4, **schedule), estimate)


def drawn(found, steps, state=1.0):
    batches = [found.next(state, step) for step in steps]
    return [None if batch is None else batch.record_RG[0].tolist() for batch in batches]


def test_batches_as_they_come():
    assert drawn(source(), range(1, 6)) == [[0, 1], [2, 3], [4, 5], [6, 7], None]


def test_easy_pairs_come_first_within_a_window():
    assert drawn(source(window=2), range(1, 6)) == [[2, 0], [3, 1], [4, 6], [5, 7], None]
    assert drawn(source(window=4), range(1, 5)) == [[4, 2], [0, 3], [6, 5], [1, 7]]
    assert drawn(source(window=3), range(1, 6)) == [[4, 2], [0, 3], [5, 1], [6, 7], None]  # the last window is shorter
    assert drawn(source(window=2, start=2), range(1, 5)) == [[0, 1], [2, 3], [4, 6], [5, 7]]
    assert drawn(source(window=2), range(1, 3), state=0.0) == [[0, 1], [2, 3]]  # equal margins: as they came


@pytest.mark.parametrize("stop", range(6))
def test_a_source_that_goes_on_gives_the_same_batches(stop):
    whole, stopped, resumed = (source(lambda m: float(np.mean(m)), window=2, ramp=4) for _ in range(3))
    wanted = [whole.next(1.0, step) for step in range(1, 6)]
    for step in range(1, stop):
        stopped.next(1.0, step)
    resumed.set_state(json.loads(json.dumps(stopped.get_state())))
    for step in range(max(stop, 1), 6):
        found, batch = resumed.next(1.0, step), wanted[step - 1]
        assert (found is None) == (batch is None)
        if batch is not None:
            np.testing.assert_array_equal(found.record_RG, batch.record_RG)
            np.testing.assert_array_equal(found.discard_RG, batch.discard_RG)


def test_of_a_sorted_window_the_hardest_are_left_out():
    found = source(window=4)  # 40 % of 8 pairs: 3 of them, one in the third batch, both of the last
    assert [float(found.next(1.0, step).discard_RG[0, 0]) for step in range(1, 5)] == [0, 0, 0.5, 1]


def test_the_fraction_grows_and_follows_the_estimate():
    found = source(ramp=4)
    assert [round(float(found.next(1.0, step).discard_RG[0, 0]), 6) for step in (1, 2, 4)] == [0.1, 0.2, 0.4]
    guessed = source(lambda m: 0.25, window=2)
    assert [guessed.next(1.0, step).discard_RG.tolist() for step in (1, 2)] == [[[0, 0]], [[0.5, 0.5]]]
