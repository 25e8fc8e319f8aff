"""RM-Bench (Liu et al. 2024, arXiv 2410.16184): a right and a wrong answer in three styles each, 9 comparisons a prompt.

Rows of the 3 × 3 matrix are the right answer's style, columns the wrong one's, both in the order concise, detailed, Markdown.
easy is the lower triangle (the right answer has the richer style), normal the diagonal, hard the upper triangle; a domain is
the mean of the three, and everything over domains is the plain mean of chat, code, math and safety, in which refusals and
responses are pooled. A tie fails.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison, RecordError
from rmjax.evaluate.rows import Row
from rmjax.evaluate.suites.benchmark import Benchmark, Score, Scores, mean_of, row_pair

STYLES = ("concise", "detailed", "Markdown")
DOMAINS = ("chat", "code", "math", "safety")
_ROWS = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
_LEVELS = {
    "easy": [(i, j) for i in range(3) for j in range(i)],
    "normal": [(i, i) for i in range(3)],
    "hard": [(i, j) for i in range(3) for j in range(i + 1, 3)],
}


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the domain, of the row or, in files of one domain, of the file's name. RecordError where neither says it."""
    named = file.name.partition("_filtered")[0]
    given = next((name for name in (str(c.category), named) if name in _ROWS or name.startswith("safety")), None)
    if given is None:
        detail = f"{c.category!r}"[:40]
        raise RecordError(
            c.place, "domain", "unknown domain", f"give one of {', '.join(_ROWS)}, or drop the row", detail
        )
    return dataclasses.replace(c, source=given.partition("-")[0], category=given)


def measure(records: Sequence[Comparison], scores: Scores) -> list[Row]:
    """Nine rows a record, each of a part `DOMAIN STYLE>STYLE`."""
    rows: list[Row] = []
    for number, (c, found) in enumerate(zip(records, scores, strict=True)):
        for i, right in enumerate(found[:3]):
            for j, wrong in enumerate(found[3:]):
                rows += row_pair(c, number, _part(str(c.source), i, j), float(right > wrong), right == wrong)
    return rows


def _part(domain: str, i: int, j: int) -> str:
    return f"{domain} {STYLES[i]}>{STYLES[j]}"


def _level(name: str, domain: str, pairs: Sequence[tuple[int, int]]) -> Score:
    return Score(name, {_part(domain, i, j): 1 / len(pairs) for i, j in pairs})


def scores(present: Sequence[str]) -> list[Score]:
    """The overall score, domains, levels, and the matrix."""
    del present
    levels = {domain: [_level(name, domain, pairs) for name, pairs in _LEVELS.items()] for domain in DOMAINS}
    domains = [mean_of(domain, found) for domain, found in levels.items()]
    hardness = [mean_of(name, [levels[domain][k] for domain in DOMAINS]) for k, name in enumerate(_LEVELS)]
    matrix = [
        mean_of(f"{STYLES[i]}>{STYLES[j]}", [_level("", domain, [(i, j)]) for domain in DOMAINS])
        for i in range(3)
        for j in range(3)
    ]
    return [mean_of("overall", domains), *domains, *hardness, *matrix]


BENCHMARK = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    get="hf download THU-KEG/RM-Bench --repo-type dataset --local-dir rm-bench",
    layouts=("rm_bench",),
    files=(("total_dataset.json",), ("*_filtered.json",), ("*",)),
    adapt=adapt,
    measure=measure,
    scores=scores,
    published=_ROWS,
    counted=lambda records: Counter(str(c.category) for c in records),
    left_out=lambda records: {},
)
