"""Strengths by hand (equation 4), what is made of them, and strengths that cannot be right."""

import dataclasses
import json

import numpy as np
import pytest

from rmjax.data.again import Again
from rmjax.data.record import RecordError, parse, to_row
from rmjax.data.sources import comparisons
from rmjax.data.strength import (
    CROSS_FITTED,
    IN_SAMPLE,
    Rules,
    applied,
    by_strength,
    carried,
    check,
    measured,
    strength_of,
    with_strengths,
)
from rmjax.data.votes import Order
from rmjax.settings import Data


def record(strength, number=0, **fields):
    """A pair whose label the models support by so much."""
    pair = {"pair_strength": [[0, strength], [-strength, 0]], "pair_votes": [[0.5, 0.75], [0.25, 0.5]]}
    return parse(
        {"prompt": "p", "chosen": "good", "rejected": "bad", "id": f"r{number}", **pair, **fields}, f"f:{number}"
    )


def test_equation_4_by_hand():
    found = measured(np.array([[3.0, 0.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0]]))  # differences 2 −1 0 2
    assert found["pair_strength"] == ((0, 0.75), (-0.75, 0))
    assert found["pair_votes"] == ((0.5, 0.625), (0.375, 0.5))  # the split vote counts one half
    wanted = np.sqrt(np.mean((np.array([2, -1, 0, 2]) - 0.75) ** 2))  # divisor M
    assert found["pair_deviation"][0][1] == pytest.approx(wanted) == found["pair_deviation"][1][0]


def test_members_that_learned_from_a_record_and_those_that_did_not():
    rewards = np.array([[3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    both = with_strengths(record(0), rewards, np.array([True, False, True]))
    assert strength_of(both, IN_SAMPLE) == 1.0 and strength_of(both, CROSS_FITTED) == -1.0
    alone = with_strengths(both, rewards, np.ones(3, bool))
    assert strength_of(alone, IN_SAMPLE) == pytest.approx(1 / 3)
    with pytest.raises(RecordError, match="field `pair_cross_strength`: missing, and config.loss.order is strength"):
        strength_of(alone, CROSS_FITTED)


def pairs(c):
    return tuple(c.columns[f"pair_{name}"][0][1] for name in ("target", "margin"))


@pytest.mark.parametrize(
    ("rules", "strength", "wanted"),
    [
        (Rules(margin=0.5), 2.0, (1, 1)),
        (Rules(margin=0.5), -2.0, (1, -1)),  # a suspect that is not flipped has a negative margin
        (Rules(margin=0.5, margin_limit=0.3), 2.0, (1, 0.3)),
        (Rules(smooth=0.1), -2.0, (0.9, 0)),
        (Rules(smooth=0.1), 2.0, (1, 0)),  # only suspects are smoothed
        (Rules(smooth=0.1, below=3.0), 2.0, (0.9, 0)),
        (Rules(soft="sigmoid"), 2.0, (1 / (1 + np.exp(-2)), 0)),
        (Rules(soft="votes"), 2.0, (0.75, 0)),
        (Rules(margin=0.5, flipped=-1.0), -2.0, (0, -1)),  # as (j, i): target 1 and margin +1
        (Rules(smooth=0.1, below=3.0, flipped=-1.0), -2.0, (0, 0)),  # what is flipped is no suspect any more
    ],
)
def test_what_strengths_are_used_for(rules, strength, wanted):
    found = applied(rules, record(strength))
    assert pairs(found) == pytest.approx(wanted)
    target, margin = np.asarray(found.columns["pair_target"]), np.asarray(found.columns["pair_margin"])
    assert np.diag(target).tolist() == [-1, -1] and target[0, 1] + target[1, 0] == pytest.approx(1)
    assert np.array_equal(margin, -margin.T)


def test_the_weakest_are_flipped_or_left_out_where_they_are_suspect():
    found = [record(s, i) for i, s in enumerate([3, -1, 0.5, -4, 2, -2, 1, 5, 4, 6])]
    kept, taken = by_strength(Rules(flip=0.2, filter=0.1), found, "f")
    assert taken == 1 and [c.id for c in kept] == ["r0", "r1", "r2", "r4", "r5", "r6", "r7", "r8", "r9"]
    assert [c.id for c in kept if c.ranks == (1, 0)] == ["r5"]  # the weakest but the one that is gone
    assert [c.ranks for c in by_strength(Rules(flip=1.0), found, "f")[0]].count((1, 0)) == 3  # only suspects
    assert [c.ranks for c in by_strength(Rules(flip=0.5, below=1.5), found, "f")[0]].count((1, 0)) == 5
    equal, _ = by_strength(Rules(flip=0.1, filter=0.1), [*found, record(7, 10)], "f")
    assert [c.id for c in equal if c.ranks == (1, 0)] == ["r5"]  # of those that the filter leaves
    again = Again(found, np.arange(10), lambda c: c)
    lazy, gone = by_strength(Rules(flip=0.2, filter=0.1), again, "f")
    assert gone == 1 and list(lazy) == kept


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"pair_strength": None}, "field `pair_strength`: missing, .*write them with python -m experiments.strength"),
        ({"pair_strength": [[0, 1], [1, 0]]}, "field `pair_strength`: .*contradict each other"),
        ({"pair_votes": [[0.5, 0.75], [0.5, 0.5]]}, "field `pair_votes`: the votes for i and for j do not add up to 1"),
    ],
)
def test_strengths_that_cannot_be_right(fields, problem):
    with pytest.raises(RecordError, match=problem):
        Order("strength", rules=Rules()).apply(record(1.0, **fields))


