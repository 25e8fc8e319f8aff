"""HelpSteer 1, 2 and 3 (Wang et al. 2023, 2024, 2025; arXiv 2311.09528, 2406.08673, 2505.11475): which answer is more helpful?

HelpSteer and HelpSteer2 have an answer a row with its helpfulness; answers to one prompt are compared by it. The preference
files have pairs and a strength; strength 0 is a tie and left out. Accuracy over all ordered pairs of a file's kind; a tie in
score fails.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.evaluate.comparisons import reasons
from rmjax.evaluate.suites.benchmark import Benchmark, Score, pairs_win, parts

KINDS = {
    "helpsteer3": "HelpSteer3 preferences",
    "helpsteer2_preference": "HelpSteer2 preferences",
    "helpsteer": "helpfulness",
}
# Answers (helpfulness) and pairs (preferences) of the validation files.
_ROWS = {"HelpSteer3 preferences validation": 2017, "helpfulness validation of HelpSteer": 1789,
         "helpfulness validation of HelpSteer2": 1038}  # fmt: skip


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is the kind of file, the cell a domain or split of it."""
    del file
    kind = KINDS[str(c.source)]
    return dataclasses.replace(c, source=kind, category=c.category and f"{kind}: {c.category}")


def scores(present: Sequence[str]) -> list[Score]:
    """A score for each kind of file that is there."""
    return parts([kind for kind in KINDS.values() if kind in present])


def counted(records: Sequence[Comparison]) -> dict[str, int]:
    """Rows of validation files, whose names say so; of HelpSteer, which has as many as four answers a prompt, or HelpSteer2."""
    found: Counter[str] = Counter()
    several = any(len(c.outputs) > 2 for c in records)
    for c in records:
        if "validation" in Path(c.place).name:
            end = f" of HelpSteer{'' if several else '2'}" if c.source == KINDS["helpsteer"] else ""
            found[f"{c.source} validation{end}"] += len(c.outputs) if end else 1
    return dict(found)


BENCHMARK = Benchmark(
    name="helpsteer",
    title="HelpSteer",
    get="hf download nvidia/HelpSteer3 --repo-type dataset --include 'preference/validation*' --local-dir helpsteer3 (or "
    "nvidia/HelpSteer2, nvidia/HelpSteer: validation.jsonl.gz)",
    layouts=tuple(KINDS),
    files=(("validation.jsonl*",), ("*.jsonl*", "*.parquet")),
    adapt=adapt,
    measure=pairs_win,
    left_out=reasons,
    scores=scores,
    published=_ROWS,
    counted=counted,
    whole=False,
)
