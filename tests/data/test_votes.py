"""Votes as soft order: fractions by hand, strengths, and what is refused."""

import json
import logging

import numpy as np
import pytest

from rmjax.data.record import Comparison, RecordError, parse
from rmjax.data.sources import comparisons
from rmjax.data.votes import Order, vote_fractions
from rmjax.methods.preference import Loss
from rmjax.settings import Data

VOTED = Comparison("p", ("a", "b", "c"), votes=((2, 1, 1), (0, 3, 3), (1, 1, 1), (5, 1, 1)), place="f:3")
THREE_QUARTERS = [[-1, 0.625, 0.625], [0.375, -1, -1], [0.375, -1, -1]]  # two for a, one against, one tie


def test_fractions_count_ties_one_half_and_leave_out_what_nobody_orders():
    np.testing.assert_allclose(vote_fractions(VOTED.votes), THREE_QUARTERS)


@pytest.mark.parametrize(
    ("order", "field", "wanted"),
    [
        (Order("votes"), "", None),
        (Order("votes", "margin", scale=2.0), "pair_margin", [0.5, -0.5, 0]),  # of (a, b), (b, a), (b, c)
        (Order("votes", "weight", scale=2.0), "pair_weight", [0.5, 0.5, 0]),
        (Order("votes", "margin", "values"), "pair_margin", [0.5, -0.5, 0]),  # mean of 1, −3, 0, 4
        (Order("votes", "weight", "values", scale=4.0), "pair_weight", [2, 2, 0]),
    ],
)
def test_strength_becomes_margin_or_weight(order, field, wanted):
    found = order.apply(VOTED).columns
    np.testing.assert_allclose(found["pair_target"], THREE_QUARTERS)
    assert set(found) == {"pair_target", field} - {""}
    assert len(order.columns) == len(found)
    if field:
        (_, ab, _), (ba, _, bc), _ = found[field]
        assert [ab, ba, bc] == wanted


def test_records_without_votes_are_refused_or_their_ranks_count_as_unanimous():
    ranked = Comparison("p", ("a", "b", "c"), ranks=(0, 1, 1), place="f:4")
    with pytest.raises(RecordError, match=r"^f:4: field `votes`: missing, .*config.loss.without_votes=ranks"):
        Order("votes").apply(ranked)
    found = Order("votes", "margin", without_votes="ranks").apply(ranked).columns
    assert found["pair_target"] == ((-1, 1, 1), (0, -1, -1), (0, -1, -1))
    assert found["pair_margin"] == ((0, 1, 1), (-1, 0, 0), (-1, 0, 0))
    with pytest.raises(RecordError, match="^f:5: field `votes`: no voter orders two outputs"):
        Order("votes").apply(Comparison("p", ("a", "b"), votes=((1, 1),), place="f:5"))
    with pytest.raises(RecordError, match="all candidates are tied"):
        Order("ranks").apply(Comparison("p", ("a", "b"), ranks=(1, 1)))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"pair_target": [[-1, 0.75], [0.25, -1]], "pair_margin": [[0, 1], [-1, 0]]}, None),
        ({}, "field `pair_target`: missing"),
        ({"pair_target": [[-1, -1], [-1, -1]]}, "no pair has a target"),
        ({"pair_target": [[-1, 0.75], [0.5, -1]]}, "contradict each other"),
        ({"pair_target": [[-1, 0.75], [-1, -1]]}, "contradict each other"),
        ({"pair_target": [[-1, 1], [0, -1]], "pair_weight": [[0, 1], [2, 0]]}, "field `pair_weight`: .*contradict"),
        ({"pair_target": [[-1, 1], [0, -1]], "pair_margin": [[0, 1], [1, 0]]}, "field `pair_margin`: .*contradict"),
    ],
)
def test_targets_of_a_file(fields, problem):
    record = parse({"prompt": "p", "outputs": ["a", "b"], **fields}, "f:1")
    if problem is None:
        assert Order("targets").apply(record) == record
        return
    with pytest.raises(RecordError, match=problem):
        Order("targets").apply(record)


def test_a_weight_that_is_0_for_every_pair_is_refused():
    with pytest.raises(ValueError, match="config.loss.strength_scale is 0, which gives every pair the weight 0"):
        Order.of(Loss(order="votes", strength="weight", strength_scale=0.0))
    assert Order.of(Loss(order="votes", strength="margin", strength_scale=0.0)).scale == 0  # no margin


def test_votes_that_are_all_split_weigh_nothing(tmp_path, caplog):
    path, data = tmp_path / "f.jsonl", Data(kind="comparisons", path=str(tmp_path / "f.jsonl"), reference="optional")
    split = '{"prompt": "p", "outputs": ["a", "b"], "votes": [[1, 0], [0, 1]]}\n'
    path.write_text(split)
    weighed = Order("votes", "weight")
    with pytest.raises(ValueError, match="has weight 0, or only pairs of weight 0 .votes that are evenly split"):
        comparisons(data, weighed)
    assert len(comparisons(data, Order("votes"))) == 1  # a target of one half is something to learn
    path.write_text(split + split.replace("[0, 1]", "[1, 0]"))
    with caplog.at_level(logging.WARNING):
        comparisons(data, weighed)
    assert "1 of 2 records have only pairs of weight 0, so nothing is learned from them" in caplog.text


def test_pair_weights_of_a_file_that_are_all_0_are_refused(tmp_path):
    path, data = tmp_path / "f.jsonl", Data(kind="comparisons", path=str(tmp_path / "f.jsonl"), reference="optional")
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "pair_target": [[-1, 0.75], [0.25, -1]]}
    path.write_text(json.dumps(row | {"pair_weight": [[0, 0], [0, 0]]}) + "\n")
    with pytest.raises(ValueError, match="only pairs of weight 0"):
        comparisons(data, Order("targets"))
    assert len(comparisons(data)) == 1  # ranks read no weights of pairs


def test_a_file_of_weight_0_only_is_refused(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0}\n')
    with pytest.raises(ValueError, match="every record of .* has weight 0"):
        comparisons(Data(kind="comparisons", path=str(path), reference="optional"))


def test_ranks_that_are_learned_leave_a_soft_order_behind():
    record = parse({"prompt": "p", "chosen": "a", "rejected": "b", "pair_target": [[-1, 1], [0, -1]]}, "f:1")
    assert record.columns and not Order().apply(record).columns
