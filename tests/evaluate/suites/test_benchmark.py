"""What the benchmarks share: missing and foreign files, counts, and that a log, a command and a study get the same numbers."""

import json
import re

import pytest

from rmjax import settings
from rmjax.data.record import Comparison
from rmjax.evaluate.suites import BENCHMARKS, evaluators_from, suite_of
from rmjax.evaluate.suites.benchmark import against_published, best_wins, said_of_counts, without_one_best
from rmjax.settings import SuiteEval
from tests.evaluate.suites.handmade import answer, own_scores, put, result

PAIR = {"input": "i", "output_1": answer(2, "x"), "output_2": answer(1, "y"), "label": 1}


class Own:
    """The answers' own scores times the parameters."""

    name = "own"

    def __init__(self, factor):
        self.factor, self.counts = factor, {}

    def score(self, records, progress=False):
        return [[self.factor * x for x in row] for row in own_scores(records)]


def test_the_settings_name_all_benchmarks():
    assert tuple(BENCHMARKS) == settings.BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_says_what_to_download(tmp_path, name):
    with (
        pytest.raises(FileNotFoundError, match=re.escape(BENCHMARKS[name].get))
        if name != "polar"
        else pytest.raises(OSError)
    ):
        BENCHMARKS[name].load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no path"):
        BENCHMARKS[name].load("")
    (tmp_path / "readme.md").touch()
    if name != "polar":
        with pytest.raises(FileNotFoundError, match=f"no file of {BENCHMARKS[name].title} below it"):
            BENCHMARKS[name].load(tmp_path)


def test_a_file_of_another_benchmark_is_refused(tmp_path):
    path = put(tmp_path / "dataset.json", [PAIR])
    with pytest.raises(ValueError, match=r"dataset.json:2: not of RMB \(the row is LLMBar\); download it \(git clone"):
        BENCHMARKS["rmb"].load(path)


def test_a_log_has_the_numbers_of_a_result_file(tmp_path):
    path = put(tmp_path / "Natural/dataset.json", [PAIR, {**PAIR, "label": 2}])
    entry = SuiteEval(suite="llmbar", path=str(path), every=3)
    every, measure = evaluators_from({"mine": entry}, Own)["mine"]
    _, found = result("llmbar", path)
    head = found["overall"]
    assert every == 3 and measure(1.0) == {
        "Natural": 0.5, "accuracy": 0.5, "low": head["low"], "high": head["high"], "ties": 0.0,
    }  # fmt: skip
    assert measure(0.0)["accuracy"] == 0.0 and measure(0.0)["ties"] == 2.0  # ties fail
    with pytest.raises(ValueError, match=r"config.evals.\*.suite is 'rmbb'; choose"):
        suite_of(SuiteEval(suite="rmbb"))


def test_records_with_several_best_answers_are_counted():
    one, two = (Comparison("p", ("a", "b", "c"), ranks=ranks) for ranks in ((0, 1, 1), (0, 0, 1)))
    assert [row.value for row in best_wins([one, two], [[1, 0, 0]] * 2) if row.metric == "credit"] == [1.0]
    assert without_one_best([one, two, Comparison("p", ("a", "b"), ranks=(0, 0))]) == {
        "all outputs ranked equal": 1, "several answers ranked best": 1,
    }  # fmt: skip


def test_parts_that_give_no_score_are_refused_before_anything_is_scored():
    evaluator = suite_of(SuiteEval(suite="rmb")).evaluator
    with pytest.raises(ValueError, match=r"RMB: none of its scores .* no row of harmless best of N"):
        evaluator.refuse([Comparison("p", ("a", "b"), ranks=(0, 1), source="unknown pairs")])


def test_counts_against_published():
    published = {"a": 2, "b": 3, "c": 1}
    found = against_published({"a": 2, "b": 2, "x": 1}, published, whole=True)
    assert found == {
        "found": 5,
        "published": 6,
        "differ": {"b": {"found": 2, "published": 3}},
        "absent": ["c"],
        "unknown": ["x"],
    }
    assert said_of_counts(found) == [
        "counts differ from the published ones: b 2 instead of 3", "parts without a row: c", "parts that are not published: x",
    ]  # fmt: skip
    assert said_of_counts(against_published({"a": 2}, published, whole=False)) == []
    assert against_published({"a": 2}, {}, whole=True) == {} and said_of_counts({}) == []


def test_broken_rows_are_counted_by_reason(tmp_path):
    path = put(tmp_path / "Natural/dataset.json", [PAIR, {**PAIR, "label": 3}, {**PAIR, "input": ""}, "no object"])
    with pytest.raises(ValueError, match=r"label`: unknown label.*1 × label: unknown label, 1 × not a JSON object"):
        BENCHMARKS["llmbar"].load(path)
    loaded = BENCHMARKS["llmbar"].load(path, "skip")
    assert sum(loaded.unreadable.values()) == 3 and len(loaded.records) == 1
    path.write_text(json.dumps([{**PAIR, "label": 3}]))
    with pytest.raises(ValueError, match="unknown label"):
        BENCHMARKS["llmbar"].load(path, "skip")  # nothing is left
