"""A benchmark's numbers: its scores and cells, baselines beside them, what several comparisons at once are worth."""

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.record import Comparison
from rmjax.evaluate.baselines import of_preferences
from rmjax.evaluate.comparisons import CREDIT, TIED, Accuracy, overall
from rmjax.evaluate.evaluators import Evaluator
from rmjax.evaluate.rows import Row, clusters, grouped, of_metric, values
from rmjax.evaluate.scorers import Baseline, checked
from rmjax.evaluate.statistics import Interval, benjamini_hochberg, combined, sign_flips
from rmjax.evaluate.suites.benchmark import Benchmark, Score, Scores, first, said_of_counts

_log = logging.getLogger(__name__)


def evaluator_of(benchmark: Benchmark) -> Evaluator:
    """The evaluator of a benchmark: its rows, the numbers of a training log, and all that a result file has of it."""
    return Evaluator(
        benchmark.name,
        lambda records, scores: benchmark.measure(records, checked(records, scores)),
        functools.partial(_numbers, benchmark),
        functools.partial(summarize, benchmark),
        benchmark.left_out,
        functools.partial(require_score, benchmark),
    )


def require_score(benchmark: Benchmark, records: Sequence[Comparison]) -> None:
    """ValueError where the parts that these records are of give none of the benchmark's scores."""
    blank = [[0.0] * len(c.outputs) for c in records]
    complete, incomplete = split(benchmark, benchmark.measure(records, blank))
    if not complete:
        missing = sorted({part for lacking in incomplete.values() for part in lacking})
        raise ValueError(
            f"{benchmark.title}: none of its scores can be computed of {len(records)} records, since there is no row of "
            f"{first(missing)}; give the whole benchmark, or evaluate the file with --layout=auto and without --suite"
        )


def _numbers(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, float]:
    complete, _ = split(benchmark, rows)
    found = {re.sub(r"\W+", "_", score.name).strip("_"): accuracy(score, rows) for score in complete}
    numbers = {name: float(each["accuracy"] or 0.0) for name, each in found.items()}
    for each in list(found.values())[:1]:
        numbers |= {"accuracy": float(each["accuracy"] or 0.0), "low": float(each["low"] or 0.0),
                    "high": float(each["high"] or 0.0), "ties": float(each["ties"])}  # fmt: skip
    return numbers


def split(benchmark: Benchmark, rows: Sequence[Row]) -> tuple[list[Score], dict[str, list[str]]]:
    """The scores that can be computed of these rows, and for the others the parts that have no row."""
    present = list(dict.fromkeys(row.groups["part"] for row in rows))
    scores = benchmark.scores(present)
    lacking = {score.name: [part for part in score.weights if part not in present] for score in scores}
    return [score for score in scores if not lacking[score.name]], {
        name: parts for name, parts in lacking.items() if parts
    }


def accuracy(score: Score, rows: Sequence[Row], seed: int = 0) -> Accuracy:
    """A score with its interval, the number of rows in it, and how many of them were tied in score."""
    found = _combined(score, of_metric(rows, CREDIT), seed)
    ties = sum(row.value for row in of_metric(rows, TIED) if row.groups["part"] in score.weights)
    return Accuracy(accuracy=found["value"], low=found["low"], high=found["high"], n=found["n"], ties=int(ties))


def _combined(score: Score, rows: Sequence[Row], seed: int) -> Interval:
    return combined(values(rows), [row.groups["part"] for row in rows], score.weights, clusters(rows), seed)


def gain(score: Score, ours: Sequence[Row], theirs: Sequence[Row], seed: int = 0) -> Interval:
    """Score of one scorer minus that of another on the same records, paired."""
    return _combined(score, _minus(of_metric(ours, CREDIT), of_metric(theirs, CREDIT)), seed)


