"""`python -m experiments.launch` as a user runs it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import launch
from rmjax.reward_model import CHECKPOINTS
from tests.experiments.running import ROOT, configured

SPEC = """
import sys
from rmjax.launch.spec import JobSpec
def get_spec():
    return JobSpec(target="host", run="x", workdir={workdir!r}, command=(sys.executable, *{command!r}), {more})
"""


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "experiments.launch", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip


def written(folder, command, more="") -> str:
    path = folder / "spec.py"
    path.write_text(SPEC.format(workdir=str(folder / "run"), command=command, more=more))
    return str(path)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path):
    spec = written(tmp_path, ("-c", "print(1)", "{workdir}"))
    done = command(spec, "--set=owner=ada", "--set=zone=z", "--", "--config.run.steps=7")
    assert done.returncode == 0, done.stderr
    for part in (
        "=== host.sh",
        "=== to submit",
        "=== to cancel",
        "--config.run.steps=7",
        "code: ",
        "of no use to host: spec.zone",
    ):
        assert part in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("launch/host.py", "--submit", "--cancel"), "give a spec or `doctor`, and one of --dry_run"),
        (("launch/slurm.py", "--target=queued"), "spec.gpus is 8, which target queued cannot do; leave it out"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_two_processes_are_submitted_asked_and_cancelled(tmp_path):
    program = "import os, sys, time; open(f'{sys.argv[1]}/' + os.environ['RMJAX_PROCESS'], 'w'); time.sleep(60)"
    path = written(tmp_path, ("-c", program, "{workdir}"), "processes=2")
    done = command(path, "--set=owner=ada", "--submit")
    assert done.returncode == 0, done.stderr
    assert "ada-x is submitted to host: 2 processes on 1 hosts" in done.stdout
    spec, target = launch.chosen(Path(path), None, ["owner=ada"], [])
    until(lambda: (tmp_path / "run/0").exists() and (tmp_path / "run/1").exists())
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 12}\n')
    assert "ada-x: RUNNING" in (said := launch.status(target, spec)) and "step 12, written" in said
    assert "ada-x is cancelled on host" in command(path, "--set=owner=ada", "--cancel").stdout
    until(lambda: "ada-x: ENDED" in launch.status(target, spec))


def test_the_doctor_lists_its_checks_and_fails_where_one_finds_something(tmp_path):
    good = command("doctor", f"--workdir={tmp_path}")
    assert good.returncode == 0 and "few workers: ok" in good.stdout and "unwritable: ok" in good.stdout
    bad = command("doctor", "launch/slurm.py", MEGASCALE_SLICE_ID="3", PATH="/nowhere")
    assert bad.returncode == 1
    assert "stale megascale: MEGASCALE_SLICE_ID=3 in the environment" in bad.stderr
    assert "programs of slurm: sbatch is not on PATH" in bad.stderr


@pytest.mark.slow
def test_two_processes_train_are_preempted_and_go_on_by_themselves(home, tmp_path):
    """SIGTERM to one of them, as a host gets it that is taken away: all save, and the script starts them again."""
    values = json.loads(configured(home, data__rows=8, data__streams=2, run__steps=40, hosts__timeout=20).to_json())
    values["sharding"] = {axis: tuple(parts) for axis, parts in values["sharding"].items()}
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n"
    )
    arguments = ("-m", "experiments.train", f"--config={tmp_path}/config.py", "--workdir={workdir}")
    spec = written(tmp_path, arguments, "processes=2, pause_seconds=1")
    run = tmp_path / "run"
    assert command(spec, "--set=owner=ada", "--submit").returncode == 0
    pids = until(lambda: (run / "metrics.jsonl").exists() and _trainings(run), 300)
    os.kill(pids[-1], 15)
    said = until(
        lambda: (
            (log := (run / "launch/latest/supervisor.log").read_text()).endswith(("finished\n", "retried\n")) and log
        ),
        400,
    )
    assert "ada-x was asked to stop and has saved; it goes on" in said and "ada-x is finished" in said, said
    assert (run / CHECKPOINTS / "40").is_dir()
    assert "process 1/2 (from 0)" in (run / "launch/latest/process-1.log").read_text()


def _trainings(run) -> list[int]:
    """The processes that train into a folder."""
    found = subprocess.run(["pgrep", "-f", f"experiments.train.*--workdir={run}"], capture_output=True, text=True)
    return sorted(int(line) for line in found.stdout.split())
