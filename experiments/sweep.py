"""A sweep of an experiment: `python -m experiments.sweep --config=configs/polar/pretrain.py --sweep=configs/sweeps/rates.py`.

A sweep file has `get_sweep()`, which gives overrides of the config made by `rmjax.study.sweeps`. Each member has a folder below
--workdir; members that are done are not run again, unless their config or data changed. Writes sweep.json, sweep.csv, rows.jsonl
(every metric's last value, in long form), and for each axis a plot.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import engines
from experiments.start import guarded, parse_flags, prepare
from rmjax.config import chosen, complete
from rmjax.files import write_json, write_lines, write_text
from rmjax.recipe import call_in
from rmjax.study import table
from rmjax.study.cells import Cell, members
from rmjax.study.members import last_metrics, refuse_unlogged
from rmjax.study.study import Result, Study, plain


def load_sweep(path: Path) -> list[dict[str, Any]]:
    """What a sweep file's `get_sweep` gives.

    Raises:
      ValueError: the file is not Python, fails, has no `get_sweep`, or that gives something else than a list of dicts.
      FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--sweep={path}: no such file")
    found = call_in(str(path), "get_sweep")
    if not (isinstance(found, list) and all(isinstance(member, dict) for member in found)):
        raise ValueError(
            f"{path}: get_sweep gives {type(found).__name__}; it must give a list of dicts, {{key: value}}"
        )
    return found


def experiment(name: str) -> Callable[[ConfigDict, Path], object]:
    """The `run` of a command of this package.

    Raises:
      ValueError: there is no such command, or it does not run a config in a folder.
    """
    module = f"experiments.{name}"
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"--experiment={name}: there is no experiments/{name}.py")
    found = getattr(importlib.import_module(module), "run", None)
    if found is None or list(inspect.signature(found).parameters) != ["config", "workdir"]:
        raise ValueError(f"--experiment={name}: experiments/{name}.py has no run(config, workdir)")
    return found


def study_of(config: ConfigDict, sweep: Sequence[Mapping[str, Any]], name: str, kind: str) -> Study:
    """The sweep's members as cells; errors as `cells.members`."""
    run = experiment(kind)
    cells = members(config, [dict(member) for member in sweep], _checked if kind == "train" else ConfigDict)
    return Study(name, cells, run, last_metrics)


def _checked(config: ConfigDict) -> ConfigDict:
    whole = complete(config)
    chosen(whole)
    return whole


def write_results(study: Study, found: Mapping[str, Result], workdir: Path, named: Sequence[str]) -> None:
    """Tables on the terminal and in files, and the plots."""
    metrics = table.metrics_of(found, named)
    each, mean = table.by_member(study.cells, found, metrics), table.over_seeds(study.cells, found, metrics)
    print(table.aligned(each), *([table.aligned(mean)] if mean else []), sep="\n\n")
    write_text(workdir / "sweep.csv", table.comma_separated(each))
    write_lines(workdir / "rows.jsonl", table.long_form(study.cells, found))
    values = {cell.name: _told(cell, found[cell.name]) for cell in study.cells}
    write_json(workdir / "sweep.json", {"name": study.name, "members": values})
    _plot(study, found, metrics, workdir)


def _told(cell: Cell, result: Result) -> dict[str, Any]:
    known = {"values": dict(cell.values), "status": result.status, "why": result.why, "seconds": result.seconds}
    return known | {"metrics": {row.metric: plain(row.value) for row in result.rows}}


def _plot(study: Study, found: Mapping[str, Result], metrics: Sequence[str], workdir: Path) -> None:
    try:
        from rmjax.evaluate.plots import svg
        from rmjax.study.figures import against
    except ImportError:
        print("no plots: pip install 'rmjax[report]' brings what they need", file=sys.stderr)
        return
    for axis, figure in against(study.cells, found, metrics).items():
        write_text(workdir / f"{axis}.svg", svg(figure, f"{', '.join(metrics)} against {axis}"))


def run(config: ConfigDict, name: str, sweep: Path, workdir: Path, kind: str, metrics: Sequence[str]) -> None:
    """The whole sweep, as the flags say; `name` is that of the config's file.

    Raises:
      ValueError: what no sweep can have; nothing is started.
      RuntimeError: members failed; the tables of the others are written.
    """
    name = f"experiments.{kind} of {_spelled(name)} over {_spelled(str(sweep))}"
    study = study_of(config, load_sweep(sweep), name, kind)
    if kind == "train":
        refuse_unlogged("--metric", metrics, study.cells)
        refuse_unlogged("--stop_metric", [flags.FLAGS.stop_metric] if flags.FLAGS.stop else [], study.cells)
    found = engines.execute(study, workdir, "experiments.sweep")
    if found is not None:
        write_results(study, found, workdir, metrics)
        engines.refuse_unfinished(found)


def _spelled(path: str) -> str:
    """One spelling of a path, with an argument behind a colon or without: from here where it lies below, absolute elsewhere."""
    file, colon, argument = path.partition(":")
    whole, here = Path(file).resolve(), Path.cwd().resolve()
    return f"{whole.relative_to(here) if whole.is_relative_to(here) else whole}{colon}{argument}"


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sweep, name = Path(given.sweep), config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(given.workdir or f"runs/sweep-{Path(name.split(':')[0]).stem}-{sweep.stem}")
    job = functools.partial(run, given.config, name, sweep, workdir, given.experiment, given.metric)
    sys.exit(guarded(job, resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the experiment that members change", lock_config=True)
    flags.DEFINE_string("sweep", None, "file with get_sweep()")
    flags.DEFINE_string("workdir", "", "folder of the members; by default runs/sweep-CONFIG-SWEEP")
    flags.DEFINE_string("experiment", "train", "command of this package that runs a member")
    flags.DEFINE_list("metric", [], "metrics to show; by default the evaluations' and train/loss")
    flags.mark_flags_as_required(["config", "sweep"])
    engines.define()
    prepare()
    app.run(main, flags_parser=parse_flags)
