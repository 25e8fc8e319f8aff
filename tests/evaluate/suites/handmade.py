"""Benchmarks by hand: an answer says its own score, so that every number can be computed on paper."""

import json
from pathlib import Path

from rmjax.evaluate.suites import BENCHMARKS
from rmjax.evaluate.suites.evaluator import summarize


def answer(score: float, text: str = "answer") -> str:
    return f"{text}={score}"


def own_scores(records):
    """What each answer says; an empty one says 0."""
    return [[float(output.rpartition("=")[2] or 0) for output in c.outputs] for c in records]


def put(path: Path, rows, lines: bool | None = None) -> Path:
    """Rows as JSON lines, or as an array where the name ends with .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines or path.suffix != ".json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path


def result(name: str, path: Path, on_error: str = "raise"):
    """(what was loaded, what a result file has of the answers' own scores)."""
    loaded = BENCHMARKS[name].load(path, on_error)
    return loaded, summarize(BENCHMARKS[name], loaded.records, own_scores(loaded.records))


def numbers(found) -> dict[str, float]:
    """Name → accuracy, of the headline and of what stands below it."""
    return {found["score"]: found["overall"]["accuracy"]} | {k: v["accuracy"] for k, v in found["categories"].items()}
