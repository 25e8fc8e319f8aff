"""What keeps a job of several processes from starting, or lets it start wrong: each a check that says what to do.

A check gets the surroundings as values and returns a message, or None. Nothing here starts JAX.
"""

import dataclasses
import importlib.metadata
import os
import re
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

_NOWHERE = re.compile(r"localhost|127\.|::1|0\.0\.0\.0")


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Where a process is about to start."""

    variables: Mapping[str, str]  # the environment
    gpus: int = 0  # NVIDIA devices of this machine, hidden ones too
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # package → installed version
    workdir: Path | None = None
    resolve: Callable[[str], str] = socket.gethostbyname  # host name → address; OSError where there is none

    def number(self, *names: str) -> int:
        """The first of these variables that is set, as a number; 0 where none is."""
        for name in names:
            if value := self.variables.get(name, "").strip():
                if not value.isdigit():
                    raise ValueError(f"{name} is {value!r} in the environment; it must be a number")
                return int(value)
        return 0


Check = Callable[[Surroundings], str | None]


def here(variables: Mapping[str, str] = os.environ, workdir: Path | None = None) -> Surroundings:
    """The surroundings of this process."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    return Surroundings(variables, gpus, {name: _version(name) for name in ("jax", "jaxlib", "flax")}, workdir)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def promised(around: Surroundings) -> int:
    """Processes that the environment says there are; 0 where jax asks somebody else (a TPU VM's metadata)."""
    address = around.variables.get("RMJAX_COORDINATOR", "auto")
    if address != "auto":
        return 1 if address == "none" else around.number("RMJAX_PROCESSES")
    workers = around.variables.get("TPU_PROCESS_ADDRESSES") or around.variables.get("TPU_WORKER_HOSTNAMES")
    if workers:
        return (workers.count(",") + 1) * max(1, around.number("MEGASCALE_NUM_SLICES"))
    found = around.number("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return found if found or "RMJAX_COORDINATOR" in around.variables else 1


def few_workers(around: Surroundings) -> str | None:
    """Another number of processes than the launcher asked for."""
    expected, found = around.number("RMJAX_EXPECT_PROCESSES"), promised(around)
    if expected and found and found != expected:
        return (
            f"{found} process{'es' if found > 1 else ''} where the job has {expected} (RMJAX_EXPECT_PROCESSES): start one on "
            "every host, with srun on Slurm and --worker=all on a TPU slice, or correct the spec"
        )
    return None


def _hosts(around: Surroundings) -> int:
    """Hosts that the environment says there are; 0 where it says nothing."""
    workers = around.variables.get("TPU_WORKER_HOSTNAMES", "")
    return around.number("RMJAX_EXPECT_HOSTS", "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES") or (
        workers.count(",") + 1
    ) * ("," in workers)


def loopback(around: Surroundings) -> str | None:
    """A coordinator that every host takes for itself. Process 0's own name may stand for 127.x in its own /etc/hosts."""
    address = around.variables.get("RMJAX_COORDINATOR", "none")
    host = address.rpartition(":")[0].strip("[]")
    if address in ("auto", "none") or _hosts(around) < 2:
        return None
    found = host
    if not _NOWHERE.match(host) and around.number("RMJAX_PROCESS") > 0:
        try:
            found = around.resolve(host)
        except OSError:
            return None  # its name may be known later; `unknown_coordinator` says so to who asks
    if not _NOWHERE.match(found):
        return None
    return (
        f"the coordinator {address} is {found}, this machine itself, on each of {_hosts(around)} hosts: give an address of "
        "process 0 that the others reach, and take its name off the line of 127.x in /etc/hosts"
    )


def unknown_coordinator(around: Surroundings) -> str | None:
    """A coordinator whose name means nothing here."""
    for name in ("RMJAX_COORDINATOR", "MEGASCALE_COORDINATOR_ADDRESS"):
        address = around.variables.get(name, "")
        if address in ("", "auto", "none"):
            continue
        if name == "RMJAX_COORDINATOR" and not re.fullmatch(r".+:\d+", address):
            return f"{name} is {address!r}; it must be ADDRESS:PORT, auto or none"
        host = address.rpartition(":")[0].strip("[]") or address
        try:
            around.resolve(host)
        except OSError as error:
            return f"{name} is {address}, and {host} has no address here ({error}): correct it, or unset it where it is left over"
    return None


def hidden_gpus(around: Surroundings) -> str | None:
    """GPUs that jax would not see, so that it would train on CPUs without a word."""
    if not around.gpus or "cpu" in around.variables.get("JAX_PLATFORMS", "").split(",")[:1]:
        return None
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        value = around.variables.get(name)
        nothing = value is not None and value.strip() in (
            ("", "-1", "NoDevFiles") if name[0] == "C" else ("void", "none")
        )
        if nothing:
            return (
                f"{name} is {value!r} and hides the {around.gpus} GPUs of this machine: unset it, or set JAX_PLATFORMS=cpu "
                "to train on CPUs"
            )
    return None


def slurm_gpus(around: Surroundings) -> str | None:
    """What jax's own detection of Slurm makes of tasks and GPUs: task i of a node takes GPU i, of those that it sees."""
    address = around.variables.get("RMJAX_COORDINATOR", "auto")
    if address != "auto" or around.number("SLURM_STEP_NUM_TASKS") < 2:
        return None
    if "SLURM_GPUS_PER_TASK" in around.variables:
        return (
            "SLURM_GPUS_PER_TASK is set: --gpus-per-task shows each task one GPU, and jax looks for the one of the task's "
            "number; use --gpus-per-node"
        )
    per_node = around.variables.get("SLURM_STEP_TASKS_PER_NODE", around.variables.get("SLURM_TASKS_PER_NODE", ""))
    if around.gpus > 1 and re.fullmatch(r"1(\(x\d+\))?", per_node):
        return (
            f"one task a node on machines of {around.gpus} GPUs: jax would use the first GPU of each alone; use "
            f"--ntasks-per-node={around.gpus}, or "
            "set RMJAX_COORDINATOR, RMJAX_PROCESSES and RMJAX_PROCESS as the script of experiments.launch does"
        )
    return None


def stale_megascale(around: Surroundings) -> str | None:
    """Variables of an earlier multislice job: libtpu would wait for slices that do not come."""
    found = sorted(name for name, value in around.variables.items() if name.startswith("MEGASCALE_") and value)
    slices, expected = around.number("MEGASCALE_NUM_SLICES"), around.number("RMJAX_EXPECT_SLICES")
    told = f"{', '.join(f'{name}={around.variables[name]}' for name in found)} in the environment"
    remedy = f"unset {' '.join(found)}, or start all slices of the job"
    if expected and slices and slices != expected:
        return f"{told}, and this job has {expected} slice{'s' if expected > 1 else ''}: {remedy}"
    if not slices and {"MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_SLICE_ID"} & set(found):
        return f"{told} without MEGASCALE_NUM_SLICES, as an earlier job leaves it: {remedy}"
    if slices and around.number("MEGASCALE_SLICE_ID") >= slices:
        return f"{told}, but slices count from 0 to {slices - 1}: {remedy}"
    return None


def unwritable(around: Surroundings) -> str | None:
    """A workdir in which no file can be made, or one on a disk that is not mounted. Nothing is left behind."""
    workdir = around.workdir
    if workdir is None:
        return None
    if (
        workdir.is_absolute() and not workdir.parent.exists()
    ):  # to make it would put it on the disk below the missing mount
        return (
            f"the workdir {workdir} has no folder {workdir.parent} to lie in: mount that, make it, or name another one"
        )
    nearest = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".doctor."):
            return None
    except OSError as error:
        return f"the workdir {workdir} cannot be written ({error.strerror}): mount it, or name another one"


