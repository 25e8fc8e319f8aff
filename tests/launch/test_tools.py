"""Submit, ask, preempt, restart and cancel, against programs that stand in for the services."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments import launch
from rmjax.launch import gke, slurm, snapshot, tools
from rmjax.launch.snapshot import Snapshot
from rmjax.launch.target import STOPPED
from rmjax.launch.targets import ALL
from tests.launch.examples import small

REMOTE = [name for name in ALL if name != "host"]
KEYS = {"slurm": "slurm/{}", "gke": "jobset/{}", "queued": "queued-resources/{}", "mig": "managed/{}", "sky": "sky/{}"}
# What the service makes of a job that it took the machines from, and how the status says it.
PREEMPTED = {
    "slurm": ("PENDING", "PENDING"), "gke": (" restarts 2", "Active restarts 2"), "queued": ("SUSPENDED", "SUSPENDED"),
    "mig": ("4\tFalse", "changing, 4 VMs"), "sky": ("RECOVERING", "RECOVERING"),
}  # fmt: skip
CODE = Snapshot("0.1.0", commit="c" * 40)


@pytest.fixture
def job(tmp_path):
    """(target, spec, how it is stored) with a workdir that can be written here, mounted from a bucket where it has to be."""

    def make(name, code=CODE, **changes):
        place = tmp_path / "bucket"
        where = {"mount": str(place)} if ALL[name].uploads else {}
        spec = small(name, workdir=str(place / "runs/x"), **where, **changes)
        return ALL[name], spec, tools.place(ALL[name], spec, code, tmp_path / "records")

    return make


@pytest.mark.parametrize("name", REMOTE)
def test_a_job_is_submitted_found_preempted_and_cancelled(service, job, name):
    target, spec, stored = job(name)
    key = KEYS[name].format("ada-x")
    assert tools.state(target, spec) == ""
    assert tools.submit(target, spec, CODE, stored) == ""
    assert key in service.state and tools.state(target, spec)
    service.write(service.state | {key: PREEMPTED[name][0]})
    assert tools.state(target, spec).startswith(PREEMPTED[name][1])
    tools.cancel(target, spec)
    assert service.state == {} and tools.state(target, spec) == ""


@pytest.mark.parametrize("name", REMOTE)
def test_a_second_job_of_the_name_is_refused_and_nothing_is_written(service, job, name):
    target, spec, stored = job(name)
    tools.submit(target, spec, CODE, stored)
    other = job(name, retries=7)
    before = service.state
    with pytest.raises(FileExistsError, match="ada-x is there already"):
        tools.submit(*other[:2], CODE, other[2])
    assert service.state == before and not os.path.exists(other[2].folder)


@pytest.mark.parametrize(
    ("name", "ended"),
    [("gke", "Failed restarts 3"), ("gke", "Completed restarts 0"), ("queued", "SUSPENDED"), ("queued", "FAILED")],
)
def test_a_job_that_has_ended_is_replaced(service, job, name, ended):
    target, spec, stored = job(name)
    tools.submit(target, spec, CODE, stored)
    service.write({KEYS[name].format("ada-x"): ended})
    assert tools.submit(target, spec, CODE, stored).split()[0] == ended.split()[0]
    assert tools.state(target, spec).split()[0] not in target.over


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        (
            "slurm",
            {"ended/ada-x": "FAILED", "earlier": ["COMPLETED"]},
            "ada-x: FAILED job 2, exit code 1:0, ended 2026-11-28",
        ),
        ("slurm", {"ended/ada-x": "FAILED", "slurm/ada-x": "PENDING"}, "ada-x: PENDING"),  # submitted again
        ("slurm", {"ended/ada-x2": "FAILED"}, "ada-x: no job of this name on slurm"),
        ("sky", {"sky/ada-x": "FAILED"}, "ada-x: FAILED"),
        ("sky", {"sky/ada-x2": "FAILED"}, "ada-x: no job of this name on sky"),
    ],
)
def test_the_status_says_how_a_job_ended_that_is_no_longer_queued(service, job, name, state, said):
    target, spec, _ = job(name)
    service.write(state)
    assert launch.status(target, spec).startswith(said)


def test_a_cluster_that_keeps_no_accounts_says_so(service, job):
    target, spec, _ = job("slurm")
    (service.home / "no-accounts").touch()
    assert "no job of this name waits or runs on slurm; how it ended is not known: `sacct" in launch.status(
        target, spec
    )


@pytest.mark.parametrize("name", REMOTE)
def test_only_the_job_of_exactly_this_name_is_touched(service, job, name):
    target, spec, stored = job(name)
    others = {KEYS[name].format(other): "RUNNING" for other in ("ada-x2", "bob-x", "ada-x-y", "xada-x")}
    service.write(others)
    assert tools.state(target, spec) == ""
    tools.submit(target, spec, CODE, stored)
    tools.cancel(target, spec)
    assert service.state == others
    deleting = [call for call in service.calls() if {"delete", "cancel", "scancel"} & set(call)]
    assert deleting and all("ada-x" in call or "--name=ada-x" in call for call in deleting)
    assert not [word for call in deleting for word in call if word in ("--all", "-a", "--user=ada", "--selector")]


def test_parts_of_a_group_that_are_left_are_deleted_and_what_fails_is_said(service, job):
    target, spec, stored = job("mig")
    tools.submit(target, spec, CODE, stored)
    service.write({key: value for key, value in service.state.items() if not key.startswith("managed")})
    with pytest.raises(OSError, match="managed/ada-x was not found"):
        tools.cancel(target, spec)
    assert service.state == {}


# --- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["host", *REMOTE])
def test_spec_and_code_are_stored_with_the_run(service, job, name, tmp_path, checkout):
    code = snapshot.take(checkout)
    target, spec, stored = job(name, code)
    tools.write(target, spec, code, stored)
    if target.uploads:
        tools.run(tools.upload(spec, stored))
        folder = service.home / "buckets/my-bucket/runs/x/launch" / stored.id
    else:
        folder = tmp_path / "bucket/runs/x/launch" / stored.id
    assert json.loads((folder / "spec.json").read_text())["run"] == "x"
    assert json.loads((folder / "code.json").read_text()) == {
        "rmjax": code.version,
        "commit": code.commit,
        "changed": True,
    }
    assert "+print('changed')" in (folder / "changes.patch").read_text()
    assert (folder / "code.tar.gz").stat().st_size == len(code.archive)
    assert {path for path in target.files(spec, stored)} <= {path.name for path in folder.iterdir()}


def test_a_job_keeps_the_code_that_it_was_submitted_with(job, checkout):
    before = snapshot.take(checkout)
    target, spec, stored = job("slurm", before)
    tools.write(target, spec, before, stored)
    (checkout / "run.py").write_text("print('later')\n")
    after = snapshot.take(checkout)
    later = tools.place(target, spec, after, checkout)
    tools.write(target, spec, after, later)
    assert stored.id != later.id
    kept, new = (Path(folder, "code/run.py").read_text() for folder in (stored.folder, later.folder))
    assert "later" not in kept and "later" in new
    assert os.readlink(f"{os.path.dirname(later.folder)}/latest") == later.id


def test_a_workdir_of_other_machines_is_said(job):
    target, spec, _ = job("slurm")
    spec = dataclasses.replace(spec, workdir="/proc/nowhere")
    with pytest.raises(
        OSError, match="/proc/nowhere/launch/.* cannot be made .* submit where it is, or correct spec.workdir"
    ):
        tools.write(target, spec, CODE, tools.place(target, spec, CODE, None))


# --- programs that are not there, do not answer, or fail ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "program", "remedy"), [
    ("slurm", "sbatch", "login node"), ("gke", "kubectl", "get-credentials"), ("queued", "gcloud", "gcloud auth login"),
    ("sky", "sky", "skypilot"),
])  # fmt: skip
def test_a_program_that_is_not_installed_is_said_before_anything(monkeypatch, tmp_path, job, name, program, remedy):
    monkeypatch.setenv("PATH", str(tmp_path))
    target, spec, _ = job(name)
    for act in (
        lambda: launch.submit(target, spec, tmp_path),
        lambda: launch.status(target, spec),
        lambda: launch.cancel(target, spec),
    ):
        with pytest.raises(
            FileNotFoundError, match=f"{program} is not on PATH, and target {name} needs it; .*{remedy}"
        ):
            act()


def test_a_service_that_does_not_answer_is_said(service, job):
    (service.home / "sleep").touch()
    target, spec, stored = job("gke")
    with pytest.raises(TimeoutError, match="`kubectl get jobset ada-x .*` did not answer within 0.5 s"):
        tools.submit(target, spec, CODE, stored, answer=0.5)


def test_a_failure_has_the_command_and_its_last_lines(service):
    with pytest.raises(
        OSError, match="`sky jobs cancel --name ada-x --yes` failed with exit code 1:\nERROR: sky/ada-x was not found"
    ):
        tools.run(("sky", "jobs", "cancel", "--name", "ada-x", "--yes"))


# --- jobs that resume by themselves --------------------------------------------------------------------------------------

# Ends with the codes of a file, one after another; writes what it sees.
PROGRAM = """\
import json, os, pathlib, sys
here = pathlib.Path(sys.argv[1])
codes = here / "codes"
left = codes.read_text().split()
codes.write_text(" ".join(left[1:]))
seen = {name: os.environ.get(name) for name in ("RMJAX_COORDINATOR", "RMJAX_PROCESSES", "RMJAX_PROCESS", "RMJAX_STOPPED_CODE")}
with (here / "seen.jsonl").open("a") as file:
    file.write(json.dumps(seen | {"folder": os.getcwd()}) + chr(10))
