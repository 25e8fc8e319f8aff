"""What a job is: the one dataclass from which every target makes its scripts and commands."""

import dataclasses
import re
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rmjax.files import refuse_url
from rmjax.launch import tpus
from rmjax.sections import choice, nearest, number, read

TARGETS = ("host", "slurm", "gke", "queued", "mig", "sky")
WORKDIR = "{workdir}"  # stands for the field `workdir` in command, setup and environment
_OWNER = r"[a-z][a-z0-9]*"  # without a hyphen, so that OWNER-RUN has one reading
_RUN = r"[a-z]([a-z0-9-]*[a-z0-9])?"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*=[^\n]*"
# Variables that say which process this is; the targets set them.
_OURS = ("RMJAX_COORDINATOR", "RMJAX_PROCESSES", "RMJAX_PROCESS", "RMJAX_EXPECT_", "RMJAX_STOPPED_CODE", "MEGASCALE_")


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """One job. A file `launch/NAME.py` returns it from `get_spec()`; empty and 0 mean "not asked for"."""

    target: str = choice("host", *TARGETS)
    owner: str = ""  # small letters and digits; empty: who submits
    run: str = ""  # small letters, digits, hyphens; the job is called OWNER-RUN everywhere
    command: tuple[str, ...] = ()  # program and arguments, run in the snapshot of the code
    workdir: str = ""  # folder of the run, absolute, seen by every process
    setup: tuple[str, ...] = ()  # shell lines before the command, on every host: activate an environment, install
    environment: tuple[str, ...] = ()  # "NAME=VALUE"

    tpu: str = choice("", "", *tpus.GENERATIONS)
    topology: str = ""  # of a slice, as "4x4"
    slices: int = number(1, low=1)
    gpus: int = number(0, low=0, high=64)  # a host
    gpu: str = ""  # their model, as the target calls it: nvidia-h100-80gb (gke), H100 (sky)
    hosts: int = number(1, low=1)  # of GPUs or CPUs; a TPU slice has as many as its topology says
    processes: int = number(1, low=1)  # a host; the host's GPUs are divided among them
    cores: int = number(0, low=0)  # a host
    memory_gb: int = number(0, low=0)  # a host

    image: str = ""  # of the container (gke, sky)
    vm_image: str = ""  # runtime version (queued) or image family (mig), instead of the TPU's usual one
    bucket: str = ""  # of Cloud Storage, without gs://; mounted at `mount` on every host
    mount: str = ""  # absolute; the workdir lies below it

    retries: int = number(3, low=0)  # starts again after so many failures in a row; stops and preemptions don't count
    pause_seconds: int = number(30, low=0)  # before such a start (host, queued, mig)
    grace_seconds: int = number(120, low=10)  # from SIGTERM to the end: a step and a save must fit
    slot_hours: float = number(
        0.0, low=0, high=10_000
    )  # slurm: of one allocation; then the job queues again and goes on
    max_hours: float = number(0.0, low=0, high=10_000)  # of an attempt; then it is stopped, saved, for good

    provisioning: str = choice("on-demand", "on-demand", "spot", "reserved", "flex")  # flex: mig only
    reservation: str = ""  # its name (gke, mig)
    options: tuple[str, ...] = ()  # further options of sbatch or of the creating gcloud command, as they stand

    partition: str = ""  # slurm
    account: str = ""  # slurm
    project: str = ""  # of Google Cloud; empty: gcloud's own
    zone: str = ""
    cluster: str = ""  # gke: kubectl's context; empty: the current one
    namespace: str = ""  # gke
    queue: str = ""  # gke: Kueue's local queue
    service_account: str = ""  # gke: of Kubernetes; queued, mig: of Google Cloud

    @property
    def name(self) -> str:
        """What the job, and whatever belongs to it, is called."""
        return f"{self.owner}-{self.run}"

    @property
    def slice_hosts(self) -> int:
        """Hosts of one slice; without TPUs, of the job."""
        return tpus.hosts(self.tpu, self.topology) if self.tpu else self.hosts

    @property
    def all_hosts(self) -> int:
        return self.slice_hosts * (self.slices if self.tpu else 1)

    @property
    def all_processes(self) -> int:
        return self.all_hosts * self.processes

    @property
    def all_devices(self) -> int:
        """What `jax.device_count()` has to be; 0 for CPUs, where it is no property of the machine."""
        return tpus.devices(self.tpu, self.topology) * self.slices if self.tpu else self.gpus * self.hosts

    def filled(self, text: str) -> str:
        """A text of the spec with its workdir in the place of {workdir}."""
        return text.replace(WORKDIR, self.workdir)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command as it is run."""
        return tuple(map(self.filled, self.command))


def load(path: Path) -> JobSpec:
    """The spec that a file's `get_spec()` returns.

    Raises:
      OSError: there is no such file.
      ValueError: it has no `get_spec()`, or that returns something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name a spec, such as launch/slurm.py")
    found = runpy.run_path(str(path)).get("get_spec")
    spec = found() if callable(found) else None
    if not isinstance(spec, JobSpec):
        raise ValueError(f"{path} returns no JobSpec from get_spec(); see launch/host.py")
    return spec


