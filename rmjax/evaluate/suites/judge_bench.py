"""JudgeBench (Tan et al. 2024, arXiv 2410.12784): objectively right and wrong answers of one model, two sets.

For scalar rewards one game a pair: 1 if the right answer scores higher; a tie fails. A set's score is over all its pairs.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, parts

SETS = {"gpt-4o": "GPT-4o", "claude": "Claude-3.5-Sonnet"}
_ROWS = {"GPT-4o: knowledge": 154, "GPT-4o: reasoning": 98, "GPT-4o: math": 56, "GPT-4o: coding": 42,
         "Claude-3.5-Sonnet: knowledge": 154, "Claude-3.5-Sonnet: reasoning": 51, "Claude-3.5-Sonnet: math": 34,
         "Claude-3.5-Sonnet: coding": 31}  # fmt: skip


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the set, by the model that answered; the cell the kind of question in it."""
    del file
    model = (c.policies or ("unknown",))[0]
    name = next((title for start, title in SETS.items() if model.startswith(start)), model)
    return dataclasses.replace(c, source=name, category=f"{name}: {c.category}")


def scores(present: Sequence[str]) -> list[Score]:
    """A score for each set that is there, GPT-4o's first."""
    return parts(sorted(present, key=lambda name: [*SETS.values(), name].index(name)))


BENCHMARK = Benchmark(
    name="judge_bench",
    title="JudgeBench",
    get="git clone https://github.com/ScalerLab/JudgeBench, then give its folder data",
    layouts=("judge_bench",),
    files=(("dataset=judgebench*",), ("*.jsonl", "*.parquet")),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published=_ROWS,
    counted=lambda records: Counter(str(c.category) for c in records),
    whole=False,
)
