"""The summary of experiments/drift.py as tables to read: results.md."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from configs import drift as grid
from rmjax.study.table import markdown
from rmjax.study.table import seeds_cell as cell

_ARM = ("arm", *grid.STAGES, *(f"gap, {stage}" for stage in grid.STAGES), "‖θ'−θ‖", "cosine")


def tables(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: accuracies and gaps of every arm, then its paired differences to each arm that all are compared with."""
    found = [markdown([_ARM, *(_means(arm, entry) for arm, entry in arms.items())])]
    for base in grid.COMPARED:
        rows = [_differences(arm, entry, base) for arm, entry in arms.items() if arm != base]
        found.append(markdown([(f"minus {base}", *grid.STAGES), *rows]))
    return "\n\n".join(found) + "\n"


def _means(arm: str, entry: Mapping[str, Any]) -> list[str]:
    accuracy = (f"{entry[stage]['accuracy']['mean']['value']:.3f}" for stage in grid.STAGES)
    gaps = (f"{np.mean(entry[stage]['spread']['gap_mean']):.2f}" for stage in grid.STAGES)
    known = entry["diagnostics"]
    ascent = (f"{known['meta_ascent_share']:.2g}", f"{known['meta_cosine']:+.2f}") if known else ("", "")
    return [arm, *accuracy, *gaps, *ascent]


def _differences(arm: str, entry: Mapping[str, Any], base: str) -> list[str]:
    """Of each stage: the mean with its interval; the seeds' own."""
    return [arm, *(cell(entry[stage]["over"][base], "+") for stage in grid.STAGES)]
