"""UltraFeedback (Cui et al. 2023, arXiv 2310.01377): four completions rated by a model, or two of them (binarized).

Accuracy over all pairs of completions with different ratings (the mean of four aspects), and over the pairs of the binarized
set, each by itself. A tie in score fails. The ratings are a model's, not people's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.comparisons import reasons
from rmjax.evaluate.suites.benchmark import Benchmark, Score, pairs_win, parts

KINDS = {"ultrafeedback": "pairs", "ultrafeedback_binarized": "binarized"}


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the kind of file, the cell where an instruction comes from."""
    del file
    return dataclasses.replace(c, source=KINDS[str(c.source)])


def scores(present: Sequence[str]) -> list[Score]:
    """A score for each kind that is there."""
    return parts([kind for kind in KINDS.values() if kind in present])


def counted(records: Sequence[Comparison]) -> dict[str, int]:
    """Rows of the binarized test file, whose name says so."""
    found = sum(c.source == "binarized" and "test_prefs" in Path(c.place).name for c in records)
    return {"binarized test_prefs": found} if found else {}


BENCHMARK = Benchmark(
    name="ultrafeedback",
    title="UltraFeedback",
    get="hf download HuggingFaceH4/ultrafeedback_binarized --repo-type dataset --include 'data/test_prefs*' --local-dir "
    "ultrafeedback (or openbmb/UltraFeedback)",
    layouts=tuple(KINDS),
    files=(("test_prefs*",), ("*.jsonl*", "*.parquet")),
    adapt=adapt,
    measure=pairs_win,
    left_out=reasons,
    scores=scores,
    published={"binarized test_prefs": 2000},
    counted=counted,
    whole=False,
)
