"""Several processes of `python -m experiments.train` on the loopback: they train as one, stop as one, and go on as any number.

A process is a simulated host; its devices are simulated too."""

import json
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.start import guarded
from rmjax.joining import join_hosts
from rmjax.parallel import hosts
from rmjax.train.loop import Preempted
from rmjax.train.metrics import read_metrics
from tests import simulated
from tests.experiments.running import (
    ROOT,
    configured,
    execute,
    final,
    finished,
    launch,
    lines_written,
    newest,
    stop_when,
    told,
)

STEPS = 12
KILLS = 6


@pytest.fixture(scope="module")
def settings(home):
    """A config file whose batches four processes can share, and the same as a config."""
    config = configured(home, data__rows=8, data__streams=4, run__steps=STEPS, hosts__timeout=20, evals__seen__every=5)
    values = json.loads(config.to_json())
    values["sharding"] = {axis: tuple(parts) for axis, parts in values["sharding"].items()}  # no flag changes a list
    path = home / "shared.py"
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n")
    return path, config


@pytest.fixture(scope="module")
def alone(home, settings):
    """The run of one process on one device."""
    assert execute(settings[1], home / "alone") == 0
    return home / "alone"


def start(home, settings, workdir, processes, *flags, devices=1):
    """The processes of one job."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        launch(
            home, workdir, *flags, config=settings[0],
            RMJAX_COORDINATOR=f"localhost:{port}", RMJAX_PROCESSES=str(processes), RMJAX_PROCESS=str(index),
            **simulated.devices(devices),
        )
        for index in range(processes)
    ]  # fmt: skip


def ended(job, within=600) -> list[tuple[int, str]]:
    """(exit code, standard error) of each; all are over so many seconds from now."""
    end = time.monotonic() + within
    try:
        return [finished(process, max(1, end - time.monotonic())) for process in job]
    finally:
        for process in job:
            process.kill()


def assert_alike(workdir, alone):
    """The numbers of another arrangement: the same but for the order of additions."""
    lines, wanted = told(workdir), told(alone)
    assert [line["step"] for line in lines] == [line["step"] for line in wanted]
    for line, other in zip(lines, wanted, strict=True):
        # Of the rest, `cut_groups` counts this process's share, and `retraces` since it started.
        names = line.keys() - {"train/cut_groups", "train/retraces"}
        assert names == other.keys() - {"train/cut_groups", "train/retraces"}
        assert {n: line[n] for n in names} == pytest.approx({n: other[n] for n in names}, abs=1e-5), line["step"]
    (step, leaves, _), (whole_step, whole, _) = final(workdir), final(alone)
    assert step == whole_step == STEPS and leaves.keys() == whole.keys()
    for name in leaves:
        kind = np.uint32 if name.startswith("rng") else np.int32 if name == "step" or "count" in name else np.float32
        ours, theirs = np.frombuffer(leaves[name], kind), np.frombuffer(whole[name], kind)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=name)


def streams(workdir) -> dict[str, dict]:
    """Stream number → its position in the last checkpoint; a stream saved twice is an error."""
    found: dict[str, dict] = {}
    for file in (workdir / "checkpoints" / str(newest(workdir))).glob("data_*.json"):
        parts = json.loads(file.read_text())["iterator"]["streams"]
        assert not found.keys() & parts.keys()
        found |= parts
    return found


@pytest.mark.slow
def test_two_processes_train_as_one(home, settings, alone):
    workdir = home / "two"
    job = start(home, settings, workdir, 2)
    (code, said), (other_code, other_said) = ended(job)
    assert (code, other_code) == (0, 0)
    assert not [line for line in other_said.splitlines() if line.startswith(("INFO", "two "))], other_said
    assert "process 0/2 (from 0) on" in said and "process 1/2 (from 0) on" in other_said
    assert_alike(workdir, alone)
    assert streams(workdir) == streams(alone) and len(streams(workdir)) == 4
    data = json.loads((workdir / "checkpoints" / str(STEPS) / "data_1.json").read_text())
    assert sorted(data["iterator"]["streams"]) == ["2", "3"]  # it read no more than its share


@pytest.mark.slow
def test_stopped_killed_and_restarted_with_other_processes_it_ends_alike(home, settings, alone):
    """Two hosts of two devices, data between hosts; then four hosts; then one of two devices."""
    workdir = home / "moved"
    job = start(home, settings, workdir, 2, "--config.mesh.dcn_data=2", "--config.mesh.fsdp=2", devices=2)
    stop_when(job[0], lambda: lines_written(workdir) > 2, signal.SIGCONT)
    job[1].send_signal(signal.SIGTERM)  # to one of them, and not to the one that writes
    outcome = ended(job, within=60)
    assert [code for code, _ in outcome] == [0, 0], outcome
    stopped_at = newest(workdir)
    assert 0 < stopped_at < STEPS
    assert f"asked to stop: saved step {stopped_at} of {STEPS}" in outcome[0][1] and "asked" not in outcome[1][1]

    job = start(home, settings, workdir, 4, "--config.mesh.fsdp=2", "--config.mesh.data=2")
    stop_when(job[0], lambda: lines_written(workdir) > stopped_at + 3, signal.SIGCONT)
    job[2].kill()
    outcome = ended(job, within=120)  # hosts.timeout is 20; two cores have the processes of another test too
    assert outcome[2][0] == -signal.SIGKILL and all(code not in (0, None) for code, _ in outcome)
    said = "".join(text for _, text in outcome)
    assert "Start all of them again" in said or "another task died" in said, said
    assert stopped_at <= newest(workdir) < STEPS

    flags = "--config.mesh.tensor=2", "--config.sharding.vocab=()"
    outcome = ended(start(home, settings, workdir, 1, *flags, devices=2))
    assert [code for code, _ in outcome] == [0], outcome
    assert_alike(workdir, alone)
    assert streams(workdir) == streams(alone)


@pytest.mark.slow
def test_four_processes_stop_together_where_the_data_ends(home, settings):
    """The streams of different processes end at different steps."""
    said = [ended(start(home, settings, home / f"ends{n}", n, "--config.data.epochs=4"))[0] for n in (1, 4)]
    assert [code for code, _ in said] == [1, 1]
    wanted = next(line for line in said[0][1].splitlines() if line.startswith("error: the data ended after step"))
    assert wanted in said[1][1]
    assert streams(home / "ends4") == streams(home / "ends1")


@pytest.mark.slow
def test_a_diverging_run_names_the_records_of_all_processes(home, settings):
    flags = "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip=1e30"
    for n in (1, 2):
        assert {code for code, _ in ended(start(home, settings, home / f"diverged{n}", n, *flags))} <= {1, -6}
    one, two = (json.loads((home / f"diverged{n}" / "diverged.json").read_text()) for n in (1, 2))
    assert (one["step"], one["records"]) == (two["step"], two["records"]) and len(one["records"]) > 4


@pytest.mark.slow
def test_kills_at_random_moments_of_one_run_change_nothing(home):
    """Every third falls into start-up or the first steps, the others a few steps and milliseconds later."""
    config = configured(home, run__steps=20 * KILLS, run__save_every=2, evals__seen__every=50)
    values = json.loads(config.to_json())
    (home / "kills.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n"
    )
    assert execute(config, home / "unkilled") == 0
    choice, workdir = random.Random(0), home / "killed_often"
    for number in range(KILLS):
        process, written = launch(home, workdir, config=home / "kills.py"), lines_written(workdir)
        if number % 3 < 2:
            more = choice.randrange(2, 12)
            stop_when(process, lambda n=written + more: lines_written(workdir) >= n, signal.SIGCONT)
            time.sleep(choice.uniform(0, 0.02))
        else:
            time.sleep(choice.uniform(0, 5))
        process.kill()
        assert finished(process)[0] == -signal.SIGKILL, f"the run was over before kill {number}"
    code, said = finished(launch(home, workdir, config=home / "kills.py"))
    assert code == 0, said
    assert final(workdir) == final(home / "unkilled")
    assert told(workdir) == told(home / "unkilled")
    assert len(read_metrics(workdir / "metrics.jsonl")) == len(read_metrics(home / "unkilled" / "metrics.jsonl"))


# --- which process of which job ----------------------------------------------------------------------------------------


def joined(monkeypatch, environment, **section):
    """What `hosts.join` is called with, None where it is not."""
    calls = []
    monkeypatch.setattr(hosts, "join", lambda *args: calls.append(args))
    values = {"coordinator": "", "processes": 0, "index": -1, "timeout": 7, "join_timeout": 9}
    join_hosts(ConfigDict(values | section), environment)
    return calls[0] if calls else None


HERE = {"RMJAX_COORDINATOR": "a:1", "RMJAX_PROCESSES": "4", "RMJAX_PROCESS": "3"}
AUTOMATIC = (None, None, None, 7, 9)


@pytest.mark.parametrize(
    ("environment", "section", "wanted"),
    [
        ({}, {}, None),
        ({}, {"coordinator": "auto"}, AUTOMATIC),
        ({}, {"coordinator": "b:2", "processes": 2, "index": 0}, ("b:2", 2, 0, 7, 9)),
        (HERE, {}, ("a:1", 4, 3, 7, 9)),
        (HERE, {"coordinator": "b:2", "index": 0}, ("b:2", 4, 0, 7, 9)),
        (HERE, {"coordinator": "none"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8"}, {}, AUTOMATIC),
        ({"SLURM_STEP_NUM_TASKS": "1"}, {}, None),
        ({"SLURM_STEP_NUM_TASKS": "8"}, {"coordinator": "none"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, AUTOMATIC),
        ({"MEGASCALE_NUM_SLICES": "2"}, {}, AUTOMATIC),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}, AUTOMATIC),
    ],
)
def test_config_goes_before_environment(monkeypatch, environment, section, wanted):
    assert joined(monkeypatch, environment, **section) == wanted


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (HERE | {"RMJAX_PROCESSES": "two"}, "RMJAX_PROCESSES is 'two' in the environment; it must be a number"),
        (HERE | {"RMJAX_PROCESS": "one"}, "RMJAX_PROCESS is 'one' in the environment; it must be a number"),
        (HERE | {"RMJAX_PROCESSES": ""}, "process 3 of 0 at a:1: set config.hosts.processes"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x' in the environment; it must be a number"),
    ],
)
def test_a_variable_that_is_no_number_is_named(monkeypatch, environment, message):
    with pytest.raises(ValueError, match=message):
        joined(monkeypatch, environment)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"coordinator": "b:2"},
            "process -1 of 0 at b:2: set config.hosts.processes and config.hosts.index, or RMJAX_",
        ),
        ({"coordinator": "b:2", "processes": 2, "index": 2}, "process 2 of 2 at b:2"),
    ],
)
def test_which_of_how_many_must_be_known(monkeypatch, section, message):
    with pytest.raises(ValueError, match=message):
        joined(monkeypatch, {}, **section)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RMJAX_EXPECT_PROCESSES": "4"}, "1 process where the job has 4"),
        (HERE | {"RMJAX_EXPECT_PROCESSES": "8"}, "4 processes where the job has 8"),
        (
            HERE | {"RMJAX_COORDINATOR": "127.0.0.1:1", "RMJAX_EXPECT_HOSTS": "4"},
            "this machine itself, on each of 4 hosts",
        ),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "t0"}, "unset MEGASCALE_COORDINATOR_ADDRESS"),
        ({"RMJAX_EXPECT_DEVICES": "64"}, "devices .cpu. where the job has 64"),
    ],
)
def test_a_start_that_would_go_wrong_ends_with_the_remedy(monkeypatch, environment, message):
    with pytest.raises(ValueError, match=message):
        joined(monkeypatch, environment)


def test_processes_that_do_not_meet_are_told_what_to_look_at(monkeypatch):
    def join(*_):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(hosts, "join", join)
    section = {"coordinator": "a:1", "processes": 4, "index": 3, "timeout": 7, "join_timeout": 9}
    with pytest.raises(
        RuntimeError, match=r"process 3 of 4 .* did not meet the others at a:1 within 9 s.*DEADLINE"
    ) as failure:
        join_hosts(ConfigDict(section), {})
    assert failure.value.__context__ is None  # or `guarded` would speak of a process that ended


def test_a_process_that_waits_for_others_in_vain_ends_with_a_line():
    """jax's own time-out would abort it, with a stack trace."""
    program = """
from ml_collections import ConfigDict
from rmjax.guard import guarded
from rmjax.joining import join_hosts, leave
section = {"coordinator": "localhost:PORT", "processes": 2, "index": INDEX, "timeout": 10, "join_timeout": 2}
leave(lambda: guarded(lambda: join_hosts(ConfigDict(section), {})))
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for index in (0, 1):
        text = program.replace("PORT", str(port)).replace("INDEX", str(index))
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100, cwd=ROOT)
        assert done.returncode == 1, done.stderr
        said = done.stderr.strip().splitlines()[-1]
        assert said.startswith(
            f"error: process {index} of 2 (from 0) did not meet the others at localhost:{port} within 2 s"
        ), said


@pytest.mark.parametrize(("code", "wanted"), [({}, 0), ({"RMJAX_STOPPED_CODE": "75"}, 75)])
def test_who_starts_a_command_again_can_tell_a_stop_from_the_end(monkeypatch, code, wanted):
    def job():
        raise Preempted("asked to stop")

    monkeypatch.delenv("RMJAX_STOPPED_CODE", raising=False)
    for name, value in code.items():
        monkeypatch.setenv(name, value)
    assert guarded(job, resumes=True) == wanted
