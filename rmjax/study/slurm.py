"""A study as Slurm job arrays: a script for each level of cells that need nothing later, and one that submits all."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rmjax.files import write_text
from rmjax.study.cells import Cell
from rmjax.study.study import Study, in_order

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={job}
#SBATCH --array=0-{last}{limit}
#SBATCH --output={workdir}/slurm/%A_%a.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
{options}
set -u
export RMJAX_STOPPED_CODE=75
commands=({commands})
eval "srun ${{commands[$SLURM_ARRAY_TASK_ID]}}"
code=$?
# 75: it was asked to stop, has saved, and goes on from there. 76: another process is at the cell. Else it failed.
case $code in
  0) exit 0 ;;
  75 | 76) ;;
  *) [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ] || exit $code ;;
esac
scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
"""


def levels(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that may run at the same time, level by level."""
    found: dict[str, int] = {}
    for cell in in_order(cells):
        found[cell.name] = 1 + max((found[name] for name in cell.needs), default=-1)
    return [
        [cell for cell in cells if found[cell.name] == level] for level in range(max(found.values(), default=-1) + 1)
    ]


def write_scripts(
    study: Study,
    workdir: Path,
    command: Callable[[str], Sequence[str]],
    options: Sequence[str],
    parallel: int,
    retries: int = 1,
) -> Path:
    """Writes the scripts below `workdir`/slurm; gives the one that submits them.

    Args:
      study: all its cells are in the arrays; those that are done return at once.
      workdir: of the study, on a file system that all nodes share.
      command: cell's name → the command that runs it.
      options: of sbatch, such as "--gpus-per-node=1".
      parallel: cells of an array at a time; 0: as many as Slurm starts.
      retries: restarts, of whatever cause, after which a cell that fails is given up.

    Raises:
      ValueError: `--gpus-per-task`, which hides the GPUs from JAX's detection of Slurm.
    """
    if bad := [option for option in options if option.startswith("--gpus-per-task")]:
        raise ValueError(f"--sbatch has {bad[0]}, with which JAX does not find the GPUs; use --gpus-per-node")
    folder = workdir.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    submit = ["#!/bin/bash", "set -eu", 'after=""']
    for number, cells in enumerate(levels(study.cells)):
        path = folder / f"level{number}.sh"
        write_text(path, _script(study, workdir.resolve(), cells, command, options, parallel, retries))
        submit += [f"job=$(sbatch --parsable $after {shlex.quote(str(path))})", 'after="--dependency=afterany:$job"']
        submit += [f'echo "level {number}: job $job, {len(cells)} cells"']
    write_text(folder / "submit.sh", "\n".join(submit) + "\n")
    return folder / "submit.sh"


def _script(
    study: Study,
    workdir: Path,
    cells: Sequence[Cell],
    command: Callable[[str], Sequence[str]],
    options: Sequence[str],
    parallel: int,
    retries: int,
) -> str:
    return _SCRIPT.format(
        job=re.sub(r"\W+", "-", study.name)[:60], last=len(cells) - 1, limit=f"%{parallel}" if parallel else "",
        workdir=shlex.quote(str(workdir)), options="".join(f"#SBATCH {option}\n" for option in options), retries=retries,
        commands=" ".join(shlex.quote(shlex.join(command(cell.name))) for cell in cells),
    )  # fmt: skip
