"""What POLAR pre-training is worth: `python -m experiments.study polar:regimes` (or `:demo`, `:real`).

The paper's table 13 has three columns: the whole method, without pre-training, without pre-training and reference. Here they
stand for several numbers of ranked triples, beside baselines and, where `config.longer` asks for it, beside a run without
pre-training that takes as many FLOPs.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import train
from experiments.studies.polar import alpaca, runs
from experiments.studies.polar.runs import LONGER, NO_REFERENCE, PRETRAINED, SCRATCH, SPLITS, cells, measure
from rmjax.data.sources import pool
from rmjax.evaluate.baselines import OF_POLICIES
from rmjax.evaluate.comparisons import CREDIT
from rmjax.evaluate.discrimination import discrimination_of
from rmjax.evaluate.plots import against_size
from rmjax.evaluate.report import polar_report
from rmjax.evaluate.rows import Row, of_metric
from rmjax.study import table
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, difference_line, line_cell, mean_cell, mean_line, pivot, selected, signed_cell

ARMS = {
    PRETRAINED: "POLAR",
    SCRATCH: "without pre-training",
    NO_REFERENCE: "without pre-training and reference",
    LONGER: "without pre-training, as many FLOPs",
}
BASELINES = {
    "word_overlap": "word overlap",
    "length": "length as the reference's",
    "longer": "longer",
    "shorter": "shorter",
}
README = Path("README.md")
LADDERS = ("noise", "depth", "temperature", "topic")
KINDS: Mapping[str, Callable[[Row], bool]] = {
    "all": lambda row: True,
    "verified": lambda row: row.groups.get("category") not in LADDERS,
    "ladder": lambda row: row.groups.get("category") in LADDERS,
}


class _Runs:
    """Each seed's rows of an arm."""

    def __init__(self, grid: Any, results: Mapping[str, Result]):
        self.grid, self.results = grid, results

    def of(self, arm: str, count: int, metric: str = CREDIT, kind: str = "all") -> list[list[Row]]:
        """Credits on ranked triples."""
        found = [self.results[runs.name_of(arm, count, seed)].rows for seed in self.grid.seeds]
        return [[row for row in rows if KINDS[kind](row)] for rows in selected(found, metric, {})]

    def pretrained(self, split: str, metric: str = CREDIT) -> list[list[Row]]:
        """Credits on triples of policies."""
        found = [self.results[runs.pretrain_name(seed)].rows for seed in self.grid.seeds]
        return selected(found, metric, {"split": split})

    def policies(self, split: str) -> tuple[list[Row], dict[str, list[Row]]]:
        """The first seed's rows on triples of policies, and the baselines' credits."""
        rows = [
            row for row in self.results[runs.pretrain_name(self.grid.seeds[0])].rows if row.groups["split"] == split
        ]
        rows = [dataclasses.replace(row, groups={k: v for k, v in row.groups.items() if k != "split"}) for row in rows]
        credits = {
            name: [dataclasses.replace(row, metric=CREDIT) for row in of_metric(rows, name)] for name in OF_POLICIES
        }
        return rows, credits

    def arms(self, count: int) -> list[str]:
        """Those that were run with so many triples."""
        return [arm for arm in ARMS if runs.name_of(arm, count, self.grid.seeds[0]) in self.results]


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Accuracies, paired differences, baselines."""
    found, most = _Runs(grid, results), grid.triples[-1]
    lines = []
    for split in SPLITS:
        ours = found.pretrained(split)
        lines.append(mean_line({"arm": "POLAR", "policies": split}, "policies", ours))
        for name in OF_POLICIES:
            theirs = found.pretrained(split, name)
            lines.append(mean_line({"arm": BASELINES[name], "policies": split}, "policies", theirs[:1]))
            lines.append(
                difference_line({"arm": f"POLAR − {BASELINES[name]}", "policies": split}, "over", ours, theirs)
            )
    for count in grid.triples:
        for arm in found.arms(count):
            lines.append(
                mean_line({"arm": ARMS[arm], "triples": count, "kind": "all"}, "accuracy", found.of(arm, count))
            )
        lines += _differences(found, count)
    kinds = list(KINDS) if found.of(SCRATCH, most, kind="ladder")[0] else ["all"]
    for kind in kinds[1:]:
        for arm in found.arms(most):
            rows = found.of(arm, most, kind=kind)
            lines.append(mean_line({"arm": ARMS[arm], "triples": most, "kind": kind}, "accuracy", rows))
    for kind, (name, label) in itertools.product(kinds, BASELINES.items()):
        rows = found.of(SCRATCH, most, name, kind)[:1]
        if any(rows):  # `longer` is no baseline of its own where nothing has a reference
            lines.append(mean_line({"arm": label, "triples": most, "kind": kind}, "baseline", rows))
    return lines


def _differences(found: _Runs, count: int) -> list[Line]:
    """Between the arms with so many triples, and from those with a reference to two baselines."""
    there, lines = found.arms(count), []
    for first, second in ((PRETRAINED, SCRATCH), (SCRATCH, NO_REFERENCE), (PRETRAINED, LONGER)):
        if {first, second} <= set(there):
            axes = {"arm": f"{ARMS[first]} − {ARMS[second]}", "triples": count}
            lines.append(difference_line(axes, "difference", found.of(first, count), found.of(second, count)))
    with_reference = [arm for arm in there if arm != NO_REFERENCE]
    for arm, name in itertools.product(with_reference, ("word_overlap", "length")):
        axes = {"arm": f"{ARMS[arm]} − {BASELINES[name]}", "triples": count}
        lines.append(difference_line(axes, "difference", found.of(arm, count), found.of(arm, count, name)))
    return lines


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/claims/polar.md."""
    counts = list(dict.fromkeys(line["triples"] for line in lines if line["metric"] == "accuracy"))
    columns = [line for line in lines if line["metric"] in ("accuracy", "baseline") and line["triples"] == counts[-1]]
    sizes = [line for line in lines if line["metric"] == "accuracy" and line["kind"] == "all"]
    found = {
        "columns": pivot(
            columns, ("arm",), "kind", lambda line: (mean_cell if line["metric"] == "baseline" else line_cell)(line)
        ),
        "policies": pivot([x for x in lines if x["metric"] in ("policies", "over")], ("arm",), "policies", _signed),
        "summary": pivot(columns, ("arm",), "kind", mean_cell),
    }
    if len(counts) > 1:
        found["triples"] = pivot(sizes, ("triples",), "arm", line_cell)
    differences = [line | {"triples": line["triples"] or "all"} for line in lines if line["metric"] == "difference"]
    found["differences"] = pivot(differences, ("arm",), "triples", signed_cell)
    return {name: table.markdown(each) for name, each in found.items()}


