"""One reward model for two kinds of preference, against a model for each: `python -m experiments.study interference`.

Each arm of config.py is trained on both domains together, with the domain as the type label. Models for one domain alone are
trained on that domain's same comparisons: in as many passes, and in as many steps as the joint model has (more passes, the same
compute). Interference is the accuracy of a separate model minus that of the joint one, on held-out comparisons of the domain.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.studies import shared
from experiments.studies.interference import config
from experiments.studies.interference.config import training
from rmjax.data.record import Comparison, to_row
from rmjax.data.sources import records
from rmjax.evaluate.baselines import of_preferences
from rmjax.evaluate.comparisons import CREDIT, preference_rows, unusable
from rmjax.evaluate.routing import routing_of
from rmjax.evaluate.rows import Row, of_metric
from rmjax.evaluate.scorers import Baseline
from rmjax.files import write_lines
from rmjax.reward_model import RewardModel
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import (
    Line,
    difference_line,
    line_cell,
    mean_cell,
    mean_line,
    pivot,
    selected,
    signed_cell,
    spread_cell,
)

JOINT = "both"
KINDS = ("separate", "separate_longer")  # models of one domain: as many passes as the joint one, as many steps
BASELINES = ("word_overlap", "length")


def load_domain(grid: Any, name: str, test: bool) -> list[Comparison]:
    """A domain's ordered comparisons, with its number as their type. ValueError where there is none."""
    domain, number = grid.domains[name], list(grid.domains).index(name)
    path, split = (domain.test, domain.test_split) if test else (domain.train, domain.train_split)
    found = [
        dataclasses.replace(c, type=number, source=name)
        for c in records(path, grid.root, split)
        if re.fullmatch(domain.category, c.category or "") and not unusable(c)
    ]
    if not found:
        raise ValueError(f"config.domains.{name}: {path} has no comparison with a category like {domain.category!r}")
    return found


def held_out(grid: Any) -> dict[str, list[Comparison]]:
    """Domain → its test comparisons."""
    return {name: shared.spread(load_domain(grid, name, test=True), grid.tested) for name in grid.domains}


def make_data(grid: Any, workdir: Path) -> None:
    """For every seed a file per domain, and one with both."""
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    everything = {name: load_domain(grid, name, test=False) for name in grid.domains}
    for seed in grid.seeds:
        rng, rows = np.random.default_rng(seed), {}
        for name, found in everything.items():
            rows[name] = [to_row(found[i]) for i in rng.permutation(len(found))[: grid.trained]]
        for name, each in (rows | {JOINT: [row for part in rows.values() for row in part]}).items():
            write_lines(workdir / "data" / f"{name}-seed{seed}.jsonl", each)


def cells(grid: Any) -> Iterator[Cell]:
    """Seeds outermost, so that a study that is stopped early has whole seeds."""
    arms = shared.chosen_arms(grid)
    alone = list(dict.fromkeys(grid.arms[name].alone for name in arms))
    for seed in grid.seeds:
        for name, kind, domain in itertools.product(alone, KINDS, grid.domains):
            yield _cell(grid, name, domain, kind, seed)
        for name in arms:
            yield _cell(grid, name, JOINT, "joint", seed)


def _cell(grid: Any, name: str, data: str, kind: str, seed: int) -> Cell:
    path = f"work:data/{data}-seed{seed}.jsonl"
    config = training(grid, name, seed, path)
    config.adapter.beta = config.adapter.beta if data == JOINT else 0.0  # one type has nothing to be told apart from
    as_long_as = f"work:data/{JOINT}-seed{seed}.jsonl" if kind == "separate_longer" else path
    values = {"arm": name, "data": data, "kind": kind, "seed": seed}
    whole = {
        "training": config,
        "as_long_as": as_long_as,
        "tested": grid.tested,
        "domains": grid.domains,
        "root": grid.root,
    }
    return Cell(f"{name}-{data}{'-longer' if kind == KINDS[1] else ''}-seed{seed}", values, ConfigDict(whole))


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """The credit of every held-out comparison, 0 to 1, and how the experts are routed."""
    model, data = RewardModel.load(workdir / cell.name, mesh="all"), cell.values["data"]
    tests = {name: found for name, found in held_out(cell.config).items() if data in (JOINT, name)}
    for domain, found in tests.items():
        yield from of_domain(domain, preference_rows(found, model.scorer.score(found)))
    if model.config.adapter and model.config.adapter.routed:
        everything = [c for found in tests.values() for c in found]
        yield from shared.routing_rows(routing_of(model, everything, list(tests)))