def test_all_ties_and_rules_that_leave_nothing():
    with pytest.raises(ValueError, match="f: every in_sample strength is 0: the vote models tell nothing apart"):
        by_strength(Rules(flip=0.1), [record(0.0), record(0.0)], "f")
    with pytest.raises(ValueError, match="config.strength.filter leaves no record"):
        by_strength(Rules(filter=1.0, below=9.0), [record(1.0), record(2.0)], "f")
    with pytest.raises(ValueError, match="config.strength uses it for nothing"):
        check(Rules())
    with pytest.raises(
        ValueError, match="config.strength.soft is 'votes', which gives every target, and strength.smooth"
    ):
        check(Rules(soft="votes", smooth=0.1))
    with pytest.raises(
        ValueError, match="strength.soft is 'sigmoid', which gives every target, and strength.flip is 0.1"
    ):
        check(Rules(soft="sigmoid", flip=0.1))


def test_strengths_of_another_data_set():
    plain = [dataclasses.replace(record(0, i), columns={}) for i in range(2)]
    assert carried([record(1, 0), record(2, 1), record(3, 2)], plain, "run")[1].columns == record(2, 1).columns
    with pytest.raises(
        ValueError, match="run has the strengths of another data set: 1 of 2 records are not in it, .* r1"
    ):
        carried([record(1, 0), record(2, 7)], plain, "run")
    other = dataclasses.replace(record(2, 1), outputs=("else", "bad"))
    with pytest.raises(ValueError, match="1 of 2 records"):
        carried([record(1, 0), other], plain, "run")
    without = [dataclasses.replace(record(x), id="", prompt=prompt) for x, prompt in ((5, "q1"), (-5, "q2"))]
    found = carried(without, [dataclasses.replace(c, columns={}) for c in without], "run")
    assert [strength_of(c, IN_SAMPLE) for c in found] == [5, -5]
    with pytest.raises(ValueError, match="run has record r0 twice, with two strengths; keep one of them"):
        carried([record(1, 0), record(2, 0)], plain[:1], "run")


def test_from_a_file(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(to_row(record(s, i))) + "\n" for i, s in enumerate([3, -1, 2])))
    data = Data(kind="comparisons", path=str(path), reference="optional")
    found = comparisons(data, Order("strength", rules=Rules(filter=0.4, margin=1.0)))
    assert [c.id for c in found.each()] == ["r0", "r2"] and pairs(found.source[1]) == (1, 2)
    assert found.skipped == {"a strength among the weakest (config.strength.filter)": 1}
    assert Order("strength").columns == ("target_RGNN", "weight_RGNN", "margin_RGNN")
