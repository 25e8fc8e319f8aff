"""The scaling law of POLAR's pre-training: `python -m experiments.study scaling`.

Fits L = β·C^α over all runs, and over the runs that none was better than for as much compute or less. The paper has α = −0.0342,
R² = 0.9912 (arXiv 2507.05197, section 4.4).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import train
from experiments.studies import shared
from rmjax.data.sources import pool
from rmjax.evaluate import envelope, fit_power_law
from rmjax.evaluate.plots import scaling_law
from rmjax.evaluate.rows import Row
from rmjax.evaluate.scaling import Point, PowerLaw
from rmjax.models.parameters import count
from rmjax.reward_model import RewardModel
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, mean_line, selected
from rmjax.train.flops import decoder_flops_per_token
from rmjax.train.metrics import read_metrics

SPLITS = ("seen", "unseen")
PAPER = ["paper", "envelope", "", "−0.0342", "0.9912"]


def cells(grid: Any) -> Iterator[Cell]:
    """A run for each size and budget."""
    for layers in grid.layers:
        for steps in grid.steps:
            config = shared.load_runs(grid.training)[0]
            config.model.update(layers=layers, frozen_layers=layers - 2)
            config.run.update(steps=steps, save_every=steps, keep=1)
            whole = {
                "training": config,
                "per_prompt": grid.per_prompt,
                "negatives": grid.negatives,
                "pool": "shipped:policy_pool",
            }
            yield Cell(f"layers{layers}-steps{steps}", {"layers": layers, "steps": steps}, ConfigDict(whole))


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """−log σ(r⁺ − r⁻) of each held-out triple, in nats (ln 2 is chance), and the training's FLOP."""
    model = RewardModel.load(workdir / cell.name, mesh="all")
    for split in SPLITS:
        groups = pool(cell.config.pool, split, "unseen").triples(
            seed=0, per_prompt=cell.config.per_prompt, negatives=cell.config.negatives
        )
        for number, (positive, *others) in enumerate(model.score_groups(groups, progress=True)):
            for other, score in enumerate(others):
                loss = float(np.logaddexp(0.0, score - positive))
                yield Row(f"{number}-{other}", groups[number].prompt, "loss", loss, {"split": split})
    yield Row("run", "run", "compute", compute(cell, model, workdir / cell.name))


def compute(cell: Cell, model: RewardModel, folder: Path) -> float:
    """FLOP of a run, the frozen layers' forward pass included, padding not."""
    config = cell.config.training
    trained = count(model.params["backbone"]["layers"])
    parameters = trained + count(model.params["backbone"].get("frozen_layers", {}))
    per_token = decoder_flops_per_token(
        parameters, layers=config.model.layers, attention_width=model.config.heads * model.config.head_width,
        keys=config.data.row_tokens, trainable=trained, without_gradient=config.model.frozen_layers / config.model.layers,
    )  # fmt: skip
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]
    used = 1 - float(np.mean([line["train/pad_fraction"] for line in lines]))
    return per_token * config.run.steps * config.data.rows * config.data.row_tokens * used


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """The loss of each run on each split, with the run's compute beside it."""
    lines = []
    for cell in cells(grid):
        rows = results[cell.name].rows
        flop = next(row.value for row in rows if row.metric == "compute")
        for split in SPLITS:
            axes = {**cell.values, "split": split, "compute": flop}
            lines.append(mean_line(axes, "loss", selected([rows], "loss", {"split": split})))
    return lines


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The losses and the fits."""
    runs = {(line["layers"], line["steps"]): f"{line['compute']:.1e}".replace("+", "") for line in lines}
    loss = {(line["layers"], line["steps"], line["split"]): f"{line['value']:.3f}" for line in lines}
    losses = [["layers", "steps", "C, FLOP", *SPLITS]]
    losses += [[str(l), str(s), flop, *(loss[l, s, split] for split in SPLITS)] for (l, s), flop in runs.items()]  # noqa: E741
    fits = [["policies", "fit over", "runs", "α (95 % interval)", "R²"]]
    for split in SPLITS:
        for over, law in {"envelope": _front(lines, split)[1], "all runs": _fit(_points(lines, split))}.items():
            interval = f"{law.alpha:.3f} ({law.alpha_low:.3f} to {law.alpha_high:.3f})".replace("-", "−")
            fits.append([split, over, str(law.n), interval, f"{law.r_squared:.3f}"])
    return {"losses": table.markdown(losses), "fits": table.markdown([*fits, PAPER])}


def _points(lines: Sequence[Line], split: str) -> list[Point]:
    return [
        Point(f"{x['layers']} layers, {x['steps']} steps", x["compute"], x["value"])
        for x in lines
        if x["split"] == split
    ]


def _fit(points: Sequence[Point]) -> PowerLaw:
    return fit_power_law([point.compute for point in points], [point.loss for point in points])


def _front(lines: Sequence[Line], split: str) -> tuple[list[Point], PowerLaw]:
    """Each budget is a run of its own, with its own schedule: nothing is to be read between two of them."""
    runs: dict[str, Any] = {point.run: ([point.compute], [point.loss]) for point in _points(lines, split)}
    front = envelope(runs)
    return front, _fit(front)


def figures(lines: Sequence[Line]) -> dict[str, Figure]:
    """Loss against compute, a plot for each split."""
    sizes = dict.fromkeys(line["layers"] for line in lines)
    found = {}
    for split in SPLITS:
        own = {size: [x for x in lines if x["split"] == split and x["layers"] == size] for size in sizes}
        runs: dict[str, Any] = {
            f"{size} layers": ([x["compute"] for x in each], [x["value"] for x in each]) for size, each in own.items()
        }
        found[f"scaling_{split}"] = scaling_law(runs, *_front(lines, split))
    return found


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study(
        "scaling",
        tuple(cells(grid)),
        lambda config, folder: train.run(config.training, folder),
        measure,
        code=(shared,),
    )
    return Claim(study, Path("docs/claims/polar.md"), lambda results: summarize(grid, results), parts, figures)
