import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.data.record import Comparison, parse
from rmjax.evaluate.comparisons import (
    credits_of,
    evaluate_comparison,
    evaluate_comparisons,
    known_ranks,
    paired_gain,
    preference_rows,
    with_best_as_reference,
)
from rmjax.evaluate.scorers import ScoreError


def ranked(ranks, **facts):
    outputs = tuple(f"answer {i}" for i in range(len(ranks)))
    return Comparison(prompt="p", outputs=outputs, ranks=tuple(map(float, ranks)), **facts)


@pytest.mark.parametrize(
    ("ranks", "scores", "credit", "tied"),
    [
        ((0, 1), (2, 1), 1, False),
        ((0, 1), (1, 2), 0, False),
        ((0, 1), (1, 1), 0.5, True),
        ((1, 0), (1, 2), 1, False),
        # The best of N.
        ((1, 0, 1, 1), (1, 3, 2, 0), 1, False),
        ((1, 0, 1, 1), (1, 2, 3, 0), 0, False),
        ((1, 0, 1, 1), (3, 3, 3, 0), 1 / 3, True),
        ((1, 0, 1, 1), (3, 1, 3, 0), 0, False),  # a tie above the best is no tie with it
        # Ranks: the mean over ordered pairs.
        ((0, 1, 2), (3, 2, 1), 1, False),
        ((0, 1, 2), (3, 1, 2), 2 / 3, False),
        ((0, 1, 2), (3, 1, 1), 5 / 6, True),
        ((0, 0, 1), (1, 3, 2), 1 / 2, False),  # outputs of equal rank are not compared
    ],
)
def test_credit_of_a_row(ranks, scores, credit, tied):
    verdict = evaluate_comparison(ranked(ranks), scores)
    assert verdict.credit == pytest.approx(credit)
    assert verdict.tied is tied


@given(st.data())
def test_judging_backwards_gives_the_rest(data):
    count = data.draw(st.integers(2, 5))
    ranks = data.draw(st.permutations(range(count)))
    scores = data.draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    forward = evaluate_comparison(ranked(ranks), scores)
    backward = evaluate_comparison(ranked(ranks), [-score for score in scores])
    if count == 2 or len(set(ranks)) > 2:
        assert forward.credit + backward.credit == pytest.approx(1)
    assert len(forward.pairs) == count * (count - 1) // 2


def test_all_three_spellings_of_a_best_answer_are_judged_alike():
    rows = [
        {"prompt": "p", "outputs": ["a", "b", "c"], "best": 0},
        {"prompt": "p", "chosen": "a", "rejected": ["b", "c"]},
        {"prompt": "p", "outputs": ["a", "b", "c"], "ranks": [1, 2, 2]},
    ]
    for row in rows:
        assert evaluate_comparison(parse(row, "f:1"), [2, 2, 1]).credit == 0.5


def test_quality_scores_give_the_order_where_ranks_do_not():
    row = Comparison("p", ("a", "b", "c"), scores=(0.1, 0.9, 0.5))
    assert known_ranks(row) == (-0.1, -0.9, -0.5)
    assert evaluate_comparison(row, (1, 3, 2)).credit == 1


def test_the_shape_of_an_evaluation():
    rows = [
        Comparison("q", ("long long", "short"), ranks=(0, 1), category="c"),
        Comparison("p", ("tiny", "much longer"), ranks=(0, 1), category="c"),
        Comparison("p q", ("aa", "b"), ranks=(0, 1), category="d"),
        Comparison("p", ("aa", "b"), ranks=(0, 1)),
    ]
    got = evaluate_comparisons(rows, [[1, 0], [1, 0], [1, 1], [0, 1]])
    assert set(got["overall"]) == {"accuracy", "low", "high", "n", "ties"}
    assert got["overall"]["accuracy"] == 2.5 / 4
    assert (got["overall"]["n"], got["overall"]["ties"]) == (4, 1)
    assert got["overall"]["low"] < 2.5 / 4 < got["overall"]["high"]
    assert set(got["categories"]) == {"c", "d"}
    assert got["categories"]["d"]["accuracy"] == 0.5
    assert got["baselines"]["length"]["overall"]["accuracy"] == 3 / 4
    assert got["baselines"]["length"]["categories"]["c"]["accuracy"] == 1 / 2
    assert got["baselines"]["word_overlap"]["overall"]["ties"] == 4
    assert got["differences"]["length"]["value"] == pytest.approx(-1 / 8)
    assert got["without_reference"] == 4
    assert "longer" not in got["baselines"]


def test_pairwise_counts_pairs_and_rows_count_rows():
    rows = [ranked((0, 1, 2)), ranked((0, 1))]
    got = evaluate_comparisons(rows, [[1, 2, 3], [2, 1]])
    assert got["overall"]["accuracy"] == 1 / 2
    assert got["pairwise"]["overall"]["accuracy"] == 1 / 4
    assert got["pairwise"]["overall"]["n"] == 4


