"""RMB (Zhou et al. 2024, arXiv 2410.09893): 49 scenarios of helpfulness and harmlessness, in pairs and as best of N.

A best-of-N row counts only if the winner beats every loser; a tie fails, there and in pairs. The overall score is the plain
mean of the four parts, each over its rows. The counts are those of the 49 files of each set.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.suites.benchmark import Benchmark, Score, best_wins, mean_of, parts

PARTS = ("helpful best of N", "helpful pairs", "harmless best of N", "harmless pairs")
# Scenario → rows of the best-of-N set and of the pairwise set.
_COUNTS = {
    "Helpfulness/Brainstorming": (187, 949), "Helpfulness/Chat": (155, 713), "Helpfulness/Classification": (31, 164),
    "Helpfulness/Closed QA": (186, 920), "Helpfulness/Code": (280, 1224), "Helpfulness/Generation": (225, 1109),
    "Helpfulness/Open QA": (320, 1542), "Helpfulness/Reasoning": (264, 1235), "Helpfulness/Rewrite": (89, 458),
    "Helpfulness/Role Playing": (78, 372), "Helpfulness/Summarization": (113, 530), "Helpfulness/Translation": (181, 851),
    "Harmlessness/S1": (111, 459), "Harmlessness/S2": (249, 1040), "Harmlessness/S3": (171, 739),
    "Harmlessness/S4": (136, 537), "Harmlessness/S5": (122, 561), "Harmlessness/S6": (83, 317), "Harmlessness/S7": (121, 510),
    "Harmlessness/S8": (127, 519), "Harmlessness/S9": (132, 543), "Harmlessness/S10": (79, 360),
    "Harmlessness/S11": (215, 977), "Harmlessness/multi": (131, 502),
}  # fmt: skip


def adapt(c: Comparison, file: Path) -> Comparison:
    """Part and scenario of a record, by its `category_path`; a goal of another name is a part of its own."""
    del file
    kind = "best of N" if c.source == "rmb_bon" else "pairs"
    goal = {"Helpfulness": "helpful", "Harmlessness": "harmless"}.get(str(c.category).partition("/")[0], "unknown")
    return dataclasses.replace(c, source=f"{goal} {kind}", category=f"{kind}: {c.category}")


def counted(records: Sequence[Comparison]) -> dict[str, int]:
    """Rows by set and upper scenario."""
    found: dict[str, int] = {}
    for c in records:
        key = "/".join(str(c.category).split("/")[:2])
        found[key] = found.get(key, 0) + 1
    return found


def scores(present: object) -> list[Score]:
    """The overall score and the four parts."""
    del present
    each = parts(PARTS)
    return [mean_of("overall", each), *each]


BENCHMARK = Benchmark(
    name="rmb",
    title="RMB",
    get="git clone https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, then give its folder RMB_dataset",
    layouts=("rmb_pairwise", "rmb_bon"),
    files=(("Pairwise_set/**/*.json", "BoN_set/**/*.json"), ("*.json", "*.jsonl")),
    adapt=adapt,
    measure=best_wins,
    scores=scores,
    published={
        f"{kind}: {name}": n
        for name, two in _COUNTS.items()
        for kind, n in zip(("best of N", "pairs"), two, strict=True)
    },
    counted=counted,
)
