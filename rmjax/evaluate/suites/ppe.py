"""PPE (Frick et al. 2024, arXiv 2410.14872): votes of an arena, and the correctness of 32 samples to questions of five
benchmarks.

Human preference: accuracy over votes; ties among votes are left out, as published. Correctness: accuracy over the pairs of a
right and a wrong sample that the benchmark has drawn, and the fraction of prompts whose highest sample is right (best of K);
both are plain means over the five. A tie in score fails; of several highest samples the mean counts. Correlations over models
and rankings of models, which the paper has beside these, are not computed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmjax.data.record import Comparison, RecordError
from rmjax.evaluate.rows import Row
from rmjax.evaluate.suites.benchmark import (
    Benchmark,
    Score,
    Scores,
    best_wins,
    mean_of,
    parts,
    row_pair,
    without_one_best,
)

HUMAN = "human preference"
DOMAINS = {"mmlu": "MMLU-Pro", "math": "MATH", "gpqa": "GPQA", "ifeval": "IFEval", "mbpp": "MBPP-Plus"}
_DRAWN = "pair_weight"


def adapt(c: Comparison, file: Path) -> Comparison:
    """The part is human preference, or the benchmark that the names of file and folders say.

    Raises:
      RecordError: they say none.
    """
    if c.source == "ppe_human":
        return dataclasses.replace(c, source=HUMAN, category=f"{HUMAN}: {c.category}")
    for named in (file.name, *(folder.name for folder in file.parents)):
        for start, domain in DOMAINS.items():
            if start in named.lower():
                return dataclasses.replace(c, source=domain, category=None)
    remedy = f"name file or folder as it was downloaded, say PPE-MATH-Best-of-K ({', '.join(DOMAINS)})"
    raise RecordError(c.place, "", "a file of PPE whose name does not say which questions", remedy)


def measure(records: Sequence[Comparison], scores: Scores) -> list[Row]:
    """A row for each vote, each drawn pair, and each prompt's highest sample."""
    votes = [(c, found) for c, found in zip(records, scores, strict=True) if c.source == HUMAN]
    rows = best_wins([c for c, _ in votes], [found for _, found in votes])
    for number, (c, found) in enumerate(zip(records, scores, strict=True)):
        if c.source != HUMAN and c.scores is not None:
            rows += _of_samples(c, number, np.asarray(c.scores), np.asarray(found, np.float64))
    return rows


def _of_samples(c: Comparison, number: int, marks_N: np.ndarray, scores_N: np.ndarray) -> list[Row]:
    rows: list[Row] = []
    for i, weights in enumerate(c.columns.get(_DRAWN, ())):
        for j in np.flatnonzero((np.asarray(weights) > 0) & (marks_N[i] > marks_N)):
            won, tied = bool(scores_N[i] > scores_N[j]), bool(scores_N[i] == scores_N[j])
            rows += row_pair(c, number, f"{c.source} pairs", float(won), tied)
    highest_N = scores_N == scores_N.max()
    value = float(marks_N[highest_N].mean())
    return rows + row_pair(c, number, f"{c.source} best of K", value, bool(highest_N.sum() > 1))


def scores(present: Sequence[str]) -> list[Score]:
    """Human preference and correctness, each by itself: the paper has no mean of the two."""
    del present
    human = parts([HUMAN])
    pairs, best = (parts(f"{name} {kind}" for name in DOMAINS.values()) for kind in ("pairs", "best of K"))
    return [*human, mean_of("correctness", pairs), mean_of("correctness, best of K", best), *pairs, *best]


BENCHMARK = Benchmark(
    name="ppe",
    title="PPE",
    get="hf download lmarena-ai/PPE-Human-Preference-V1 --repo-type dataset --local-dir ppe/PPE-Human-Preference-V1, and "
    "likewise PPE-{MMLU-Pro,MATH,GPQA,IFEval,MBPP-Plus}-Best-of-K; then give ppe",
    layouts=("ppe_human", "ppe_correctness"),
    files=(("*",),),
    adapt=adapt,
    measure=measure,
    scores=scores,
    published={HUMAN: 16038},
    whole=False,
    left_out=lambda records: without_one_best([c for c in records if c.source == HUMAN]),
)
