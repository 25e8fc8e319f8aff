"""How the cost grows: `python -m experiments.study growth` (`make growth`).

Pairs per second of a training step against the size of the model, the length of a row, the size of a group, and the number of
devices, which are simulated: they share the machine's cores, so what shows is the cost of cutting, not a gain. Rows are full: a
group is 64 tokens that its candidates share and 32 of each one's own, and one of N candidates has N (N − 1) / 2 pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import benchmarks
from experiments.benchmarks import Arm
from experiments.studies import timing
from experiments.studies.growth.config import OWN, SHARED, row_tokens, training
from rmjax.data import placement
from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import Shard
from rmjax.evaluate import plots
from rmjax.evaluate.rows import Row, of_metric, values
from rmjax.models import parameters
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import make_mesh
from rmjax.start import load_start
from rmjax.study import table
from rmjax.study.cells import Cell, name_of
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, span_cell, spread_line

SPEED = "pairs_per_second"


def cells(grid: Any) -> Iterator[Cell]:
    """One for each point; what two panels have in common is measured once."""
    cases = {name_of(case): case for panel in grid.panels.values() for case in _cases(grid, panel)}
    for name, case in cases.items():
        whole = {"training": training(grid, ConfigDict(case)), "case": case, "rounds": grid.rounds}
        yield Cell(name, case, ConfigDict(whole), _environment(case["devices"]))


def _cases(grid: Any, panel: Any) -> list[dict[str, Any]]:
    return [grid.case.to_dict() | dict(changes) for changes in panel.points]


def _environment(devices: int) -> dict[str, str]:
    """NPROC is XLA's number of threads: with one a core, collectives may wait for each other for ever."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return timing.ALONE | ({"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "NPROC": "64"} if devices > 1 else {})


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Pairs per second of each step, and how many parameters are trained."""
    config, case = cell.config.training, cell.config.case
    mesh = make_mesh(config.mesh.to_dict())
    forest = random_groups(case, load_start(config.model).config.vocab_size)
    arm = Arm.make(config, placement.place(forest, placement.forest_shardings(mesh), Shard()))
    arm.seconds()
    pairs = case.rows * case.groups * case.candidates * (case.candidates - 1) // 2
    for number in range(cell.config.rounds):
        yield Row(f"step {number}", number, SPEED, pairs / arm.seconds())
    yield Row("model", "model", "trained", parameters.count(arm.state.trainable))


def random_groups(case: Any, vocab_size: int) -> Forest:
    """Full rows of groups in which everything is ranked."""
    shape = ForestShape(case.rows, row_tokens(case), case.groups, case.candidates)
    ranks_N = np.arange(case.candidates, dtype=np.float32)
    return benchmarks.random_rows(shape, case.groups, (SHARED, OWN), ranks_N, vocab_size)


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """The speed at each panel's points."""
    lines = []
    for panel, case in [(each, case) for each in grid.panels.values() for case in _cases(grid, each)]:
        rows = results[name_of(case)].rows
        known = {"row_tokens": row_tokens(ConfigDict(case)), "trained": int(of_metric(rows, "trained")[0].value)} | case
        axes = {"axis": panel.label, "at": known[panel.axis]}
        lines.append(spread_line(axes, SPEED, values(of_metric(rows, SPEED))))
    return lines


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/speed.md."""
    rows = [[line["axis"], f"{line['at']:,}", span_cell(line)] for line in lines]
    return {"points": table.markdown([["axis", "value", "pairs/s"], *rows])}


def figures(lines: Sequence[Line]) -> dict[str, Figure]:
    """Speed against what makes it change, a panel for each."""
    panels: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    for line in lines:
        panels.setdefault(line["axis"], []).append((line["at"], {**line, "median": line["value"]}))
    return {"growth": plots.growth(panels)}


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study("growth", tuple(cells(grid)), timing.no_training, measure, code=(timing, benchmarks))
    return Claim(study, Path("docs/speed.md"), lambda results: summarize(grid, results), parts, figures)
