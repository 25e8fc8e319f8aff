"""What a target is: pure functions from a spec to texts and to the commands that submit, find and delete a job."""

import dataclasses
import json
from collections.abc import Callable, Mapping

from rmjax.launch.spec import JobSpec
from rmjax.sections import listed

Command = tuple[str, ...]
STOPPED = 75  # exit code of a process that was asked to stop and has saved: start it again, and count no failure


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where the files of a submission lie, as the job sees them and as the submitting machine does."""

    id: str  # of code and spec
    folder: str  # on the submitting machine
    code: bool = True  # whether there is a snapshot of the code; otherwise what is installed runs

    def seen(self, spec: JobSpec) -> str:
        """The folder as the job sees it."""
        return f"{spec.workdir}/launch/{self.id}"


@dataclasses.dataclass(frozen=True)
class Target:
    """How one kind of machine is asked for a job."""

    name: str
    tools: tuple[str, ...]  # programs that its commands need on PATH
    longest: int  # characters of a job's name
    honors: frozenset[str]  # fields of `_DEMANDS` and `_PLACES` that it does something about
    files: Callable[[JobSpec, Stored], Mapping[str, str]]  # file name → text, in the folder of the submission
    submit: Callable[[JobSpec, Stored], tuple[Command, ...]]
    find: Callable[[JobSpec], Command]  # prints what `state` reads
    cancel: Callable[[JobSpec], tuple[Command, ...]]  # by exact name
    logs: Callable[[JobSpec, str], str]  # (spec, id) → the command that shows the output
    check: Callable[[JobSpec], None] = lambda spec: None
    state: Callable[[str, str], str] | None = None  # (output of `find`, name) → state; None: lines of name and state
    ended: Callable[[JobSpec], Command] | None = (
        None  # prints what `outcome` reads, of jobs that `find` no longer shows
    )
    outcome: Callable[[str, str], str] = lambda output, name: ""  # (output of `ended`, name) → how the newest one ended
    over: frozenset[str] = frozenset()  # states of a job that has ended and whose name is still taken
    uploads: bool = False  # whether the folder goes to the bucket, because the job does not see this machine's disk


# Fields whose neglect would change what runs, or what it costs; and names of places, which may stand in a spec for other targets.
_DEMANDS = (
    "tpu", "gpus", "hosts", "slices", "processes", "cores", "memory_gb", "image", "vm_image", "bucket", "slot_hours", "max_hours",
    "provisioning", "reservation", "options", "pause_seconds", "gpu",
)  # fmt: skip
_PLACES = ("partition", "account", "project", "zone", "cluster", "namespace", "queue", "service_account")


def check_for(target: Target, spec: JobSpec) -> None:
    """ValueError, naming the field, where a target cannot do what the spec asks for."""
    defaults = JobSpec()
    for field in _DEMANDS:
        value = getattr(spec, field)
        if field not in target.honors and value != getattr(defaults, field):
            raise ValueError(f"spec.{field} is {value!r}, which target {target.name} cannot do; leave it out")
    if len(spec.name) > target.longest:
        raise ValueError(
            f"spec.run makes the job's name {spec.name!r}, {len(spec.name)} characters; {target.name} takes {target.longest}, so "
            f"shorten it by {len(spec.name) - target.longest}"
        )
    if spec.provisioning == "reserved" and "reservation" in target.honors and not spec.reservation:
        raise ValueError("spec.provisioning is 'reserved' and spec.reservation is empty; name the reservation")
    target.check(spec)


def unused(target: Target, spec: JobSpec) -> list[str]:
    """Fields of the spec that name places of other targets."""
    return [field for field in _PLACES if getattr(spec, field) and field not in target.honors]


def needs(spec: JobSpec, target: str, *fields: str) -> None:
    """ValueError naming the first of these fields that is empty."""
    for field in fields:
        if not getattr(spec, field):
            raise ValueError(f"spec.{field} is empty, and {target} needs it; the target needs {listed(fields)}")


def state_of(target: Target, output: str, name: str) -> str:
    """State of the job of exactly this name; empty where there is none."""
    if target.state is not None:
        return target.state(output, name)
    for line in output.splitlines():
        first, _, rest = line.strip().replace("\t", " ").partition(" ")
        if first == name:
            return rest.strip() or "there"
    return ""


def labels(spec: JobSpec) -> dict[str, str]:
    """By which a cloud's lists and bills can be sorted."""
    return {"owner": spec.owner, "run": spec.run}


def spec_json(spec: JobSpec) -> str:
    """The spec as it is stored with the run."""
    return json.dumps(dataclasses.asdict(spec), indent=2, ensure_ascii=False) + "\n"
