"""The pairs of the study: people's choices, or two answers of the shipped pool's policies, ordered by a rule."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies import shared
from experiments.studies.noise.config import HARMLESS
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
from rmjax.data.sources import pool_rows, records

READ = 80  # characters of an answer that are used of the shipped pool
_DIGIT = re.compile(r"\d")


def pairs(grid: Any, test: bool) -> list[Comparison]:
    """To learn from, or held out: of other prompts. By the rule an answer with a digit is better than one without."""
    if grid.data == HARMLESS:
        return list(records("hh_harmless", grid.root, "test" if test else "train"))
    with_digit: dict[str, list[Any]] = {}
    without: dict[str, list[Any]] = {}
    for row in pool_rows("shipped:policy_pool", "all", "unseen" if test else "seen"):
        if row.output.strip() and not row.output.startswith(row.prompt):
            kept = with_digit if _DIGIT.search(row.output[:READ]) else without
            kept.setdefault(row.prompt_id, []).append(row)
    return [
        Comparison(good.prompt, (good.output[:READ], bad.output[:READ]), ranks=(0.0, 1.0), id=f"{name}/{number}")
        for name, found in with_digit.items()
        for number, (good, bad) in enumerate(zip(found, without.get(name, []), strict=False))
    ]


def held_out(grid: Any) -> list[Comparison]:
    """The pairs that every arm is tested on; their labels are as they are."""
    return shared.spread(pairs(grid, test=True), grid.tested)


def make_data(grid: Any, workdir: Path) -> None:
    """A file of clean pairs for each seed."""
    everything = pairs(grid, test=False)
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    for seed in grid.seeds:
        path = workdir / "data" / f"pairs-seed{seed}.jsonl"
        if not path.exists():
            order = np.random.default_rng(seed).permutation(len(everything))[: grid.pairs]
            write_records(path, [everything[i] for i in order])