def changed(spec: JobSpec, assignments: Iterable[str], more: Iterable[str] = ()) -> JobSpec:
    """The spec with other values.

    Args:
      assignments: "FIELD=VALUE"; entries of a tuple are separated by spaces.
      more: arguments added to the command.

    Raises ValueError where there is no such field or the value is of another type.
    """
    kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(spec)}
    values: dict[str, Any] = {"command": (*spec.command, *more)}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"--set={text} names no field of a spec; {nearest(name, kinds)}")
        try:
            values[name] = tuple(value.split()) if kinds[name] is tuple else kinds[name](value)
        except ValueError:
            raise ValueError(f"--set={text}: {name} must be {kinds[name].__name__}") from None
    return dataclasses.replace(spec, **values)


def checked(spec: JobSpec) -> JobSpec:
    """The spec, once all that holds for every target has been looked at.

    Raises ValueError that names the field.
    """
    spec = read(JobSpec, _values(spec), "spec")
    _match(spec.owner, _OWNER, "owner", "small letters and digits, a letter first")
    _match(spec.run, _RUN, "run", "small letters, digits and hyphens, a letter first, no hyphen last")
    if not spec.command:
        raise ValueError(
            'spec.command is empty; give program and arguments, as ("python", "-m", "experiments.train", …)'
        )
    _check_workdir(spec)
    _check_accelerators(spec)
    for entry in spec.environment:
        _match(entry, _VARIABLE, "environment", '"NAME=VALUE" on one line')
        if entry.startswith(_OURS):
            raise ValueError(f"spec.environment has {entry!r}, which the target sets; leave it out")
    return spec


def _values(spec: JobSpec) -> Mapping[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def _match(value: str, pattern: str, field: str, wanted: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"spec.{field} is {value!r}; it must be {wanted}")


def _check_workdir(spec: JobSpec) -> None:
    refuse_url(spec.workdir, "spec.workdir=")
    _match(spec.workdir, r"(/[A-Za-z0-9._-]+)+", "workdir", "an absolute path of letters, digits and . _ -")
    if not any(WORKDIR in text for text in (*spec.command, *spec.environment)):
        raise ValueError(
            f'spec.command does not have {WORKDIR}, so the run would not know where to save; add "--workdir={WORKDIR}"'
        )
    if bool(spec.bucket) != bool(spec.mount):
        raise ValueError(f"spec.bucket is {spec.bucket!r} and spec.mount is {spec.mount!r}; give both or none")
    if spec.bucket:
        _match(spec.bucket, r"[a-z0-9][a-z0-9._-]+[a-z0-9]", "bucket", "a bucket's name, without gs://")
        _match(spec.mount, r"(/[A-Za-z0-9._-]+)+", "mount", "an absolute path of letters, digits and . _ -")
        if not spec.workdir.startswith(spec.mount + "/"):
            raise ValueError(f"spec.workdir is {spec.workdir!r}; it must lie below spec.mount, {spec.mount!r}")


def _check_accelerators(spec: JobSpec) -> None:
    if spec.tpu and spec.gpus:
        raise ValueError(f"spec.gpus is {spec.gpus} beside spec.tpu, {spec.tpu!r}; a job has one kind")
    if not spec.tpu and (spec.topology or spec.slices > 1):
        raise ValueError("spec.topology and spec.slices are of TPUs, and spec.tpu is empty; set it")
    if spec.tpu:
        tpus.hosts(spec.tpu, spec.topology)
        if spec.hosts > 1 or spec.processes > 1:
            raise ValueError("spec.hosts and spec.processes follow from spec.topology with TPUs; leave them out")
    if spec.gpu and not spec.gpus:
        raise ValueError(f"spec.gpu is {spec.gpu!r} and spec.gpus is 0; say how many a host has")
    if spec.gpus % spec.processes:
        raise ValueError(f"spec.processes is {spec.processes}; it must divide spec.gpus, {spec.gpus}")
