"""LLMBar (Zeng et al. 2023, arXiv 2310.07641): does an answer follow its instruction? One natural set, four adversarial ones.

A row's subset is the name of its file's folder. Adversarial is the plain mean of the four, average that of all five. A tie
fails.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, mean_of, parts

_ROWS = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the subset, by the folder or the file's own name."""
    names = (file.parent.name, file.name.split(".")[0])
    known = next((part for part in _ROWS for name in names if name.lower().endswith(part.lower())), file.parent.name)
    return dataclasses.replace(c, source=known)


def scores(present: Sequence[str]) -> list[Score]:
    """The average of the five subsets, of the adversarial four, and each."""
    del present
    each = parts(_ROWS)
    return [mean_of("average", each), mean_of("Adversarial", each[1:]), *each]


BENCHMARK = Benchmark(
    name="llmbar",
    title="LLMBar",
    get="git clone https://github.com/princeton-nlp/LLMBar, then give its folder Dataset/LLMBar",
    layouts=("llmbar",),
    files=(("LLMBar/**/dataset.json",), ("Natural/dataset.json", "Adversarial/*/dataset.json"), ("*.json", "*.jsonl")),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published=_ROWS,
)
