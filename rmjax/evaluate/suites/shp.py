"""SHP (Ethayarajh et al. 2022, arXiv 2110.08420): which of two comments on a post was voted higher, in 18 subreddits?

Accuracy over all pairs, and for each subreddit. A tie fails.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, parts

PAIRS = "pairs"


def adapt(c: Comparison, file: Path) -> Comparison:
    """One part; the cell is the subreddit: the domain without the name of a split."""
    del file
    return dataclasses.replace(c, source=PAIRS, category=str(c.category or "unknown").rpartition("_")[0] or c.category)


def counted(records: Sequence[Comparison]) -> dict[str, int]:
    """Pairs by split, which the names of the files say."""
    return dict(Counter(Path(c.place).name.split(".")[0] for c in records))


def scores(present: Sequence[str]) -> list[Score]:
    """All pairs."""
    del present
    return parts([PAIRS])


BENCHMARK = Benchmark(
    name="shp",
    title="SHP",
    get="hf download stanfordnlp/SHP --repo-type dataset --include '*/test.json' --local-dir shp",
    layouts=("shp",),
    files=(("test.json*",), ("*.json*", "*.parquet")),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published={"train": 348718, "validation": 18436, "test": 18409},
    counted=counted,
    whole=False,
)