def _minus(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    pairs = zip(ours, theirs, strict=True)
    return [Row(a.item, a.cluster, a.metric, a.value - b.value, a.groups) for a, b in pairs]


def summarize(benchmark: Benchmark, records: Sequence[Comparison], scores: Scores, seed: int = 0) -> dict[str, Any]:
    """What a result file has of a benchmark.

    Returns:
      `score`, the headline's name; `overall`, it; `categories`, the other scores and then the cells; `incomplete`, score → parts
      without a row; `baselines`, each {overall, categories}; `best_baseline`, by the headline; `differences`, of the headline,
      model minus baseline; `multiplicity`, of each cell (of each further score where there are no cells) the difference to the
      best baseline, its p-value by flipped signs of prompts, and q by Benjamini and Hochberg over these; `rows`, `skipped`,
      `without_reference` as in `evaluate_comparisons`.

    Raises:
      ScoreError: scores do not fit the records.
      ValueError: no score can be computed.
    """
    ours = benchmark.measure(records, checked(records, scores))
    require_score(benchmark, records)
    complete, incomplete = split(benchmark, ours)
    if incomplete:
        without = sorted({part for lacking in incomplete.values() for part in lacking})
        _log.warning(
            "%s: not computed: %s, since there is no row of %s",
            benchmark.title,
            first(list(incomplete)),
            first(without),
        )
    names = of_preferences(records)
    theirs = {name: benchmark.measure(records, Baseline(name).score(records)) for name in names}
    baselines = {name: _breakdown(complete, rows, seed) for name, rows in theirs.items()}
    best = max(names, key=lambda name: baselines[name]["overall"]["accuracy"])
    return {
        "suite": benchmark.name,
        "score": complete[0].name,
        **_breakdown(complete, ours, seed),
        "incomplete": incomplete,
        "baselines": baselines,
        "best_baseline": best,
        "differences": {name: gain(complete[0], ours, rows, seed) for name, rows in theirs.items()},
        "multiplicity": _multiplicity(complete, ours, theirs[best], seed),
        "rows": len(records),
        "skipped": benchmark.left_out(records),
        "without_reference": sum(not c.references for c in records),
    }


def _breakdown(scores: Sequence[Score], rows: Sequence[Row], seed: int) -> dict[str, Any]:
    further = {score.name: accuracy(score, rows, seed) for score in scores[1:]}
    cells = {name: overall(members, seed) for name, members in grouped(rows, "category").items() if name not in further}
    return {"overall": accuracy(scores[0], rows, seed), "categories": {**further, **cells}}


def _multiplicity(scores: Sequence[Score], ours: Sequence[Row], theirs: Sequence[Row], seed: int) -> dict[str, Any]:
    """Name → {difference, p, q}, of the cells; of further scores where there are none."""
    differences = _minus(of_metric(ours, CREDIT), of_metric(theirs, CREDIT))
    compared = grouped(differences, "category")
    if len(compared) < 2:
        compared = {score.name: _weighted(score, differences) for score in scores[1:]}
    p_values = [sign_flips(values(rows), clusters(rows), seed) for rows in compared.values()]
    q_values = benjamini_hochberg(p_values)
    triples = zip(compared.items(), p_values, q_values, strict=True)
    return {name: {"difference": float(np.mean(values(rows))), "p": p, "q": q} for (name, rows), p, q in triples}


def _weighted(score: Score, rows: Sequence[Row]) -> list[Row]:
    """The rows of a score, each with the factor that makes the score of their mean."""
    kept = [row for row in rows if row.groups["part"] in score.weights]
    counts: Mapping[str, int] = {part: sum(row.groups["part"] == part for row in kept) for part in score.weights}
    factor = {part: weight * len(kept) / counts[part] for part, weight in score.weights.items()}
    return [Row(r.item, r.cluster, r.metric, r.value * factor[r.groups["part"]], r.groups) for r in kept]


def notes_of_suite(result: Mapping[str, Any]) -> Iterator[str]:
    """A benchmark's result in lines: its headline with all that belongs to it, and what is not as published."""
    head, best = result["overall"], result["best_baseline"]
    beside, gained = result["baselines"][best]["overall"], result["differences"][best]
    ours = f"{_interval(head['accuracy'], head)}, n = {head['n']:,}, {head['ties']} tied in score"
    theirs = f"{best.replace('_', ' ')} {_interval(beside['accuracy'], beside)}"
    gain_of = _interval(gained["value"], gained)
    yield f"{result['suite']}, {result['score']}: {ours}; best baseline: {theirs}; difference {gain_of}"
    if lacking := result["incomplete"]:
        yield f"not computed, since parts have no row: {first(list(lacking))}"
    yield from said_of_counts(result.get("published", {}))
    for defect, count in result.get("kept", {}).items():
        yield f"rows that count as they are published: {count} ({defect})"


def _interval(value: float, bounds: Mapping[str, Any]) -> str:
    return f"{value:.3f} ({bounds['low']:.3f} to {bounds['high']:.3f})"
