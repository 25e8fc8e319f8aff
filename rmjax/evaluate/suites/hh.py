"""HH-RLHF (Bai et al. 2022, arXiv 2204.05862): pairs of transcripts that differ in the last turn of the assistant.

Accuracy over all pairs, and for each of the four sets. A tie fails. Rows whose two conversations differ earlier (five of
2,312 in the harmless test file) are left out and counted.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, parts

PAIRS = "pairs"
_ROWS = {"harmless-base test": 2312, "helpful-base test": 2354, "helpful-online test": 1137,
         "helpful-rejection-sampled test": 2749}  # fmt: skip


def adapt(c: Comparison, file: Path) -> Comparison:
    """One part; the cell is folder and file, as published."""
    return dataclasses.replace(c, source=PAIRS, category=f"{file.resolve().parent.name} {file.name.split('.')[0]}")


def scores(present: Sequence[str]) -> list[Score]:
    """All pairs."""
    del present
    return parts([PAIRS])


BENCHMARK = Benchmark(
    name="hh",
    title="HH-RLHF",
    get="hf download Anthropic/hh-rlhf --repo-type dataset --include '*/test.jsonl.gz' --local-dir hh-rlhf",
    layouts=("hh",),
    files=(("test.jsonl*",), ("*.jsonl*", "*.parquet")),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published=_ROWS,
    counted=lambda records: Counter(str(c.category) for c in records),
    whole=False,
    drops=frozenset({"another conversation before the last turn"}),
)