def versions(around: Surroundings) -> str | None:
    """The pair that must not meet; docs/versions.md."""
    jax, jaxlib, flax = (_numbers(around.versions.get(name, "")) for name in ("jax", "jaxlib", "flax"))
    if not jax or not flax:
        return "jax or flax is not installed here: activate the environment that has them, or pip install rmjax"
    if flax <= (0, 12, 8) and jax >= (0, 11, 1):
        return f"flax {_dots(flax)} breaks on jax {_dots(jax)}: pip install -U flax, or pip install 'jax<0.11'"
    if jaxlib and jaxlib[:2] != jax[:2]:
        return (
            f"jax {_dots(jax)} and jaxlib {_dots(jaxlib)} are of different releases: pip install -U 'jax=={_dots(jax)}'"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _dots(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


AT_START: tuple[Check, ...] = (few_workers, loopback, hidden_gpus, slurm_gpus, stale_megascale, versions)
"""Cheap ones, which every start makes."""

ALL: tuple[Check, ...] = (*AT_START, unknown_coordinator, unwritable)


def examine(around: Surroundings, checks: tuple[Check, ...] = ALL) -> dict[str, str | None]:
    """Name of each check → its message, or None where all is well."""
    return {check.__name__.replace("_", " "): check(around) for check in checks}


def refuse(around: Surroundings) -> None:
    """ValueError with the first message of the checks that every start makes."""
    for check in AT_START:
        if message := check(around):
            raise ValueError(message)


def few_devices(around: Surroundings, processes: int, devices: int, backend: str) -> str | None:
    """Once the processes have joined: whether all came, with all of their devices.

    Args:
      processes, devices: of the whole job, as jax counts them.
      backend: "cpu", "gpu" or "tpu".
    """
    wanted, wanted_devices = around.number("RMJAX_EXPECT_PROCESSES"), around.number("RMJAX_EXPECT_DEVICES")
    if wanted and processes != wanted:
        return f"{processes} of {wanted} processes joined (RMJAX_EXPECT_PROCESSES): start one on every host, or correct the spec"
    if wanted_devices and devices != wanted_devices:
        return (
            f"{processes} processes have {devices} devices ({backend}) where the job has {wanted_devices} (RMJAX_EXPECT_DEVICES)"
            ": see which of them the lines `process i/n` show too few of, and whether CUDA_VISIBLE_DEVICES hides some there"
        )
    return cpus_alone(around, backend)


def cpus_alone(around: Surroundings, backend: str) -> str | None:
    """Whether jax has fallen back to CPUs beside GPUs, which it does with a warning only."""
    if backend != "cpu" or not around.gpus or around.variables.get("JAX_PLATFORMS"):
        return None
    return (
        f"jax sees CPUs alone on a machine of {around.gpus} GPUs: install its CUDA plugin (the extra cuda, or cuda12 for an "
        "older driver), or set JAX_PLATFORMS=cpu to train on CPUs"
    )


def not_joined(around: Surroundings, seconds: int) -> str:
    """What to say where the processes did not find each other."""
    address = around.variables.get("RMJAX_COORDINATOR", "auto")
    several = [
        name
        for name in around.variables
        if name.startswith(("SLURM_STEP_NUM", "OMPI_COMM", "MEGASCALE_", "TPU_WORKER"))
    ]
    if address == "auto":
        told = (
            ", ".join(f"{name}={around.variables[name]}" for name in sorted(several))
            or "config.hosts.coordinator or RMJAX_COORDINATOR"
        )
        return (
            f"jax did not find the other processes of this job within {seconds} s (config.hosts.join_timeout), which {told} "
            "announces: unset what is left over from another job, or set RMJAX_COORDINATOR, RMJAX_PROCESSES and RMJAX_PROCESS"
        )
    which, of = around.variables.get("RMJAX_PROCESS", "?"), around.variables.get("RMJAX_PROCESSES", "?")
    return (
        f"process {which} of {of} (from 0) did not meet the others at {address} within {seconds} s (config.hosts.join_timeout): "
        f"see whether all {of} run, whether process 0 is at that address, and whether its port is free and open"
    )
