"""LLMEval-Med's numbers against the paper's tables."""

import itertools

import pytest

from rmjax.judges.llmeval_med.aggregate import agreement, gate, human_score, human_usable, usability, variability

TABLE = {  # overall, then MK MLU MR MSE MTG, percent
    "DeepSeek-R1": (64.23, 84.16, 69.64, 63.40, 59.63, 44.33),
    "Qwen2.5-72B": (51.53, 55.56, 47.42, 50.83, 60.55, 43.30),
    "Qwen2.5-32B": (48.87, 52.25, 46.48, 42.24, 61.11, 42.27),
    "DeepSeek-V3": (48.03, 51.06, 53.68, 38.24, 47.71, 49.48),
    "Mistral-24B": (46.42, 45.15, 43.35, 28.10, 50.15, 22.68),
    "llama-3.1-8B": (26.65, 16.78, 20.50, 18.63, 25.38, 29.90),
    "o1-preview": (61.23, 65.25, 63.85, 62.75, 64.81, 49.48),
    "GPT-4o": (58.73, 61.23, 56.34, 55.23, 56.27, 64.58),
    "o1-mini": (57.86, 56.03, 60.09, 60.40, 63.30, 49.48),
    "Baichuan-M1": (60.34, 70.69, 63.22, 62.09, 50.76, 54.95),
    "Baichuan-M1-14B": (55.43, 62.88, 40.53, 55.23, 70.03, 48.45),
    "HuatuoGPT-o1-72B": (52.27, 53.43, 49.45, 56.86, 56.27, 45.36),
    "DISC-MedLLM": (11.34, 7.09, 10.02, 7.52, 23.24, 2.06),
}
MISFITS = {"Mistral-24B", "llama-3.1-8B", "DISC-MedLLM"}


def of_rates(rates, n=1000):
    """Scores of one run whose rates are these, to a tenth of a percent."""
    areas = zip(("MK", "MLU", "MR", "MSE", "MTG"), rates, strict=True)
    return {(area, str(i)): [5.0 if i < round(rate * n / 100) else 3.0] for area, rate in areas for i in range(n)}


def test_the_whole_is_the_plain_mean_of_areas():
    overall, *rates = TABLE["DeepSeek-R1"]
    assert usability(of_rates(rates))["overall"]["value"] * 100 == pytest.approx(overall, abs=0.06)


def test_which_rows_of_the_table_fit():
    fits = {model for model, (overall, *rates) in TABLE.items() if abs(sum(rates) / 5 - overall) < 0.015}
    assert fits == TABLE.keys() - MISFITS


def test_rates_are_pooled_over_runs():
    # DeepSeek-R1, MK: 356 of 423 runs of 141 questions.
    runs = [5.0] * 356 + [3.0] * 67
    scores = {("MK", str(q)): runs[3 * q : 3 * q + 3] for q in range(141)}
    assert usability(scores)["areas"]["MK"]["value"] * 100 == pytest.approx(84.16, abs=5e-3)


def test_paper_and_released_differ_where_runs_do():
    scores = {
        ("MK", "1"): [5, 5, 3],
        ("MK", "2"): [4, 4, 3],
        ("MR", "1"): [2, None, None],
        ("MR", "2"): [None, None, None],
    }
    paper, released = usability(scores), usability(scores, "released")
    assert paper["areas"]["MK"]["value"] == pytest.approx(4 / 6) and paper["areas"]["MR"]["value"] == 0
    assert paper["overall"]["value"] == pytest.approx(1 / 3) and paper["unscored"] == 5
    assert released["areas"]["MK"]["value"] == 0.5 and released["areas"]["MR"]["n"] == 2
    assert released["overall"]["value"] == 0.25
    assert variability(scores) == pytest.approx((0.9428 + 0.4714) / 2, abs=1e-4)


def test_nothing_scored_and_unknown_ways():
    with pytest.raises(ValueError, match="no answer has a score"):
        usability({("MK", "1"): [None]})
    with pytest.raises(ValueError, match="choose paper or released"):
        usability({("MK", "1"): [5.0]}, "mine")


def test_the_gate():
    assert gate([True, True], [True], True) == 5 and gate([True], [], True) == 5
    assert gate([True, True], [False], True) == 4
    assert gate([True, False], [True], True) == 3 and gate([False, False, True], [True], True) == 2
    assert gate([True], [True], False) == 1


def test_the_mapping_of_all_marks():
    every = {marks: human_score(*marks) for marks in itertools.product(range(6), repeat=4)}
    assert {score: list(every.values()).count(score) for score in range(8)} == {
        0: 671, 1: 369, 2: 112, 3: 108, 4: 15, 5: 17, 6: 3, 7: 1,
    }  # fmt: skip
    assert human_score(5, 5, 3, 3) == 5 and human_usable(5, 5, 3, 3, True) and not human_usable(5, 5, 5, 5, False)
    assert (human_score(5, 5, 4, 5), human_score(4, 4, 4, 4), human_score(4, 5, 3, 5), human_score(2, 5, 5, 5)) == (
        6,
        5,
        4,
        2,
    )
    usable = sum(score >= 5 for score in every.values())
    assert usable == 21


@pytest.mark.parametrize(
    ("counts", "percent"), [((16, 6, 40, 40), 54.9), ((20, 9, 35, 38), 56.9), ((1, 1, 9, 91), 90.2)]
)
def test_confusion_of_people_and_judge(counts, percent):
    human = [True] * (counts[0] + counts[1]) + [False] * (counts[2] + counts[3])
    judge = [True] * counts[0] + [False] * counts[1] + [True] * counts[2] + [False] * counts[3]
    found = agreement(human, judge)
    assert found["agreement"]["value"] * 100 == pytest.approx(percent, abs=0.05)
    assert (found["both_usable"], found["only_human"], found["only_judge"], found["neither"]) == counts
    assert found["kappa"] < 0.3 and found["over_accepted"] == counts[2] / (counts[2] + counts[3])


def test_kappa():
    assert agreement([True, False, True, False], [True, False, True, False])["kappa"] == 1.0
    assert agreement([True, True, False, False], [True, False, True, False])["kappa"] == pytest.approx(0.0)
    assert agreement([True, True], [True, True])["kappa"] is None
    assert agreement([], [])["agreement"]["value"] is None
