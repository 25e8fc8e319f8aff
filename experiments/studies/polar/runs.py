"""The runs of POLAR's studies: pre-training, and fine-tuning on ranked triples with it, without it, and without a reference."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.studies.polar import alpaca
from experiments.studies.shared import load_runs
from rmjax.data.record import Comparison, to_row
from rmjax.data.sources import pool, records
from rmjax.evaluate.baselines import OF_POLICIES, of_preferences
from rmjax.evaluate.comparisons import CREDIT, preference_rows
from rmjax.evaluate.discrimination import discrimination_rows
from rmjax.evaluate.rows import Row, of_metric
from rmjax.evaluate.scorers import Baseline
from rmjax.files import write_lines
from rmjax.reward_model import RewardModel
from rmjax.study.cells import Cell

PRETRAIN = "pretrain"
PRETRAINED, SCRATCH, NO_REFERENCE, LONGER = "pretrained", "scratch", "no_reference", "scratch_longer"
SPLITS = ("seen", "unseen")
REAL = "alpaca_eval"
NEGATIVES = 3


def cells(grid: Any) -> Iterator[Cell]:
    """Seeds outermost, so that a study that is stopped early has whole seeds."""
    for seed in grid.seeds:
        yield _pretrain(grid, seed)
        for count, steps in zip(grid.triples, grid.steps, strict=True):
            yield _finetune(grid, seed, count, PRETRAINED, steps)
            yield _finetune(grid, seed, count, SCRATCH, steps)
            if count in grid.without_reference:
                yield _finetune(grid, seed, count, NO_REFERENCE, steps)
            if count in grid.longer:
                yield _finetune(grid, seed, count, LONGER, grid.longer_steps)


def pretrain_name(seed: int) -> str:
    """Of the cell."""
    return f"{PRETRAIN}-seed{seed}"


def _pretrain(grid: Any, seed: int) -> Cell:
    training = load_runs(grid.runs)[0]
    training.run.seed = seed
    training.data.path = grid.pool
    tests = {"pool": grid.pool, "per_prompt": grid.per_prompt}
    if grid.pool == REAL:
        training.data.update(kind="comparisons", path="work:data/groups_train.jsonl", epochs=0)
        # Real prompts are long: so a row holds two groups at least.
        training.format.update(max_length=144, max_response_length=32)
        tests = {split: f"work:data/groups_{split}.jsonl" for split in SPLITS}
    values = {"arm": PRETRAIN, "triples": 0, "seed": seed}
    return Cell(pretrain_name(seed), values, ConfigDict({"training": training, "tests": tests}))


def name_of(arm: str, count: int, seed: int) -> str:
    """Of a cell of fine-tuning."""
    return f"{arm}-{count or 'all'}-seed{seed}"


def _finetune(grid: Any, seed: int, count: int, arm: str, steps: int) -> Cell:
    bare, training = load_runs(grid.runs)
    training.run.update(seed=seed, steps=steps, save_every=steps)
    training.data.update(path=f"work:{_file(arm, count, seed)}", epochs=0)
    training.data.reference = "optional" if arm == NO_REFERENCE else "required"
    training.model.init = f"cell:{pretrain_name(seed)}" if arm == PRETRAINED else bare.model.init
    test = "work:data/test.jsonl" if grid.test == REAL else grid.test
    values = {"arm": arm, "triples": count, "seed": seed}
    return Cell(name_of(arm, count, seed), values, ConfigDict({"training": training, "test": test}))


def _file(arm: str, count: int, seed: int) -> str:
    return f"data/{'bare' if arm == NO_REFERENCE else 'triples'}-{count or 'all'}-seed{seed}.jsonl"


def make_data(grid: Any, workdir: Path) -> None:
    """Each seed's triples, the smaller sets within the larger ones; of real policies also the groups and the tests."""
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    real = alpaca.write(Path(grid.root), workdir / "data") if REAL in (grid.pool, grid.train, grid.test) else []
    found = real if grid.train == REAL else list(records(grid.train))
    for seed in grid.seeds:
        order = spread_over_prompts(found, np.random.default_rng(seed))
        for count in grid.triples:
            chosen = order[: count or None]
            write_lines(workdir / _file(SCRATCH, count, seed), map(to_row, chosen))
            if count in grid.without_reference:
                write_lines(workdir / _file(NO_REFERENCE, count, seed), map(to_row, map(bare_of, chosen)))


def spread_over_prompts(found: Sequence[Comparison], rng: np.random.Generator) -> list[Comparison]:
    """In random order, one of each prompt before the second of any."""
    shuffled = [found[i] for i in rng.permutation(len(found))]
    met: dict[str, int] = {}
    turns = []
    for c in shuffled:
        turns.append(met.setdefault(c.prompt, 0))
        met[c.prompt] += 1
    return [shuffled[i] for i in np.argsort(turns, kind="stable")]


def bare_of(c: Comparison) -> Comparison:
    """Without its reference."""
    return dataclasses.replace(c, references=())


def tested_groups(tests: Any, workdir: Path, split: str) -> list[Comparison]:
    """Groups that ask who wrote what, on held-out prompts: a reference, an answer by its policy, and others'."""
    if "pool" not in tests:
        return list(records(str(workdir / tests[split].removeprefix("work:"))))
    return pool(tests.pool, split, "unseen").triples(seed=0, per_prompt=tests.per_prompt, negatives=NEGATIVES)


def tested_triples(path: str, workdir: Path, arm: str) -> list[Comparison]:
    """Held-out ranked triples as an arm sees them, one of each prompt."""
    every = records(str(workdir / path.removeprefix("work:")) if path.startswith("work:") else path)
    found = list({c.prompt: c for c in reversed(list(every))}.values())[::-1]
    return [bare_of(c) for c in found] if arm == NO_REFERENCE else found


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Of pre-training the credit and the rewards of every triple of policies; of fine-tuning the credit of every ranked triple.

    The credits of baselines stand beside them, as metrics of their own names.
    """
    model = RewardModel.load(workdir / cell.name, mesh="all")
    if cell.values["arm"] == PRETRAIN:
        for split in SPLITS:
            groups = tested_groups(cell.config.tests, workdir, split)
            rows = discrimination_rows(groups, model.score_groups(groups, progress=True))
            rows += beside(groups, OF_POLICIES, discrimination_rows)
            yield from (dataclasses.replace(row, groups={"split": split, **row.groups}) for row in rows)
    else:
        found = tested_triples(cell.config.test, workdir, cell.values["arm"])
        yield from preference_rows(found, model.score_groups(found, progress=True))
        yield from beside(found, of_preferences(found), preference_rows)


def beside(found: Sequence[Comparison], names: Sequence[str], rows_of: Callable[..., list[Row]]) -> list[Row]:
    """The baselines' credits."""
    return [
        dataclasses.replace(row, metric=name)
        for name in names
        for row in of_metric(rows_of(found, Baseline(name).score(found)), CREDIT)
    ]