def test_rows_without_an_order_are_counted_by_reason_and_logged(caplog):
    rows = [
        ranked((0, 1)),
        ranked((0,)),
        Comparison("p", ("a", "b")),
        ranked((1, 1)),
        ranked((2, 2, 2)),
    ]
    with caplog.at_level(logging.WARNING):
        got = evaluate_comparisons(rows, [[1.0, 0.0], [0], [0, 0], [0, 0], [0, 0, 0]])
    assert got["skipped"] == {"one output": 1, "order unknown": 1, "all outputs ranked equal": 2}
    assert (got["rows"], got["overall"]["n"]) == (5, 1)
    assert "2 of 5 rows have no accuracy: all outputs ranked equal" in caplog.text


def test_no_usable_row_has_no_accuracy():
    got = evaluate_comparisons([Comparison("p", ("a",))], [[1.0]])
    assert got["overall"] == {"accuracy": None, "low": None, "high": None, "n": 0, "ties": 0}
    assert got["pairwise"]["overall"]["n"] == 0


def test_length_uses_the_reference_and_longer_is_reported_beside_it():
    row = Comparison("p", ("mid", "a long answer"), references=("abc",), ranks=(0, 1))
    got = evaluate_comparisons([row], [[1, 0]])
    assert got["baselines"]["length"]["overall"]["accuracy"] == 1
    assert got["baselines"]["longer"]["overall"]["accuracy"] == 0


def test_rows_of_one_prompt_are_resampled_together():
    rows = [dataclasses.replace(ranked((0, 1)), prompt=f"p{i // 10}") for i in range(100)]
    scores = [[1, 0] if i < 70 else [0, 1] for i in range(100)]
    apart = [dataclasses.replace(row, prompt=f"p{i}") for i, row in enumerate(rows)]
    together, alone = (evaluate_comparisons(r, scores) for r in (rows, apart))

    def width(result):
        return result["high"] - result["low"]

    assert width(together["overall"]) > 2 * width(alone["overall"])
    assert width(together["differences"]["length"]) > 2 * width(alone["differences"]["length"])
    gains = [paired_gain(r, scores, [[0, 0]] * 100) for r in (rows, apart)]
    assert width(gains[0]) > 2 * width(gains[1])


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ScoreError, match="f:3: 2 outputs have 1 scores"):
        evaluate_comparison(ranked((0, 1), place="f:3"), [1])
    with pytest.raises(ScoreError, match="f:3: a score is not finite"):
        evaluate_comparison(ranked((0, 1), place="f:3"), [1, float("nan")])
    with pytest.raises(ValueError, match="1 comparisons have 0"):
        evaluate_comparisons([ranked((0, 1))], [])


def test_the_best_becomes_the_reference():
    row = ranked((2, 0, 1), policies=("x", "y", "z"), votes=((1, 3, 2), (0, 2, 1)))
    got = with_best_as_reference(row)
    assert got.references == ("answer 1",)
    assert got.outputs == ("answer 0", "answer 2")
    assert got.ranks == (2, 1)
    assert got.policies == ("x", "z")
    assert got.votes == ((1, 2), (0, 1))
    assert evaluate_comparison(got, [0.0, 1.0]).credit == 1


@pytest.mark.parametrize("ranks", [(0, 1), (0, 0, 1), (0, 1, 1)])
def test_rows_without_a_single_best_and_an_order_below_it_stay(ranks):
    row = ranked(ranks)
    assert with_best_as_reference(row) is row


def test_a_given_reference_stays():
    row = ranked((0, 1, 2), references=("given",))
    assert with_best_as_reference(row) is row


def test_gain_of_one_model_over_another_is_paired():
    rows = [ranked((0, 1)), ranked((0, 1)), Comparison("p", ("a", "b"))]
    got = paired_gain(rows, [[1, 0], [1, 0], [0, 0]], [[1, 0], [0, 1], [0, 0]])
    assert (got["value"], got["n"]) == (0.5, 2)
    assert paired_gain([], [], [])["n"] == 0


def test_where_the_best_answer_is_the_shortest_a_baseline_shows_it():
    rows = [Comparison("p", ("no", "a longer answer"), ranks=(0, 1))] * 3
    got = evaluate_comparisons(rows, [[0.0, 0.0]] * 3)["baselines"]
    assert (got["length"]["overall"]["accuracy"], got["shorter"]["overall"]["accuracy"]) == (0.0, 1.0)


def test_rows_in_long_form_are_what_the_accuracies_are_made_of():
    rows = [ranked((0, 1, 2), id="x", category="c"), Comparison("p", ("a", "b"), place="f:2"), ranked((0, 1))]
    scores = [[3.0, 1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    found = preference_rows(rows, scores)
    assert [(r.item, r.metric, round(r.value, 3), dict(r.groups)) for r in found] == [
        ("x", "credit", 0.833, {"category": "c"}), ("x", "tied", 1.0, {"category": "c"}),
        *(("x", "pair", value, {"category": "c"}) for value in (1.0, 1.0, 0.5)),
        ("2", "credit", 0.0, {}), ("2", "tied", 0.0, {}), ("2", "pair", 0.0, {}),
    ]  # fmt: skip
    assert {r.cluster for r in found} == {"p"}
    assert credits_of(rows, scores) == [pytest.approx(5 / 6), 0.0]
