"""RewardBench (Lambert et al. 2024, arXiv 2403.13787): 23 subsets in four sections, the filtered set.

A section is the mean of its subsets' accuracies by the number of their rows; math-prm has the weight of 984 rows, those of
the code subsets together, though it has 447. The overall score is the plain mean of the four sections. The prior sets of the
first leaderboard are another download and not in it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, mean_of

SECTIONS = {
    "Chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40},
    "Chat Hard": {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
                  "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    "Safety": {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
               "donotanswer": 136},
    "Reasoning": {"math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
                  "hep-rust": 164},
}  # fmt: skip
"""Section → subset → its weight, which is the number of its rows but for math-prm."""
_ROWS = {name: n for subsets in SECTIONS.values() for name, n in subsets.items()} | {"math-prm": 447}


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the subset."""
    del file
    return dataclasses.replace(c, source=c.category)


def scores(present: Sequence[str]) -> list[Score]:
    """The overall score and the four sections."""
    del present
    sections = [
        Score(name, {subset: n / sum(subsets.values()) for subset, n in subsets.items()})
        for name, subsets in SECTIONS.items()
    ]
    return [mean_of("overall", sections), *sections]


BENCHMARK = Benchmark(
    name="reward_bench",
    title="RewardBench",
    get="hf download allenai/reward-bench --repo-type dataset --include 'data/filtered*' --local-dir reward-bench",
    layouts=("reward_bench",),
    files=(("filtered*",), ("*",)),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published=_ROWS,
)