def _signed(line: Line) -> str:
    return signed_cell(line) if line["metric"] == "over" else line_cell(line)


def figures(name: str, lines: Sequence[Line]) -> dict[str, Figure]:
    """Accuracy against the number of ranked triples, baselines as level lines."""
    sizes = [line for line in lines if line["metric"] == "accuracy" and line["kind"] == "all"]
    counts = list(dict.fromkeys(line["triples"] for line in sizes))
    if len(counts) < 2:
        return {}
    arms = {arm: [x for x in sizes if x["arm"] == arm] for arm in (ARMS[PRETRAINED], ARMS[SCRATCH])}
    level = [
        x for x in lines if x["metric"] == "baseline" and x["kind"] == "all" and x["arm"] == BASELINES["word_overlap"]
    ]
    panel: dict[str, Any] = arms | {BASELINES["word_overlap"]: level * len(counts)}
    return {
        name: against_size(counts, {"accuracy on held-out ranked triples": panel}, "ranked triples to fine-tune on")
    }


def report(grid: Any, results: Mapping[str, Result]) -> dict[str, Any]:
    """What report.html shows: the first seed, with the most triples."""
    first, most = ConfigDict(grid.to_dict() | {"seeds": grid.seeds[:1]}), grid.triples[-1]
    found = _Runs(first, results)
    kinds = None if grid.pool == runs.REAL else pool(grid.pool, "all", "unseen").kind
    splits = {split: discrimination_of(*found.policies(split), kinds) for split in SPLITS}
    preferences = {arm: found.of(arm, most)[0] for arm in found.arms(most)}
    baselines = {name: rows for name in BASELINES if (rows := found.of(SCRATCH, most, name)[0])}
    return polar_report(splits, preferences, baselines, 0.0, {})


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py.

    Raises:
      ValueError: not one number of steps for each number of triples, or no seed.
    """
    if len(grid.steps) != len(grid.triples) or not grid.triples or not grid.seeds:
        raise ValueError(
            f"config.steps is {grid.steps} and config.triples {grid.triples}; give one for each, and a seed"
        )
    study = Study(
        grid.name, tuple(cells(grid)), lambda config, folder: train.run(config.training, folder), measure,
        lambda workdir: runs.make_data(grid, workdir), code=(alpaca,),
    )  # fmt: skip
    return Claim(
        study, Path("docs/claims/polar.md"), lambda results: summarize(grid, results), parts,
        lambda lines: figures(grid.name, lines), lambda results: report(grid, results),
        {"summary": README} if grid.name == "regimes" else {},
        shown=None if grid.name == "regimes" else ("columns", "policies", "differences"),
    )  # fmt: skip