sys.exit(int(left[0]))
"""


def seen(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "seen.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("codes", "code", "requeued", "failures"),
    [("0 0", 0, False, None), ("75 75", 0, True, None), ("0 1", 0, True, 1), ("1 1", 0, True, 1)],
)
def test_slurm_queues_a_job_again_unless_it_is_finished(service, job, checkout, codes, code, requeued, failures):
    target, spec, stored, workdir = _batch(job, checkout, codes)
    done = _run_batch(stored)
    assert done.returncode == code, done.stderr
    assert ("requeued/77" in service.state) == requeued
    file = workdir / "launch" / stored.id / "failures"
    assert (len(file.read_text().splitlines()) if file.exists() else None) == failures
    assert [line["RMJAX_PROCESS"] for line in seen(workdir)] == ["0", "1"]
    assert {line["RMJAX_COORDINATOR"] for line in seen(workdir)} == {f"n1:{77 + 61440}"}
    assert {line["folder"] for line in seen(workdir)} == {f"{stored.folder}/code"}


def test_slurm_gives_up_after_its_retries(service, job, checkout):
    target, spec, stored, workdir = _batch(job, checkout, " ".join(["1"] * 8), retries=2)
    assert [_run_batch(stored).returncode for _ in range(4)] == [0, 0, 1, 1]


def _batch(job, checkout, codes, **changes):
    (checkout / "run.py").write_text(PROGRAM)
    code = snapshot.take(checkout)
    target, spec, stored = job("slurm", code, **changes)
    tools.submit(target, spec, code, stored)
    workdir = Path(spec.workdir)
    (workdir / "codes").write_text(codes)
    return target, spec, stored, workdir


def _run_batch(stored):
    variables = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1,n2", "SLURM_NTASKS": "2", "MEGASCALE_NUM_SLICES": "2"}
    return subprocess.run(
        ["bash", f"{stored.folder}/{slurm.SCRIPT}"], env=os.environ | variables, capture_output=True, text=True
    )


def test_a_pod_runs_the_code_from_the_bucket(service, job, checkout, tmp_path):
    (checkout / "run.py").write_text(PROGRAM)
    code = snapshot.take(checkout)
    target, spec, stored = job("gke", code)
    tools.submit(target, spec, code, stored)
    shutil.copytree(service.home / "buckets/my-bucket", spec.mount)
    (Path(spec.workdir) / "codes").write_text(str(STOPPED))
    document = yaml.safe_load(Path(stored.folder, gke.MANIFEST).read_text())
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    shell, flag, script = pod["containers"][0]["command"]
    values = {entry["name"]: entry.get("value", "1") for entry in pod["containers"][0]["env"]}
    done = subprocess.run(
        [shell, flag, script.replace("/tmp/rmjax-code", str(tmp_path / "code"))], env=os.environ | values
    )
    assert done.returncode == STOPPED
    [line] = seen(Path(spec.workdir))
    assert line["RMJAX_COORDINATOR"] == "ada-x-w-0-0.ada-x:8476" and line["folder"] == str(tmp_path / "code")
