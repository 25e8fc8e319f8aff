"""Suites: what an entry of `config.evals` loads, and the numbers that training logs of it."""

import json
import logging
from collections import Counter

import pytest

from rmjax.data.sources import pool
from rmjax.evaluate.comparisons import evaluate_comparisons
from rmjax.evaluate.scorers import Baseline
from rmjax.evaluate.suites import BENCHMARKS, SUITES, evaluators_from, suite_of
from rmjax.settings import EVALUATIONS, ComparisonsEval, PoolEval, SamplesEval


class Longer:
    """A scorer whose parameters are the factor of the length."""

    name = "longer"

    def __init__(self, factor):
        self.factor, self.counts = factor, Counter()

    def score(self, records, progress=False):
        self.counts["cut"] += 2
        return [[self.factor * value for value in row] for row in Baseline("longer").score(records)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [
    {"prompt": "p", "chosen": "long", "rejected": "s", "id": "a"},
    {"prompt": "q", "outputs": ["x", "yy"], "id": "b"},
]


def pool_rows():
    found = [
        {"prompt_id": p, "prompt": p, "prompt_split": "unseen", "policy": policy, "sample": i, "output": policy * (i + 1) + p}
        for p in ("p", "q")
        for policy in ("a", "bb")
        for i in range(3)
    ]  # fmt: skip
    return [*found, {**found[0], "sample": 9, "output": " "}]


def test_every_kind_of_entry_has_a_suite():
    """But for what a policy writes, which no scorer is asked about."""
    assert SUITES.keys() - BENCHMARKS.keys() | {"suite", "answers"} == EVALUATIONS.keys()


def test_numbers_are_those_of_the_parameters_given(tmp_path, caplog):
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    with caplog.at_level(logging.WARNING):
        (every, measure) = evaluators_from({"mine": ComparisonsEval(path=path, every=7)}, Longer)["mine"]
        assert "evals.mine: of 2 records without a number: 1 × order unknown" in caplog.text and every == 7
        assert measure(1.0) == {"accuracy": 1.0, "low": 1.0, "high": 1.0, "ties": 0.0}
        assert measure(-1.0)["accuracy"] == 0.0 and measure(0.0)["ties"] == 1.0
    assert caplog.text.count("evals.mine: while encoding: 2 × cut") == 1  # once, not at each evaluation


def test_without_an_order_numbers_are_absent_and_not_0(tmp_path, caplog):
    entry = ComparisonsEval(path=write(tmp_path / "pairs.jsonl", PAIRS[1:]))
    with caplog.at_level(logging.WARNING):
        assert evaluators_from({"mine": entry}, Longer)["mine"][1](1.0) == {}
    assert "none of 1 records can be evaluated" in caplog.text


def test_a_pool_is_evaluated_by_policy_with_the_accuracies_of_its_triples(tmp_path, caplog):
    entry = PoolEval(path=write(tmp_path / "pool.jsonl", pool_rows()))
    with caplog.at_level(logging.WARNING):
        found = evaluators_from({"mine": entry}, Longer)["mine"][1](1.0)
    assert "evals.mine: left out: 1 × empty_output" in caplog.text
    triples = pool(entry.path, "all", "unseen").triples(seed=0, per_prompt=4)
    overall = evaluate_comparisons(triples, Longer(1.0).score(triples))["overall"]
    assert found == {name: overall[name] for name in ("accuracy", "low", "high", "ties")}
    assert suite_of(entry).load(entry).dropped == {"empty_output": 1}


def test_samples_give_gaps_and_count_what_they_leave_out(tmp_path):
    path = write(tmp_path / "pool.jsonl", [*pool_rows(), {**pool_rows()[0], "policy": "c"}])
    loaded = suite_of(SamplesEval(path=path)).load(SamplesEval(path=path))
    assert loaded.dropped == {"empty_output": 1, "fewer than two answers": 1}
    assert len(loaded.records) == 4 and all(c.ranks is None for c in loaded.records)
    found = evaluators_from({"mine": SamplesEval(path=path)}, Longer)["mine"][1](1.0)
    assert found["gap_mean"] > 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"config.evals.\*.kind is 'votes'; choose comparisons, pool, samples, suite"):
        suite_of(ComparisonsEval(kind="votes"))
