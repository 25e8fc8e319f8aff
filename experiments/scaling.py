"""The scaling law: `python -m experiments.scaling --workdir=runs/scaling` trains the grid of configs/polar/scaling.py.

Writes scaling.json (every run's parameters, tokens, compute and held-out loss; the fits L = β·C^α over all runs and over the
runs that none was better than for less compute) and, for held-out prompts with seen and with unseen policies,
scaling_seen.svg and scaling_unseen.svg. Finished runs are not run or judged again. Paper: α = −0.0342, R² = 0.9912 (section 4.4).
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from configs.polar import scaling as grid
from experiments import train
from experiments.start import guarded, parse_flags, prepare
from rmjax.data.record import Comparison
from rmjax.data.sources import pool
from rmjax.evaluate import envelope, environment, fit_power_law
from rmjax.evaluate.plots import scaling_law, svg
from rmjax.evaluate.scaling import Point, PowerLaw
from rmjax.files import write_json, write_text
from rmjax.locks import locked
from rmjax.models.parameters import count
from rmjax.reward_model import RewardModel
from rmjax.train.flops import decoder_flops_per_token
from rmjax.train.metrics import read_metrics
from rmjax.trainer import open_workdir

GROUPS_PER_PROMPT, NEGATIVES = 1, 3


def held_out_loss(model: RewardModel, triples: Sequence[Comparison]) -> float:
    """Mean −log σ(r+ − r−) in nats on triples that training has not seen; ln 2 is chance."""
    scores = model.score_groups(triples, progress=True)
    return float(np.mean([np.logaddexp(0.0, other - positive) for positive, *others in scores for other in others]))


def point(layers: int, steps: int, workdir: Path, sets: dict[str, list[Comparison]]) -> dict[str, Any]:
    """Trains and judges one cell of the grid; the stored result where it is finished."""
    config, folder = grid.get_config(layers, steps), workdir / f"layers{layers}-steps{steps}"
    stored = folder / "result.json"
    if stored.exists():
        return json.loads(stored.read_text())
    train.run(config, folder)
    model = RewardModel.load(folder, mesh="all")
    trained = count(model.params["backbone"]["layers"])
    parameters = trained + count(model.params["backbone"].get("frozen_layers", {}))
    per_token = decoder_flops_per_token(
        parameters, layers=layers, attention_width=model.config.heads * model.config.head_width,
        keys=config.data.row_tokens, trainable=trained, without_gradient=config.model.frozen_layers / layers,
    )  # fmt: skip
    padding = np.mean(
        [row["train/pad_fraction"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
    )
    tokens = steps * config.data.rows * config.data.row_tokens * (1 - float(padding))
    losses = {f"loss_{name}": held_out_loss(model, triples) for name, triples in sets.items()}
    found = dict(
        layers=layers,
        steps=steps,
        parameters=parameters,
        trained=trained,
        tokens=tokens,
        compute=per_token * tokens,
        **losses,
    )
    write_json(stored, found)
    return found


def run(workdir: Path) -> None:
    """The grid, the fits, the plot. InUseError where another run is writing to `workdir`."""
    open_workdir(workdir)
    with locked(workdir):
        _run(workdir)


def _run(workdir: Path) -> None:
    sets = {
        split: pool("shipped:policy_pool", split, "unseen").triples(
            seed=0, per_prompt=GROUPS_PER_PROMPT, negatives=NEGATIVES
        )
        for split in ("seen", "unseen")
    }
    points = [point(layers, steps, workdir, sets) for layers in grid.LAYERS for steps in grid.STEPS]
    result: dict[str, Any] = {"points": points, "paper": {"alpha": -0.0342, "r_squared": 0.9912}, **environment()}
    for split in sets:
        result[split] = _fits(points, f"loss_{split}")
        figure = scaling_law(_by_size(points, f"loss_{split}"), *_law(points, f"loss_{split}"))
        write_text(workdir / f"scaling_{split}.svg", svg(figure, f"held-out loss against compute, {split} policies"))
    write_json(workdir / "scaling.json", result)
    print(json.dumps({split: result[split] for split in sets}, indent=1))


def _by_size(points: Sequence[dict[str, Any]], name: str) -> dict[str, tuple[list[float], list[float]]]:
    sizes = {f"{layers} layers": [p for p in points if p["layers"] == layers] for layers in grid.LAYERS}
    return {size: ([p["compute"] for p in found], [p[name] for p in found]) for size, found in sizes.items()}


def _law(points: Sequence[dict[str, Any]], name: str) -> tuple[list[Point], PowerLaw]:
    """Each budget is a run of its own, with its own schedule: nothing is to be read between two of them."""
    runs: dict[str, tuple[Any, Any]] = {
        f"{p['layers']} layers, {p['steps']} steps": ([p["compute"]], [p[name]]) for p in points
    }
    front = envelope(runs)
    return front, fit_power_law([p.compute for p in front], [p.loss for p in front])


def _fits(points: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    everything = fit_power_law([p["compute"] for p in points], [p[name] for p in points])
    return {"all_runs": dataclasses.asdict(everything), "envelope": dataclasses.asdict(_law(points, name)[1])}


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    sys.exit(guarded(functools.partial(run, Path(flags.FLAGS.workdir)), resumes=True))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/scaling", "folder of the runs")
    prepare()
    app.run(main, flags_parser=parse_flags)
