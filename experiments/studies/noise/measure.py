"""Which reward model learns best from mislabeled pairs? `python -m experiments.study noise`, and `noise:rule`.

A part of the training labels is flipped. CRM's two models review each other's pairs; its controls are one model, one of double
budget, two averaged ones, two that review themselves, two with pairs left out by chance, and losses that know of noise: label
smoothing at the true rate, and an adaptive margin by the strength that `two` gives a pair. All are tested on clean labels.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import train as training_command
from experiments.studies import shared
from experiments.studies.noise import config, data
from experiments.studies.noise.config import HARMLESS, RULE, training
from rmjax.data.readers import write_records
from rmjax.evaluate.comparisons import CREDIT, preference_rows
from rmjax.evaluate.plots import STYLE, WIDTH
from rmjax.evaluate.rows import Row, of_metric
from rmjax.losses.review import flipped_fraction
from rmjax.reward_model import RewardModel
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, difference_line, line_cell, mean_line, pivot, selected, signed_cell
from rmjax.voting import voted

DIAGNOSTICS = {
    "discard_recall": "flipped pairs that are left out", "discard_precision": "flipped among those left out",
    "jaccard": "pairs in common (Jaccard)", "estimate": "noise that the margins suggest",
}  # fmt: skip


def cells(grid: Any) -> Iterator[Cell]:
    """Seeds outermost. Without noise what knows its rate is the same as without that: those cells are left out."""
    for seed in grid.seeds:
        for noise in grid.noise:
            for name in shared.chosen_arms(grid):
                arm = grid.arms[name]
                if not noise and (arm.smoothing or arm.review in ("self", "random", "peer")) and not arm.curriculum:
                    continue
                place = f"noise{round(100 * noise)}-seed{seed}"
                run = training(grid, name, noise, seed, f"work:data/pairs-seed{seed}.jsonl")
                whole = {
                    "training": run, "passes": run.data.epochs, "curriculum": arm.curriculum,
                    "votes": f"cell:two-{place}" if arm.margin else "",
                    "data": grid.data, "tested": grid.tested, "root": grid.root,
                }  # fmt: skip
                yield Cell(f"{name}-{place}", {"arm": name, "noise": noise, "seed": seed}, ConfigDict(whole))


def train(cell: ConfigDict, folder: Path) -> None:
    """As many steps as the passes take; fraction left out and curriculum begin in the first pass and behind it."""
    run = cell.training
    if cell.votes:
        folder.mkdir(parents=True, exist_ok=True)
        run.data.path = str(folder / "voted.jsonl")
        if not Path(run.data.path).exists():
            write_records(run.data.path, voted(Path(cell.votes)))
    run.run.steps = run.run.save_every = shared.steps_of(run, run.data.path)
    each = max(1, run.run.steps // cell.passes)
    if run.crm.review in ("peer", "self", "random"):
        run.crm.ramp = each
    if cell.curriculum:
        run.crm.start = run.crm.window = each
    run.data.epochs = 0
    training_command.run(run, folder)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """The credit of every held-out pair; of two models, what they left out in the end, and the noise that margins suggest."""
    folder = workdir / cell.name
    model, tests = RewardModel.load(folder, mesh="all"), data.held_out(cell.config)
    yield from of_metric(preference_rows(tests, model.scorer.score(tests)), CREDIT)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in list(DIAGNOSTICS)[:3]:
        found = [row[f"train/{name}"] for row in logged if f"train/{name}" in row]
        if found:
            yield Row("run", "run", name, float(np.mean(found[len(found) // 2 :])))
    if cell.values["arm"] in ("crm", "curriculum"):
        learned = voted(folder)
        margins = [
            c.columns["pair_strength"][0][1] * (1 if c.ranks and c.ranks[0] < c.ranks[1] else -1) for c in learned
        ]
        yield Row("run", "run", "estimate", flipped_fraction(np.asarray(margins)))


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Accuracy of every arm at every rate, CRM against the others (paired), and what the reviews leave out."""
    runs: dict[tuple[str, float], list[Sequence[Row]]] = {}
    for cell in cells(grid):
        runs.setdefault((cell.values["arm"], cell.values["noise"]), []).append(results[cell.name].rows)
    credits = {key: selected(found, CREDIT, {}) for key, found in runs.items()}
    lines = [mean_line({"arm": arm, "noise": noise}, "accuracy", found) for (arm, noise), found in credits.items()]
    for (first, second), noise in ((pair, noise) for pair in grid.compared for noise in grid.noise):
        if {(first, noise), (second, noise)} <= set(credits):
            axes = {"arm": f"{first} − {second}", "noise": noise}
            lines.append(difference_line(axes, "difference", credits[first, noise], credits[second, noise]))
    for (arm, noise), found in runs.items():
        there = [name for name in DIAGNOSTICS if all(of_metric(rows, name) for rows in found)]
        lines += [mean_line({"arm": arm, "noise": noise}, name, selected(found, name, {})) for name in there]
    return lines


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/claims/noise.md: a column for each rate."""
    named = [{**line, "noise": f"{100 * line['noise']:.0f} % flipped"} for line in lines]
    found = {
        "accuracy": pivot([x for x in named if x["metric"] == "accuracy"], ("arm",), "noise", line_cell),
        "difference": pivot([x for x in named if x["metric"] == "difference"], ("arm",), "noise", signed_cell),
        "review": pivot(named, ("arm", "noise"), list(DIAGNOSTICS.items()), lambda line: f"{line['value']:.2f}"),
    }
    return {name: table.markdown(each) for name, each in found.items() if len(each) > 1}


@matplotlib.rc_context(STYLE)
def figure(lines: Sequence[Line]) -> Figure:
    """Accuracy against the fraction of flipped labels, a line for each arm."""
    drawn = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = drawn.subplots()
    known = [line for line in lines if line["metric"] == "accuracy"]
    for number, arm in enumerate(dict.fromkeys(line["arm"] for line in known)):
        own = [line for line in known if line["arm"] == arm]
        at = [100 * line["noise"] + 0.35 * (number - 4) for line in own]
        errors = [[x["value"] - x["low"] for x in own], [x["high"] - x["value"] for x in own]]
        axes.errorbar(
            at, [x["value"] for x in own], errors, fmt="o-", markersize=3, linewidth=1, elinewidth=0.7, label=arm
        )
    axes.set(xlabel="flipped labels (%)", ylabel="accuracy on clean labels")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.25))
    return drawn


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: a grid that cannot be run."""
    shared.require_arms(grid)
    if "margin" in (arms := shared.chosen_arms(grid)) and "two" not in arms:
        raise ValueError(
            f"config.chosen is {grid.chosen!r}: the arm margin takes its strengths from two; choose that too"
        )
    name = "noise" if grid.data == HARMLESS else f"noise_{RULE}"
    study = Study(
        name, tuple(cells(grid)), train, measure, functools.partial(data.make_data, grid), discards=not grid.keep_checkpoints,
        code=(shared, config, data),
    )  # fmt: skip
    page = Path("docs/claims/noise.md")
    return Claim(study, page, lambda results: summarize(grid, results), parts, lambda lines: {name: figure(lines)})
