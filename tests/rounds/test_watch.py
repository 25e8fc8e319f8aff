"""A run ends where gold falls, keeps its best state, and knows both again when it goes on."""

import pytest

from rmjax.rounds.watch import Watch
from rmjax.settings import AnswersEval

GOLD = [0.1, 0.5, 0.45, 0.3, 0.48, 0.2, 0.2, 0.9]


def watch(kept=None, **entry):
    return Watch({"held": AnswersEval(**entry)}, lambda step, state: None if kept is None else kept.append(step))


def values(gold):
    return {"gold": gold, "reward": 1.0}


def first_stop(found, golds=GOLD):
    for step, gold in enumerate(golds):
        found.seen(step, "held", values(gold), None)
        if found.stop:
            return step
    return None


@pytest.mark.parametrize(
    ("patience", "drop", "step"), [(1, 0.0, 2), (1, 0.1, 3), (2, 0.1, 6), (4, 0.0, 5), (9, 0.0, None), (0, 0.0, None)]
)
def test_it_stops_after_so_many_evaluations_below_the_best(patience, drop, step):
    kept = []
    assert first_stop(watch(kept, patience=patience, drop=drop)) == step
    assert kept[:2] == [0, 1]


def test_it_recalls_what_was_written():
    lines = [{"step": i, "eval/held/gold": gold, "eval/held/reward": 1.0} for i, gold in enumerate(GOLD)]
    seen, recalled = watch(patience=2, drop=0.1), watch(patience=2, drop=0.1)
    first_stop(seen, GOLD[:6])
    recalled.recall([{"step": 3, "train/loss": 1.0}, *lines[:6]])
    assert (recalled.best, recalled.below) == (seen.best, seen.below) and not recalled.stop
    recalled.recall(lines[6:7])
    assert "more than 0.1 below its best, 0.5, for 2 evaluations" in recalled.stop


def test_without_gold_it_looks_at_the_reward_and_at_its_own_evaluations_only():
    found = watch(patience=1)
    found.seen(0, "other", {"gold": 1.0}, None)
    found.seen(1, "held", {"reward": 0.5}, None)
    found.seen(2, "held", {"answers": 0.0}, None)
    assert found.best == {"held": 0.5} and not found.stop
