"""rmjax/evaluate/margins.py: ordered pairs and by how much they are told apart."""

from rmjax.data.record import Comparison
from rmjax.evaluate.margins import margin_rows, margins

RECORDS = [
    Comparison("p", ("a b", "c", "d"), ranks=(1.0, 0.0, 1.0)),
    Comparison("q", ("e", "f"), scores=(1.0, 2.0)),
    Comparison("r", ("g", "h")),
]


def test_every_ordered_pair_has_a_margin():
    found = margins(RECORDS, [[1.0, 3.0, 5.0], [1.0, 1.5], [0.0, 9.0]])
    assert found.values_P.tolist() == [2.0, -2.0, 0.5] and found.prompts == ["p", "p", "q"]
    assert (found.better, found.worse) == (["c", "c", "f"], ["a b", "d", "e"])


def test_rows_say_which_answer_is_longer():
    rows = margin_rows(RECORDS, [[1.0, 3.0, 5.0], [1.0, 1.5], [0.0, 9.0]])
    assert [(row.value, row.cluster, row.groups["better"]) for row in rows] == [
        (2.0, "p", "shorter"), (-2.0, "p", "equal"), (0.5, "q", "equal"),
    ]  # fmt: skip
    assert margin_rows([], []) == []