def of_domain(domain: str, rows: Sequence[Row]) -> list[Row]:
    """The credits among the rows, marked with their domain."""
    return [dataclasses.replace(row, groups={"domain": domain}) for row in of_metric(rows, CREDIT)]


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Accuracies, interference (paired), joint models against each other, baselines, routing."""
    runs = {
        (cell.values["arm"], cell.values["data"], cell.values["kind"], cell.values["seed"]): results[cell.name].rows
        for cell in cells(grid)
    }

    def credits(arm: str, data: str, kind: str, domain: str) -> list[list[Row]]:
        return selected([runs[arm, data, kind, seed] for seed in grid.seeds], CREDIT, {"domain": domain})

    arms, lines = shared.chosen_arms(grid), []
    for kind, arm, domain in itertools.product(
        KINDS, dict.fromkeys(grid.arms[arm].alone for arm in arms), grid.domains
    ):
        lines.append(mean_line({"arm": arm, "domain": domain}, kind, credits(arm, domain, kind, domain)))
    for arm, domain in itertools.product(arms, grid.domains):
        axes, joint = {"arm": arm, "domain": domain}, credits(arm, JOINT, "joint", domain)
        lines.append(mean_line(axes, "joint", joint))
        for kind in KINDS:
            alone = credits(grid.arms[arm].alone, domain, kind, domain)
            lines.append(difference_line(axes, kind.replace("separate", "interference"), alone, joint))
    for (first, second), domain in itertools.product(grid.compared, grid.domains):
        if {first, second} <= set(shared.chosen_arms(grid)):
            pair = [credits(arm, JOINT, "joint", domain) for arm in (first, second)]
            lines.append(difference_line({"arm": f"{first} − {second}", "domain": domain}, "difference", *pair))
    for domain, found in held_out(grid).items():
        for name in of_preferences(found):
            rows = of_metric(preference_rows(found, Baseline(name).score(found)), CREDIT)
            lines.append(mean_line({"arm": name, "domain": domain}, "baseline", [rows]))
    routed = {arm: [runs[arm, JOINT, "joint", seed] for seed in grid.seeds] for arm in shared.chosen_arms(grid)}
    return lines + shared.routing_lines(routed)


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/claims/loramoe.md."""
    heads = {"separate": "as many passes", "separate_longer": "as many steps as the joint model"}
    lost = {
        kind.replace("separate", "interference"): f"interference, {head.split(' as')[0]}"
        for kind, head in heads.items()
    }
    baselines = [line for line in lines if line["metric"] == "baseline" and line["arm"] in BASELINES]
    between = [line for line in lines if line["metric"] == "difference"]
    found = {
        "separate": pivot(lines, ("arm", "domain"), _there(lines, heads)),
        "joint": pivot(lines, ("arm", "domain"), _there(lines, {"joint": "accuracy"} | lost), _shown),
        "between": pivot(between, ("arm",), "domain", signed_cell),
        "baselines": pivot(baselines, ("arm",), "domain", mean_cell),
        "routing": pivot([line for line in lines if "on" in line], ("arm",), "on", spread_cell),
    }
    return {name: table.markdown(each) for name, each in found.items() if len(each) > 1}


def _there(lines: Sequence[Line], heads: Mapping[str, str]) -> list[tuple[str, str]]:
    """The columns of metrics that the results have: older ones lack the longer models."""
    known = {line["metric"] for line in lines}
    return [(metric, head) for metric, head in heads.items() if metric in known]


def _shown(line: Line) -> str:
    return signed_cell(line) if line["metric"].startswith("interference") else line_cell(line)


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: a grid that cannot be run."""
    check(grid)
    study = Study(
        "interference" if "ladder" in grid.domains else f"interference_{list(grid.domains)[-1]}", tuple(cells(grid)),
        shared.train_as_long_as, measure, lambda workdir: make_data(grid, workdir), discards=not grid.keep_checkpoints,
        code=(shared, config),
    )  # fmt: skip
    page = Path("docs/claims/loramoe.md")
    shown = ("joint",) if study.name == "interference" else ("joint", "between")
    return Claim(study, page, lambda results: summarize(grid, results), parts, shown=shown)


def check(grid: Any) -> None:
    """ValueError for grids that cannot be run."""
    for field in ("seeds", "arms", "domains"):
        if not len(grid[field]):
            raise ValueError(f"config.{field} is empty; give one at least")
    shared.require_arms(grid)
    if unknown := {arm.alone for arm in grid.arms.values()} - set(grid.arms):
        raise ValueError(f"config.arms.*.alone names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")
