"""What adapters cost: `python -m experiments.study adapter_cost`.

Times are ratios: in every round each arm takes one training step, one after the other in an order that turns, and a ratio is
formed within a round, so that a machine that is slow for a while is slow for all. Memory is what the compiler plans for the step,
and the peak of a process of its own that takes the step.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import benchmarks
from experiments.benchmarks import Arm
from experiments.studies import timing
from experiments.studies.adapter_cost.config import training
from experiments.studies.timing import ALONE, RATIO, of_arms
from rmjax.evaluate.rows import Row
from rmjax.models import parameters
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, factor_cell

STEPS = 3  # of a process whose peak is read
HEADS = ["arm", "trained parameters", "time", "over", "planned memory, MiB", "peak of the process, MiB"]


def cells(grid: Any) -> Iterator[Cell]:
    """One that times all arms, and for each arm one whose peak is read."""
    arms = {name: training(grid, name) for name in grid.arms}
    yield Cell("steps", {}, ConfigDict({"arms": arms, "rounds": grid.rounds}), ALONE)
    for name, config in arms.items():
        yield Cell(f"peak-{name}", {"arm": name}, ConfigDict({"arms": {name: config}, "rounds": 0}), ALONE)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Seconds a round, planned bytes and trained parameters of each arm; or the peak of this process."""
    built = {name: Arm.make(config) for name, config in cell.config.arms.items()}
    if "arm" in cell.values:
        for _ in range(STEPS):
            built[cell.values["arm"]].seconds()
        yield Row("process", "process", "peak_bytes", benchmarks.peak_bytes(), dict(cell.values))
        return
    yield from timing.timing_rows(built, cell.config.rounds)
    for name, arm in built.items():
        yield Row("step", "step", "trained", parameters.count(arm.state.trainable), {"arm": name})


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Each arm's time over that of the arm that its config names; bytes and counts."""
    rows = [row for result in results.values() for row in result.rows]
    return timing.timing_lines(rows, {name: [arm.over] for name, arm in grid.arms.items()})


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/claims/loramoe.md."""
    found = [HEADS]
    for arm, line in of_arms(lines, RATIO).items():
        fact = {each["metric"]: each["value"] for each in lines if each["arm"] == arm}
        time = "1" if arm == line["over"] else factor_cell(line)
        planned = fact["planned_arguments"] + fact["planned_temporary"]
        memory = [f"{size / 2**20:,.0f}" for size in (planned, fact["peak_bytes"])]
        found.append([arm, f"{fact['trained']:,.0f}", time, line["over"], *memory])
    return {"arms": table.markdown(found)}


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: an arm is compared with one that there is not."""
    if unknown := {arm.over for arm in grid.arms.values()} - set(grid.arms):
        raise ValueError(f"config.arms.*.over names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")
    study = Study("adapter_cost", tuple(cells(grid)), timing.no_training, measure, code=(timing, benchmarks))
    return Claim(study, Path("docs/claims/loramoe.md"), lambda results: summarize(grid, results), parts)
