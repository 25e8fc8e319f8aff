"""The pairs of the study: people's choices, or answers of intact and of damaged models to one prompt."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies import shared
from experiments.studies.noise.config import HARMLESS
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
from rmjax.data.sources import pool_rows, records

INTACT, BROKEN = ("base", "decoding"), ("noise", "depth")  # kinds of policies


def pairs(grid: Any, test: bool) -> list[Comparison]:
    """To learn from, or held out: of other prompts."""
    if grid.data == HARMLESS:
        return list(records("hh_harmless", grid.root, "test" if test else "train"))
    rows = pool_rows("shipped:policy_pool", "all", "unseen" if test else "seen")
    good: dict[str, list[Any]] = {}
    for row in rows:
        if row.kind in INTACT and row.output.strip():
            good.setdefault(row.prompt_id, []).append(row)
    bad = [row for row in rows if row.kind in BROKEN and row.output.strip() and row.prompt_id in good]
    found = [(row, good[row.prompt_id][number % len(good[row.prompt_id])]) for number, row in enumerate(bad)]
    return [
        Comparison(b.prompt, (g.output, b.output), ranks=(0.0, 1.0), id=f"{b.prompt_id}/{number}")
        for number, (b, g) in enumerate(found)
        if g.output != b.output
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
