"""RewardBench 2: the best of four shares its credit, Ties have a score of their own."""

import math

import pytest

from rmjax.evaluate.suites.reward_bench_2 import measure, scores
from tests.evaluate.suites.handmade import answer, numbers, put, result

DOMAINS = ("Factuality", "Precise IF", "Math", "Safety", "Focus")


def row(name, subset, right, wrong):
    texts = [[answer(x, f"{side}{i}") for i, x in enumerate(found)] for side, found in (("r", right), ("w", wrong))]
    return {"id": name, "prompt": name, "chosen": texts[0], "rejected": texts[1], "num_correct": len(right),
            "num_rejected": len(wrong), "total_completions": len(right) + len(wrong), "subset": subset}  # fmt: skip


def test_domains_and_ties(tmp_path):
    rows = [row(str(i), name, [3], [1, 2, 0]) for i, name in enumerate(DOMAINS)]
    rows += [row("9", "Math", [2], [2, 2, 0]), row("10", "Math", [0], [1, 2, 3])]
    rows += [
        row("tied:1", "Ties", [5, 4], [1]),  # gap 3, spread 1
        row("ref:1", "Ties", [2], [1]),  # gap 1, not above the spread
        row("tied:2", "Ties", [2, 2], [3]),  # gap -1, spread 0
        row("ref:2", "Ties", [1], [0]),  # gap 1
    ]
    put(tmp_path / "test.jsonl", rows)
    loaded, found = result("reward_bench_2", tmp_path)
    math_score = (1 + 1 / 3 + 0) / 3
    ties = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (math.tanh(0) + math.tanh(-math.inf)) / 2
    expected = dict.fromkeys(DOMAINS, 1.0) | {"Math": math_score, "Ties": ties}
    assert numbers(found) == pytest.approx(expected | {"overall": sum(expected.values()) / 6})
    assert found["categories"]["Math"]["ties"] == 1 and loaded.published["differ"]["Ties"] == {
        "found": 4,
        "published": 102,
    }


def test_no_gap_and_no_spread_count_nothing(tmp_path):
    put(tmp_path / "test.jsonl", [row("tied:1", "Ties", [2, 2], [2]), row("ref:1", "Ties", [1], [1])])
    _, found = result("reward_bench_2", tmp_path)
    assert found["score"] == "Ties" and found["overall"]["accuracy"] == 0.0 and found["overall"]["ties"] == 1


def test_an_id_of_ties_has_a_form(tmp_path):
    put(tmp_path / "test.jsonl", [row("x", "Ties", [2, 2], [2])])
    with pytest.raises(ValueError, match="not ref:ID or tied:ID"):
        result("reward_bench_2", tmp_path)


def test_the_headline_has_the_weight_of_every_part():
    weights = scores([])[0].weights
    assert sum(weights.values()) == pytest.approx((5 + 1.01) / 6) and measure([], []) == []
