"""A job on this machine, really started: processes that find out who they are, fail, are stopped, and go on."""

import dataclasses
import json
import os
import signal
import time

import pytest

from rmjax.launch import tools
from rmjax.launch.snapshot import Snapshot
from rmjax.launch.targets import ALL
from tests.launch.examples import small

HOST = ALL["host"]
CODE = Snapshot("0.1.0")
# Writes who it is, then waits for its exit code (a file), saving on SIGTERM as a training does.
PROGRAM = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
index = os.environ.get("RMJAX_PROCESS", "0")
def stop(*_):
    (here / f"saved{index}").touch()
    sys.exit(int(os.environ["RMJAX_STOPPED_CODE"]))
signal.signal(signal.SIGTERM, stop)
names = ("RMJAX_COORDINATOR", "RMJAX_PROCESSES", "RMJAX_EXPECT_PROCESSES", "CUDA_VISIBLE_DEVICES", "MEGASCALE_NUM_SLICES", "OWN")
with (here / f"seen{index}.jsonl").open("a") as file:
    file.write(json.dumps({name: os.environ.get(name) for name in names} | {"pid": os.getpid()}) + chr(10))
print("process", index, flush=True)
while not (here / f"code{index}").exists():
    time.sleep(0.02)
code = int((here / f"code{index}").read_text())
(here / f"code{index}").unlink()
sys.exit(code)
"""


@pytest.fixture
def job(tmp_path):
    """Submits a spec with these changes; whatever of it is left at the end is killed."""
    specs = []

    def submit(**changes):
        command = ("python3", "-c", PROGRAM, "{workdir}")
        values = {"workdir": str(tmp_path), "command": command, "pause_seconds": 0} | changes
        spec = small("host", **values)
        specs.append(spec)
        stored = tools.place(HOST, spec, CODE, tmp_path)
        tools.submit(HOST, spec, CODE, stored)
        return spec, stored

    yield submit
    if specs and tools.state(HOST, specs[0]).startswith("RUNNING"):
        os.killpg(int((tmp_path / "launch/group").read_text()), signal.SIGKILL)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def seen(folder, index):
    file = folder / f"seen{index}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def end(folder, *codes):
    for index, code in enumerate(codes):
        unfinished = folder / f"code{index}.new"
        unfinished.write_text(str(code))
        unfinished.rename(folder / f"code{index}")


def test_two_processes_are_told_who_they_are_and_end(job, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "4")  # left over in the shell
    spec, stored = job(environment=("OWN={workdir}/own",))
    until(lambda: seen(tmp_path, 0) and seen(tmp_path, 1))
    first, second = seen(tmp_path, 0)[0], seen(tmp_path, 1)[0]
    assert first["RMJAX_COORDINATOR"] == second["RMJAX_COORDINATOR"] and first["RMJAX_COORDINATOR"].startswith(
        "localhost:"
    )
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("0,1", "2,3")
    assert {line["RMJAX_PROCESSES"] for line in (first, second)} == {"2"} == {first["RMJAX_EXPECT_PROCESSES"]}
    assert first["MEGASCALE_NUM_SLICES"] is None and first["OWN"] == f"{tmp_path}/own"
    assert tools.state(HOST, spec).startswith("RUNNING")
    with pytest.raises(FileExistsError, match="there already"):
        tools.submit(HOST, dataclasses.replace(spec, retries=9), CODE, stored)
    end(tmp_path, 0, 0)
    assert (
        until(lambda: tools.state(HOST, spec).startswith("ENDED") and tools.state(HOST, spec))
        == "ENDED ada-x is finished"
    )
    assert "process 1" in (tmp_path / f"launch/{stored.id}/process-1.log").read_text()


def test_a_failure_is_tried_again_and_a_stop_is_no_failure(job, tmp_path):
    spec, stored = job(retries=1)
    for number, codes in enumerate([(0, 3), (75, 75), (3, 0)]):
        until(lambda n=number: len(seen(tmp_path, 0)) > n and len(seen(tmp_path, 1)) > n)
        end(tmp_path, *codes)
    assert "failure 2 in a row of 1" in until(lambda: (state := tools.state(HOST, spec)).startswith("ENDED") and state)
    said = (tmp_path / f"launch/{stored.id}/supervisor.log").read_text()
    assert "exit code 3, failure 1 in a row of 1" in said and "was asked to stop and has saved; it goes on" in said


def test_cancelled_it_saves_and_submitted_again_it_goes_on(job, tmp_path):
    spec, _ = job()
    until(lambda: seen(tmp_path, 0) and seen(tmp_path, 1))
    tools.cancel(HOST, spec)
    until(lambda: tools.state(HOST, spec).startswith("ENDED"))
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()
    tools.cancel(HOST, spec)  # nothing is left to stop
    job()
    until(lambda: len(seen(tmp_path, 0)) == 2)
    end(tmp_path, 0, 0)
    until(lambda: tools.state(HOST, spec).startswith("ENDED"))


def test_a_process_that_is_left_alone_keeps_the_place_taken(job, tmp_path):
    """kill -9 of the supervisor: a second start beside its children would write into one workdir."""
    spec, _ = job(processes=1)
    until(lambda: seen(tmp_path, 0))
    os.kill(int((tmp_path / "launch/group").read_text()), signal.SIGKILL)
    assert tools.state(HOST, spec).startswith("RUNNING")
    tools.cancel(HOST, spec)
    until(lambda: not tools.state(HOST, spec).startswith("RUNNING"))
    assert (tmp_path / "saved0").exists()


def test_after_its_hours_it_is_stopped_for_good(job, tmp_path):
    spec, _ = job(processes=1, max_hours=1 / 3600)
    state = until(lambda: (found := tools.state(HOST, spec)).startswith("ENDED") and found)
    assert "(spec.max_hours) and is not started again" in state and (tmp_path / "saved0").exists()
