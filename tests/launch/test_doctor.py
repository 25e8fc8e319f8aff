"""Each cause of a start that hangs or goes wrong has a message, and what is right has none."""

import re
from pathlib import Path

import pytest

from rmjax.launch import doctor
from rmjax.launch.doctor import Surroundings

GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
EXPLICIT = {"RMJAX_COORDINATOR": "n1:1", "RMJAX_PROCESSES": "4", "RMJAX_PROCESS": "1"}
FOUR = {"RMJAX_EXPECT_PROCESSES": "4", "RMJAX_EXPECT_HOSTS": "4"}


def around(variables=None, **more) -> Surroundings:
    return Surroundings(variables or {}, **({"versions": GOOD, "resolve": lambda name: "10.0.0.1"} | more))


def nobody(name):
    raise OSError("Name or service not known")


@pytest.mark.parametrize(
    "good",
    [
        around(),
        around(EXPLICIT),
        around(EXPLICIT | FOUR),
        around({"RMJAX_COORDINATOR": "localhost:1", "RMJAX_PROCESSES": "2", "RMJAX_PROCESS": "1", "RMJAX_EXPECT_HOSTS": "1"}),
        around(EXPLICIT | FOUR | {"RMJAX_PROCESS": "0"}, resolve=lambda name: "127.0.1.1"),  # its own name in /etc/hosts
        around({"SLURM_STEP_NUM_TASKS": "4"} | FOUR),
        around({"RMJAX_COORDINATOR": "auto"} | FOUR),  # a TPU VM's metadata knows
        around({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1",
                "MEGASCALE_COORDINATOR_ADDRESS": "a:8080", "RMJAX_EXPECT_SLICES": "2"} | FOUR),
        around({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "MEGASCALE_NUM_SLICES": "1", "RMJAX_EXPECT_SLICES": "1"} | FOUR),
        around({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}, gpus=8),
        around({"CUDA_VISIBLE_DEVICES": "0,1"}, gpus=8),
        around({"CUDA_VISIBLE_DEVICES": ""}, gpus=0),
        around({"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, gpus=8),
    ],
)  # fmt: skip
def test_what_is_right_passes(good):
    assert not [text for text in doctor.examine(good).values() if text]


@pytest.mark.parametrize(
    ("check", "bad", "message"),
    [
        ("few workers", around(FOUR), "1 process where the job has 4 .*start one on every host"),
        ("few workers", around(FOUR | {"SLURM_STEP_NUM_TASKS": "2"}), "2 processes where the job has 4"),
        ("few workers", around(FOUR | {"TPU_WORKER_HOSTNAMES": "a,b"}), "2 processes where"),
        ("few workers", around(FOUR | {"RMJAX_COORDINATOR": "none"}), "1 process where"),
        ("loopback", around(EXPLICIT | FOUR | {"RMJAX_COORDINATOR": "localhost:1"}), "localhost:1 is localhost, this machine"),
        ("loopback", around(EXPLICIT | FOUR, resolve=lambda name: "127.0.1.1"), "n1:1 is 127.0.1.1, this machine .* /etc/hosts"),
        ("loopback", around(EXPLICIT | {"RMJAX_COORDINATOR": "[::1]:1", "SLURM_JOB_NUM_NODES": "2"}), "on each of 2 hosts"),
        ("unknown coordinator", around(EXPLICIT, resolve=nobody), "n1 has no address here"),
        ("unknown coordinator", around({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_COORDINATOR_ADDRESS": "old:1"}, resolve=nobody),
         "unset it"),
        ("unknown coordinator", around(EXPLICIT | {"RMJAX_COORDINATOR": "n1"}), "must be ADDRESS:PORT"),
        ("hidden gpus", around({"CUDA_VISIBLE_DEVICES": ""}, gpus=8), "hides the 8 GPUs .*unset it, or set JAX_PLATFORMS=cpu"),
        ("hidden gpus", around({"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cuda,cpu"}, gpus=8), "hides the 8 GPUs"),
        ("hidden gpus", around({"NVIDIA_VISIBLE_DEVICES": "void"}, gpus=8), "NVIDIA_VISIBLE_DEVICES is 'void'"),
        ("slurm gpus", around({"SLURM_STEP_NUM_TASKS": "8", "SLURM_GPUS_PER_TASK": "1"}, gpus=1), "use --gpus-per-node"),
        ("slurm gpus", around({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, gpus=8),
         "--ntasks-per-node=8"),
        ("stale megascale", around({"MEGASCALE_NUM_SLICES": "2", "RMJAX_EXPECT_SLICES": "1"}),
         "has 1 slice: unset MEGASCALE_NUM_SLICES"),
        ("stale megascale", around({"MEGASCALE_COORDINATOR_ADDRESS": "a", "MEGASCALE_PORT": "8080"}),
         "MEGASCALE_COORDINATOR_ADDRESS=a, MEGASCALE_PORT=8080 in the environment without MEGASCALE_NUM_SLICES"),
        ("stale megascale", around({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2"}), "slices count from 0 to 1"),
        ("versions", around(versions=GOOD | {"jax": "0.11.1", "jaxlib": "0.11.1"}),
         "flax 0.12.8 breaks on jax 0.11.1: pip install"),
        ("versions", around(versions=GOOD | {"jaxlib": "0.9.0"}), "of different releases"),
        ("versions", around(versions={"jax": "0.10.2"}), "not installed"),
    ],
)  # fmt: skip
def test_each_cause_has_its_message(check, bad, message):
    found = {name: text for name, text in doctor.examine(bad).items() if text}
    assert list(found) == [check]
    assert re.search(message, found[check]), found[check]


def test_a_workdir_that_cannot_be_written_is_said(tmp_path):
    assert doctor.unwritable(around(workdir=tmp_path)) is None
    assert doctor.unwritable(around(workdir=tmp_path / "new")) is None
    (tmp_path / "file").touch()
    assert "cannot be written" in doctor.unwritable(around(workdir=tmp_path / "file"))


def test_a_workdir_is_not_made_where_its_disk_may_not_be_mounted(tmp_path, monkeypatch):
    missing = tmp_path / "mnt/bucket"
    assert f"has no folder {missing} to lie in: mount that" in doctor.unwritable(around(workdir=missing / "run"))
    monkeypatch.chdir(tmp_path)
    assert doctor.unwritable(around(workdir=Path("runs/new"))) is None  # in a fresh checkout
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="RMJAX_EXPECT_PROCESSES is 'four' in the environment; it must be a number"):
        doctor.refuse(around({"RMJAX_EXPECT_PROCESSES": "four"}))


@pytest.mark.parametrize(
    ("variables", "joined", "message"),
    [
        ({"RMJAX_EXPECT_PROCESSES": "4"}, (3, 24, "gpu"), "3 of 4 processes joined"),
        ({"RMJAX_EXPECT_PROCESSES": "4", "RMJAX_EXPECT_DEVICES": "32"}, (4, 4, "gpu"),
         "4 processes have 4 devices .gpu. where the job has 32"),
        ({}, (1, 1, "cpu"), "jax sees CPUs alone on a machine of 8 GPUs: install its CUDA plugin"),
    ],
)  # fmt: skip
def test_what_has_joined_is_counted(variables, joined, message):
    assert re.search(message, doctor.few_devices(around(variables, gpus=8), *joined))


@pytest.mark.parametrize(
    ("variables", "joined"),
    [
        ({"RMJAX_EXPECT_PROCESSES": "4", "RMJAX_EXPECT_DEVICES": "32"}, (4, 32, "gpu")),
        ({"JAX_PLATFORMS": "cpu"}, (1, 1, "cpu")),
    ],
)
def test_all_that_should_be_there_passes(variables, joined):
    assert doctor.few_devices(around(variables, gpus=8), *joined) is None


def test_where_jax_finds_no_others_what_announced_them_is_named():
    text = doctor.not_joined(around({"MEGASCALE_NUM_SLICES": "2"}), 300)
    assert "within 300 s" in text and "which MEGASCALE_NUM_SLICES=2 announces: unset what is left over" in text
