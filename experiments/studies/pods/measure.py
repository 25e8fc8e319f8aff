"""POLAR's runs compiled for slices of TPUs: `python -m experiments.study pods` (`make pods`).

A cell is a run on a slice, and its training is the compilation of its step by `rmjax.ahead`: `report.json` in the cell's
folder has all of it, the committed lines what the table shows. That a step does not fit is a result too. Needs libtpu, no TPU.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rmjax import ahead
from rmjax.evaluate.rows import Row
from rmjax.files import write_json
from rmjax.parallel.chips import Slice
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, fact_lines

REPORT, REFUSED = "report.json", "does_not_fit"
COLUMNS = [
    "run", "slice", "mesh", "rows × tokens (at once)", "memory GB", "compute ms", "HBM ms", "ICI ms", "step ms", "MFU %",
    "MFU % in turn",
]  # fmt: skip
METRICS = (
    "hbm_bytes_of_chip", "model_flops", "memory_bytes.peak", "seconds.compute", "seconds.hbm", "seconds.ici",
    "seconds.overlapped", "seconds.in_turn", "mfu.overlapped", "mfu.in_turn",
)  # fmt: skip


def cells(grid: Any) -> Iterator[Cell]:
    """Each run on each slice."""
    for run in grid.runs:
        for name, (topology, chips) in grid.slices.items():
            training = importlib.import_module(f"configs.polar.{run}").get_config(str(chips))
            whole = ConfigDict({"training": training, "topology": topology})
            # compiling needs no device, and must not wait for one
            yield Cell(f"{run}.{name}", {"run": run, "slice": name}, whole, {"JAX_PLATFORMS": "cpu"})


def require_compiler(workdir: Path) -> None:
    """ImportError, before anything is started, where the compiler for TPUs is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("compiling for a TPU needs libtpu: pip install -c constraints.txt -e '.[tpu]'")


def compile_step(config: ConfigDict, folder: Path) -> None:
    """Writes the report of a step, or why it does not fit."""
    write_compiled(folder, lambda: ahead.report(config.training, Slice.parse(config.topology)))


def write_compiled(folder: Path, compiled: Callable[[], dict[str, Any]]) -> None:
    """Writes what a compilation gives, or why it does not fit."""
    try:
        found = compiled()
    except ahead.DoesNotFit as error:
        found = {REFUSED: str(error)}
    write_json(folder / REPORT, found)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """What the table shows of a report; `memory_bytes.peak`, `seconds.ici`, … of a chip and step."""
    found = read_compiled(workdir / cell.name)
    if REFUSED not in found:
        batch = found["batch"]
        layout = {
            "mesh": " ".join(f"{axis} {size}" for axis, size in found["mesh"].items()),
            "batch": f"{batch['rows']} × {batch['row_tokens']} ({batch['rows'] // batch['microbatches']})",
        }
        yield Row("step", "step", "chips", found["chips"], layout)
    yield from compiled_rows("step", found, METRICS)


def read_compiled(folder: Path) -> dict[str, Any]:
    """What `write_compiled` wrote."""
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def compiled_rows(name: str, found: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[Row]:
    """A row for each number (`section.name`), or one that says why it does not fit."""
    if REFUSED in found:
        yield Row(name, name, REFUSED, 1.0, {"why": found[REFUSED]})
        return
    for metric in metrics:
        section, _, part = metric.partition(".")
        yield Row(name, name, metric, found[section][part] if part else found[section])


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """The rows as they are, each with its run and slice."""
    return [line for cell in cells(grid) for line in fact_lines(results[cell.name].rows, cell.values)]


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/pods.md."""
    cases: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        cases.setdefault((line["run"], line["slice"]), {})[line["metric"]] = line
    return {"table": table.markdown([COLUMNS, *(_row(*key, found) for key, found in cases.items())])}


def _row(run: str, name: str, found: Mapping[str, Line]) -> list[str]:
    if REFUSED in found:
        return [run, name, found[REFUSED]["why"], *[""] * (len(COLUMNS) - 3)]
    value = {metric: line["value"] for metric, line in found.items()}
    memory = f"{value['memory_bytes.peak'] / 1e9:.1f} of {value['hbm_bytes_of_chip'] / 1e9:.1f}"
    times = [f"{1e3 * value[f'seconds.{part}']:,.0f}" for part in ("compute", "hbm", "ici", "overlapped")]
    fractions = [f"{100 * value[f'mfu.{bound}']:.1f}" for bound in ("overlapped", "in_turn")]
    return [run, name, found["chips"]["mesh"], found["chips"]["batch"], memory, *times, *fractions]


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study("pods", tuple(cells(grid)), compile_step, measure, require_compiler, code=(ahead,))
    return Claim(study, Path("docs/pods.md"), lambda results: summarize(grid, results), parts)
