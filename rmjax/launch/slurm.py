"""Slurm: a batch script that goes back to the queue by itself, and the script of each task."""

import shlex
from collections.abc import Mapping

from rmjax.launch import shell
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import STOPPED, Command, Stored, Target

SCRIPT, TASK = "slurm.sh", "task.sh"
_REMEMBERED = "14days"  # how far back an ended job is looked for


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {SCRIPT: _batch(spec, stored), TASK: _task(spec, stored)}


def _options(spec: JobSpec, stored: Stored) -> list[str]:
    minutes = round(spec.slot_hours * 60)
    chosen = {
        "--partition": spec.partition, "--account": spec.account, "--reservation": spec.reservation, "--time": minutes,
        "--gpus-per-node": spec.gpus, "--cpus-per-task": spec.cores // spec.processes,
        "--mem": spec.memory_gb and f"{spec.memory_gb}G",
    }  # fmt: skip
    return [
        f"--job-name={spec.name}",
        f"--nodes={spec.hosts}",
        f"--ntasks-per-node={spec.processes}",
        *(f"{name}={value}" for name, value in chosen.items() if value),
        # The tasks get the signal, this script does not: it waits for them and queues again.
        f"--signal=TERM@{spec.grace_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={stored.seen(spec)}/slurm.log",
        *spec.options,
    ]


def _batch(spec: JobSpec, stored: Stored) -> str:
    """jax's own detection would give a task the one GPU of its number on the node; so the script says who is who."""
    options = "".join(f"#SBATCH {option}\n" for option in _options(spec, stored))
    return f"""\
#!/usr/bin/env bash
{options}# Written by experiments.launch, submission {stored.id}.
{shell.STRICT}
here={stored.seen(spec)}
{shell.FORGET}{shell.exports(shell.variables(spec))}\
RMJAX_COORDINATOR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p):$((SLURM_JOB_ID % 4096 + 61440))"
export RMJAX_COORDINATOR
export RMJAX_PROCESSES="$SLURM_NTASKS"
echo "{spec.name}: job $SLURM_JOB_ID, start $((${{SLURM_RESTART_COUNT:-0}} + 1)), on $SLURM_JOB_NODELIST"

# scancel sends SIGTERM to this script too, which ends it here: a job that was cancelled does not queue again.
began=$SECONDS
status=0
srun --kill-on-bad-exit=1 --label bash "$here/{TASK}" || status=$?
((SECONDS - began < {shell.HOUR})) || rm -f "$here/failures"

if ((status == 0)); then
  echo "{spec.name} is finished"
elif ((status == {STOPPED})); then
  echo "{spec.name} was asked to stop and has saved; it queues again"
  scontrol requeue "$SLURM_JOB_ID"
else
  echo "exit code $status" >> "$here/failures"
  failures=$(wc -l < "$here/failures")
  echo "{spec.name} ended with exit code $status, failure $failures in a row of {spec.retries} that are retried"
  ((failures <= {spec.retries})) || exit "$status"
  scontrol requeue "$SLURM_JOB_ID"
fi
"""


def _task(spec: JobSpec, stored: Stored) -> str:
    each = spec.gpus // spec.processes
    devices = (
        f"CUDA_VISIBLE_DEVICES=$(seq --separator=, $((SLURM_LOCALID * {each})) $((SLURM_LOCALID * {each} + {each - 1})))\n"
        "export CUDA_VISIBLE_DEVICES\n"
        if each and spec.processes > 1
        else ""
    )
    return (
        f"{shell.header(spec, stored, 'one task')}{shell.STRICT}\n"
        f'export RMJAX_PROCESS="$SLURM_PROCID"\n{devices}'
        f"{shell.into_code(stored, f'{stored.seen(spec)}/code')}{shell.setup(spec)}exec {shlex.join(spec.arguments)}\n"
    )


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    return (("sbatch", "--parsable", f"{stored.folder}/{SCRIPT}"),)


def _find(spec: JobSpec) -> Command:
    return ("squeue", "--me", "--noheader", f"--name={spec.name}", "--format=%j %T job %i, %M of %l, %R")


def _ended(spec: JobSpec) -> Command:
    fields = "JobName,State,JobID,ExitCode,End"
    return (
        "sacct", "--allocations", "--noheader", "--parsable2", f"--name={spec.name}", f"--starttime=now-{_REMEMBERED}",
        f"--format={fields}",
    )  # fmt: skip


def _outcome(output: str, name: str) -> str:
    """Of the last line, the newest job's."""
    rows = [row for line in output.splitlines() if (row := line.strip().split("|"))[0] == name and len(row) == 5]
    if not rows:
        return ""
    _, state, job, code, end = rows[-1]
    return f"{state} job {job}, exit code {code}, ended {end}"


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    return (("scancel", "--me", f"--name={spec.name}"),)


SLURM = Target(
    name="slurm",
    tools=("sbatch", "squeue", "scancel"),
    longest=100,
    honors=frozenset(
        {
            "partition",
            "account",
            "gpus",
            "hosts",
            "processes",
            "cores",
            "memory_gb",
            "slot_hours",
            "options",
            "reservation",
        }
    ),
    files=_files,
    submit=_submit,
    find=_find,
    ended=_ended,
    outcome=_outcome,
    cancel=_cancel,
    logs=lambda spec, id: f"tail -F {spec.workdir}/launch/{id or 'latest'}/slurm.log",
)
