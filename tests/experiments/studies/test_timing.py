"""What studies of cost share: rows of rounds, ratios within a round. Nothing is timed here."""

import pytest

from experiments.studies import timing
from rmjax.evaluate.rows import Row

PLANNED = {"arguments": 1, "temporary": 2}


class Scripted:
    """An arm that takes as long as it is told, the rounds that do not count included."""

    def __init__(self, *seconds):
        self.left = [0.0, 0.0, *seconds]

    def seconds(self):
        return self.left.pop(0)

    def planned_bytes(self):
        return PLANNED


def test_each_round_is_an_item_and_ratios_are_formed_within_it():
    built = {
        "a": Scripted(1.0, 10.0),
        "b": Scripted(2.0, 20.0),
        "both": Scripted(3.3, 33.0),
        "slow": Scripted(1.0, 40.0),
    }
    rows = [*timing.timing_rows(built, rounds=2), Row("model", "model", "trained", 7, {"arm": "a"})]
    assert [(row.item, row.value) for row in rows if row.groups["arm"] == "b" and row.metric == timing.SECONDS] == [
        ("round 0", 2.0), ("round 1", 20.0),
    ]  # fmt: skip
    lines = timing.timing_lines(rows, {"a": ["a"], "both": ["a", "b"], "slow": ["a"]})
    ratios = timing.of_arms(lines, timing.RATIO)
    assert [ratios["both"][side] for side in ("value", "low", "high", "median")] == pytest.approx([1.1] * 4)
    assert ratios["both"]["over"] == "a + b" and ratios["a"]["value"] == 1.0
    assert ratios["slow"]["value"] == pytest.approx(2.0) and ratios["slow"]["median"] == pytest.approx(2.5)
    assert timing.of_arms(lines, "median_seconds")["b"]["value"] == 11.0
    assert timing.of_arms(lines, "planned_temporary")["slow"]["value"] == 2
    assert {"arm": "a", "metric": "trained", "value": 7} in lines
