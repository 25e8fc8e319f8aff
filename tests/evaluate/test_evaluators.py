"""Evaluators: rows in long form, the numbers of a training log, and nothing where there is nothing to evaluate."""

import logging
from collections import Counter

import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.comparisons import evaluate_comparisons
from rmjax.evaluate.discrimination import discriminate
from rmjax.evaluate.evaluators import EVALUATORS
from rmjax.evaluate.gaps import describe_gaps
from rmjax.evaluate.rows import Row, gain, grouped, mean


class Given:
    """A scorer of given scores."""

    name = "given"

    def __init__(self, scores):
        self.scores, self.counts = scores, Counter()

    def score(self, records, progress=False):
        return self.scores


RECORDS = [
    Comparison(prompt, ("a", "bb"), ("r",), ranks=(0.0, 1.0), policies=("x", "y"), id=f"{prompt}{i}", category="c")
    for prompt in "pq"
    for i in range(2)
]
SCORES = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 0.0]]


def test_numbers_are_those_of_the_published_dictionaries():
    found = {name: evaluator.metrics(Given(SCORES), RECORDS) for name, evaluator in EVALUATORS.items()}
    overall = evaluate_comparisons(RECORDS, SCORES)["overall"]
    wanted = {"accuracy": 0.625, "low": overall["low"], "high": overall["high"], "ties": 1.0}
    assert found["preference"] == found["discrimination"] == wanted
    assert discriminate(RECORDS, SCORES)["overall"]["low"] == overall["low"]
    assert found["gaps"] == describe_gaps(SCORES)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("preference", {"credit", "tied", "pair"}),
        ("discrimination", {"credit", "same_reward", "other_reward"}),
        ("gaps", {"gap", "reward", "difference_rescaled"}),
    ],
)
def test_rows_name_item_cluster_and_metric(name, metrics):
    rows = EVALUATORS[name](Given(SCORES), RECORDS)
    assert {row.metric for row in rows} == metrics
    assert {(row.item, row.cluster) for row in rows} == {("p0", "p"), ("p1", "p"), ("q0", "q"), ("q1", "q")}


@pytest.mark.parametrize(
    ("name", "record", "why"),
    [
        ("preference", Comparison("p", ("a", "b")), "order unknown"),
        ("gaps", Comparison("p", ("a",)), "one output"),
        ("discrimination", None, "there is none"),
    ],
)
def test_nothing_to_evaluate_is_absent_and_said(name, record, why, caplog):
    records = [record] if record else []
    with caplog.at_level(logging.WARNING):
        assert EVALUATORS[name].metrics(Given([[0.0] * len(c.outputs) for c in records]), records) == {}
    assert f"{name}: none of {len(records)} records can be evaluated" in caplog.text and why in caplog.text


def test_rows_are_grouped_by_a_column_that_they_have():
    rows = [Row("1", "p", "m", 1.0, {"c": "b"}), Row("2", "p", "m", 3.0, {"c": "a"}), Row("3", "q", "m", 5.0)]
    assert {name: [r.item for r in members] for name, members in grouped(rows, "c").items()} == {"a": ["2"], "b": ["1"]}
    assert mean(rows)["value"] == 3.0 and mean([])["value"] is None
    assert gain(rows, rows)["value"] == 0.0
    with pytest.raises(ValueError, match="rows of different items"):
        gain(rows, rows[::-1])
