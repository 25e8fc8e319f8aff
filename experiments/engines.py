"""The flags of `experiments.sweep` and `experiments.study` that say where cells run, and what these commands do with them."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from absl import flags

from rmjax.locks import InUseError, locked
from rmjax.study import engines, stopping
from rmjax.study.run import EarlyStop, Options, results, run, unfinished
from rmjax.study.slurm import write_scripts
from rmjax.study.study import Result, Study, check_data, claim_folder, holds, in_order, run_cell
from rmjax.train.loop import Preempted

_OF_THE_PARENT = (
    "engine", "parallel", "retries", "ray_address", "ray_cpus", "ray_gpus", "sbatch", "stop", "stop_metric", "stop_after",
    "stop_factor", "stop_smallest", "cell", "metric",
)  # fmt: skip


def define() -> None:
    """Defines the flags."""
    where = "local: processes here; inprocess: one after the other in this process; ray: a cluster; slurm: scripts; "
    flags.DEFINE_enum("engine", "local", engines.ENGINES, where + "print: the commands; none: tables of what is there")
    flags.DEFINE_integer("parallel", 0, "cells at a time; 0: one for each accelerator, one on a CPU", lower_bound=0)
    flags.DEFINE_integer("retries", 1, "further attempts for a cell that failed", lower_bound=0)
    flags.DEFINE_string("ray_address", "", "of a Ray cluster (auto, HOST:PORT); empty: one on this machine")
    flags.DEFINE_float("ray_cpus", 1.0, "CPUs that Ray keeps for a cell", lower_bound=0)
    flags.DEFINE_float("ray_gpus", 0.0, "GPUs that Ray keeps for a cell", lower_bound=0)
    flags.DEFINE_string("sbatch", "", 'options for Slurm, such as "--partition=gpu --gpus-per-node=1 --time=8:00:00"')
    flags.DEFINE_enum("stop", "", ("", "median", "halving"), "early stopping of cells that are behind")
    flags.DEFINE_string("stop_metric", "train/loss", "what early stopping compares, a metric of metrics.jsonl")
    flags.DEFINE_bool("stop_smallest", None, "whether smaller is better; by default for names that end in loss")
    flags.DEFINE_integer("stop_after", 0, "steps before the first cell may be stopped; halving: of its first rung")
    flags.DEFINE_integer("stop_factor", 3, "halving: one in so many goes on")
    flags.DEFINE_string("cell", "", "run this cell only, in this process")


def execute(study: Study, workdir: Path, module: str) -> dict[str, Result] | None:
    """Does what the flags say; all results, or None where there is nothing to show yet (slurm, print, one cell).

    Args:
      study: what is run.
      workdir: its folder.
      module: the command's, to be called again for each cell.

    Raises:
      ValueError: flags that do not fit each other, another study in the folder, …
    """
    given = flags.FLAGS
    if given.cell:
        _one(study, given.cell, workdir)
        return None
    command, early_stop = _command(study, module), _early_stop()
    if given.engine == "none":
        if not holds(study, workdir):
            raise ValueError(
                f"--workdir={workdir} is not there, or holds no study; give the folder that an engine ran it in"
            )
        return results(study, workdir)
    if given.engine in ("print", "slurm"):
        _write_down(study, workdir, command)
        return None
    options = Options(command, given.retries, early_stop, every=0.2 if given.engine == "inprocess" else 1.0)
    try:
        return run(study, workdir, _engine(study, workdir), options)
    except KeyboardInterrupt:
        raise Preempted("stopped; run the same command to go on") from None


def _write_down(study: Study, workdir: Path, command: Callable[[str], Sequence[str]]) -> None:
    """The commands, or Slurm's scripts, once the data are there that they need."""
    given = flags.FLAGS
    holds(study, workdir)
    check_data(study, workdir)
    claim_folder(study, workdir)
    with locked(workdir):
        study.prepare(workdir)
    if given.engine == "print":
        print("\n".join(shlex.join(command(cell.name)) for cell in in_order(study.cells)))
        return
    path = write_scripts(study, workdir, command, shlex.split(given.sbatch), given.parallel, given.retries)
    print(f"wrote the job arrays; submit them by: bash {path}\nthen see the tables with --engine=none")


def _one(study: Study, name: str, workdir: Path) -> None:
    if name not in study.by_name:
        raise ValueError(f"--cell={name}: no such cell; there are {', '.join(study.by_name)}")
    engines.end_with_parent()
    claim_folder(study, workdir)
    try:
        run_cell(study, name, workdir)
    except InUseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(engines.BUSY)


def _command(study: Study, module: str) -> Callable[[str], list[str]]:
    """This command again, for one cell, in the cell's environment."""
    kept = _for_cells(sys.argv[1:])

    def of(name: str) -> list[str]:
        command = [sys.executable, "-m", module, *kept, f"--cell={name}"]
        return engines.in_environment(command, study.by_name[name].environment)

    return of


def _for_cells(arguments: Sequence[str]) -> list[str]:
    """Without the flags that are the waiting process's own, as `--flag=value` or as two words."""
    kept, skip = [], False
    for argument in arguments:
        name, is_whole, _ = argument.lstrip("-").partition("=")
        own = argument.startswith("-") and name.removeprefix("no") in _OF_THE_PARENT
        if not own and not skip:
            kept.append(argument)
        skip = own and not is_whole and "stop_smallest" not in name
    return kept


def _engine(study: Study, workdir: Path) -> engines.Engine:
    given = flags.FLAGS
    if given.engine == "inprocess":
        if apart := [cell.name for cell in study.cells if cell.environment]:
            raise ValueError(f"{apart[0]} needs a process with an environment of its own; use --engine=local")
        return engines.InProcess(lambda name: run_cell(study, name, workdir))
    jax.config.update("jax_platforms", "cpu")  # this process only waits, and must not take the accelerators
    cores, accelerators, variable = engines.this_machine()
    if given.engine == "ray":
        return engines.Ray(given.ray_address, given.ray_cpus, given.ray_gpus, given.retries)
    return engines.Local(engines.slots(given.parallel, cores, accelerators, variable))


def _early_stop() -> EarlyStop | None:
    given = flags.FLAGS
    if not given.stop:
        return None
    if given.engine not in ("local", "ray"):
        raise ValueError(
            f"--stop={given.stop} needs --engine=local or ray, which watch the cells; here it is {given.engine}"
        )
    smallest = given.stop_metric.endswith("loss") if given.stop_smallest is None else given.stop_smallest
    if given.stop == "median":
        name = f"median of {given.stop_metric} from step {given.stop_after}"
        return EarlyStop(stopping.median(given.stop_after), given.stop_metric, smallest, name)
    name = f"halving of {given.stop_metric} from step {given.stop_after} by {given.stop_factor}"
    return EarlyStop(stopping.halving(given.stop_after, given.stop_factor), given.stop_metric, smallest, name)


def refuse_unfinished(found: Mapping[str, Result], every: bool = False) -> None:
    """Raises RuntimeError, which names the cells that failed or are missing, with their last error; with `every`, also those that
    were stopped early, since a claim needs every cell."""
    left = [name for name, result in found.items() if result.status != "done"] if every else unfinished(found)
    if left:
        said = "; ".join(f"{name}: {found[name].why or found[name].status}" for name in left[:5])
        more = f"; {len(left) - 5} more" if len(left) > 5 else ""
        raise RuntimeError(
            f"{len(left)} of {len(found)} cells have no result ({said}{more}); run the same command to try again"
        )
