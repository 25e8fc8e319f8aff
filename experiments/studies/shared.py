"""What several studies share: arms by pattern, runs as long as their data, routing in long form."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from experiments import train
from rmjax.config import chosen
from rmjax.evaluate.routing import served_share
from rmjax.evaluate.rows import Row
from rmjax.losses.balance import equal_groups
from rmjax.recipe import read_config
from rmjax.start import load_start
from rmjax.streams import format_of, open_stream
from rmjax.study.summary import Line, mean_line, selected

_T = TypeVar("_T")


def load_runs(path: str) -> tuple[ConfigDict, ConfigDict]:
    """Pre-training and fine-tuning, from a config file whose `get_config` takes their names."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"config.runs={path}: no such file; configs/demo.py and configs/polar/larger.py have both runs"
        )
    return read_config(f"{path}:pretrain"), read_config(f"{path}:finetune")


def chosen_arms(grid: Any) -> list[str]:
    """Names of the arms whose whole name matches `config.chosen`. ValueError where none does."""
    found = [name for name in grid.arms if re.fullmatch(grid.chosen, name)]
    if not found:
        raise ValueError(f"config.chosen is {grid.chosen!r} and matches no arm; they are {', '.join(grid.arms)}")
    return found


def spread(rows: Sequence[_T], count: int) -> list[_T]:
    """`count` of the rows at most, evenly spaced, so that every kind has its part."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def require_arms(grid: Any) -> None:
    """ValueError where `config.compared` names an arm that there is not, or `config.chosen` none."""
    chosen_arms(grid)
    if unknown := {name for pair in grid.compared for name in pair} - set(grid.arms):
        raise ValueError(f"config.compared names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")


def train_as_long_as(config: ConfigDict, folder: Path) -> None:
    """Trains `config.training` in as many steps as its passes over the file `config.as_long_as` take."""
    run = config.training
    run.run.steps = run.run.save_every = steps_of(run, config.as_long_as)
    if config.as_long_as != run.data.path:
        run.data.epochs = 0
    train.run(run, folder)


def steps_of(run: ConfigDict, path: str) -> int:
    """Batches in `config.data.epochs` passes over a file."""
    config = run.copy_and_resolve_references()
    config.data.path = path
    methods, tokenizer = chosen(config), load_start(config.model).tokenizer
    return sum(1 for _ in open_stream(methods, tokenizer, format_of(methods, tokenizer)).batches)


# --- routing -----------------------------------------------------------------------------------------------------------

VARIATION, SERVED = "routing_variation", "routing_served"


def routing_rows(routing: Mapping[str, Any]) -> Iterator[Row]:
    """Of `routing_of` or `describe_routing`: how unevenly the experts' mass is spread, and the part of each type's mass that its
    own experts have."""
    experts = len(next(iter(routing["shares"].values()))[0][0])
    yield Row("model", "model", VARIATION, float(routing["variation"]))
    for name, value in zip(routing["types"], served_share(routing, equal_groups(experts, exactly=False)), strict=True):
        if value is not None:
            yield Row("model", "model", SERVED, float(value), {"type": name})


def routing_lines(runs: Mapping[str, Sequence[Sequence[Row]]]) -> list[Line]:
    """Arm → each seed's rows → a line for the variation and one for each type; arms that route nothing have none."""
    lines = []
    for arm, found in runs.items():
        types = dict.fromkeys(row.groups["type"] for row in found[0] if row.metric == SERVED)
        if types:
            axes = {"arm": arm, "on": "coefficient of variation"}
            lines.append(mean_line(axes, VARIATION, selected(found, VARIATION, {})))
        for name in types:
            axes = {"arm": arm, "on": f"mass of {name} on its experts"}
            lines.append(mean_line(axes, SERVED, selected(found, SERVED, {"type": name})))
    return lines
