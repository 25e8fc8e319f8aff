"""POLAR's protocol (arXiv 2507.05197, section 4.2): the best answer is the reference, the second has to score above the third.

Any ranked answers in a layout that is recognized; which ones the paper took of RMB it does not say. Records whose first three
ranks are not strict, or that have fewer answers, are left out and counted. A tie in score fails.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.readers import open_records
from rmjax.data.record import Comparison, select
from rmjax.evaluate.comparisons import known_ranks
from rmjax.evaluate.suites.benchmark import Benchmark, OnError, Score, best_wins, parts
from rmjax.evaluate.suites.suite import Loaded

PAIRS = "second above third"
NOT_STRICT = "no strict first, second and third answer"


def with_reference(c: Comparison) -> Comparison | None:
    """The best answer as reference, the second and the third as candidates; None where these three are not in strict order, or
    where a fourth one shares the third's rank."""
    ranks = known_ranks(c) or ()
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    first = [ranks[i] for i in order[:4]]
    if len(order) < 3 or len(set(first)) < len(first):
        return None
    pair = dataclasses.replace(select(c, order[1:3]), ranks=(0.0, 1.0), source=PAIRS)
    return dataclasses.replace(pair, references=(c.outputs[order[0]],))


def read(benchmark: Benchmark, path: Path, on_error: OnError) -> Loaded:
    """Reads a file in whatever layout is recognized; errors as `open_records`, ValueError where no record has three ranks."""
    source = open_records(path, on_error, "auto")
    found = [made for c in source if (made := with_reference(c)) is not None]
    if not found:
        raise ValueError(
            f"{path}: none of its {len(source)} records has three answers in strict order; {benchmark.title} needs them"
        )
    dropped = {NOT_STRICT: len(source) - len(found)} if len(found) < len(source) else {}
    return Loaded(found, dict(source.skipped), dropped, source.contradicting, dict(source.unknown))


def scores(present: Sequence[str]) -> list[Score]:
    """All records."""
    del present
    return parts([PAIRS])


BENCHMARK = Benchmark(
    name="polar",
    title="POLAR's protocol",
    get="any file of three ranked answers or more, say openbmb/UltraFeedback",
    layouts=(),
    files=(("*",),),
    adapt=lambda c, file: c,
    measure=best_wins,
    scores=scores,
    read=read,
)
