"""Processes on the loopback: the same batches as one process, one stop, one end, and any number of them may go on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rmjax.train.manifest import MANIFEST
from rmjax.train.metrics import read_metrics
from tests import simulated
from tests.parallel import joined

ROOT = Path(__file__).parents[2]


def start(directory, processes, devices=1, epochs=0, seconds=0.2):
    """The processes of one job, each with so many simulated devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | simulated.devices(devices)
    command = [
        sys.executable,
        "-m",
        "tests.parallel.joined",
        directory,
        epochs,
        seconds,
        f"localhost:{port}",
        processes,
    ]
    return [
        subprocess.Popen([*map(str, command), str(i)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]


def ended(job, within=600):
    """(exit code, standard error) of each; all are over so many seconds from now."""
    end = time.monotonic() + within
    try:
        return [(process.wait(timeout=max(1, end - time.monotonic())), process.stderr.read()) for process in job]
    finally:
        for process in job:
            process.kill()


def lines(directory) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition, job):
    """Or until a process has ended."""
    while not condition() and all(process.poll() is None for process in job):
        time.sleep(0.01)


def saved(directory) -> int:
    return max((int(path.parent.name) for path in (directory / "checkpoints").glob(f"*/{MANIFEST}")), default=0)


def losses(directory):
    return [
        (line["step"], line["train/loss"], line["train/pad_fraction"])
        for line in read_metrics(directory / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(directory, last parameters) of one process."""
    directory = tmp_path_factory.mktemp("alone")
    return directory, jax.device_get(joined.run(directory).trainable)


def assert_ends_like(alone, directory):
    """Finished here, by one process."""
    found = jax.device_get(joined.run(directory).trainable)
    assert found["total"] == alone[1]["total"]
    np.testing.assert_array_equal(found["rows"], alone[1]["rows"])
    assert losses(directory) == losses(alone[0])


@pytest.mark.slow
def test_two_processes_stop_together_and_others_go_on(alone, tmp_path):
    """Stopped as two, killed as two with other devices, finished as one: the bits are those of one process."""
    job = start(tmp_path, 2)
    wait_until(lambda: lines(tmp_path) >= 3, job)
    job[1].send_signal(signal.SIGTERM)  # to one of them, not the one that writes
    outcome = ended(job, within=60)
    assert [code for code, _ in outcome] == [0, 0], outcome
    stopped_at = saved(tmp_path)
    assert 3 <= stopped_at < joined.STEPS and lines(tmp_path) == stopped_at
    assert f"asked to stop: saved step {stopped_at} of" in outcome[0][1] and "asked" not in outcome[1][1]
    assert "step/s" not in outcome[1][1] and "INFO" not in outcome[1][1]

    job = start(tmp_path, 2, devices=2)
    wait_until(lambda: saved(tmp_path) > stopped_at, job)
    job[1].kill()
    (code, said), (killed, _) = ended(job, within=120)  # a sign of life is waited for 60 s long
    assert killed == -signal.SIGKILL and code not in (0, None)
    assert "Start all of them again" in said or "another task died" in said, said
    assert stopped_at < saved(tmp_path) < joined.STEPS
    assert_ends_like(alone, tmp_path)


@pytest.mark.slow
def test_four_processes_whose_first_dies(alone, tmp_path):
    job = start(tmp_path, 4)
    wait_until(lambda: saved(tmp_path) > 0, job)
    job[0].kill()  # it coordinates the others
    outcome = ended(job, within=120)
    assert all(code not in (0, None) for code, _ in outcome), outcome
    assert 0 < saved(tmp_path) < joined.STEPS
    assert [code for code, _ in ended(start(tmp_path, 4, devices=2, seconds=0))] == [0] * 4
    assert_ends_like(alone, tmp_path)


@pytest.mark.slow
def test_streams_that_end_at_different_steps_end_together(tmp_path):
    with pytest.raises(ValueError, match="the data ended after step") as alone:
        joined.run(tmp_path / "one", epochs=3)
    for code, said in ended(start(tmp_path / "four", 4, epochs=3, seconds=0)):
        assert code == 1 and f"error: {alone.value}" in said
    assert losses(tmp_path / "four") == losses(tmp_path / "one")
