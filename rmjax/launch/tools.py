"""Writes a submission down and runs the commands of a target, whose failures end in what to do about them."""

import io
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from rmjax.files import write_json, write_text
from rmjax.launch.snapshot import Snapshot
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import Command, Stored, Target, spec_json, state_of

ANSWER = 300  # seconds that a command may take
_WHERE = {
    "sbatch": "submit on a login node of the cluster",
    "kubectl": "install kubectl and run `gcloud container clusters get-credentials CLUSTER`",
    "gcloud": "install Google Cloud's CLI and run `gcloud auth login`",
    "sky": 'pip install "skypilot[gcp]" and run `sky check`',
}


def missing(target: Target) -> str | None:
    """What to do where a program that a target needs is not on PATH."""
    for tool in target.tools:
        if shutil.which(tool) is None:
            remedy = _WHERE.get(tool, "install it")
            return f"{tool} is not on PATH, and target {target.name} needs it; {remedy}. --dry_run works without it"
    return None


def run(command: Command, answer: float = ANSWER) -> str:
    """What a command prints.

    Raises:
      FileNotFoundError: there is no such program.
      TimeoutError: it did not answer in time.
      OSError: it failed; the message has its last lines.
    """
    shown = shlex.join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=answer, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise FileNotFoundError(f"{command[0]} is not on PATH; {_WHERE.get(command[0], 'install it')}") from None
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"`{shown}` did not answer within {answer:g} s; see whether the service can be reached from here, and ask for the "
            "status before you submit again"
        ) from None
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise OSError(f"`{shown}` failed with exit code {done.returncode}:\n{said}")
    return done.stdout


def state(target: Target, spec: JobSpec, answer: float = ANSWER) -> str:
    """State of the job of this name; empty where there is none. Raises as `run`."""
    return state_of(target, run(target.find(spec), answer), spec.name)


def outcome(target: Target, spec: JobSpec, answer: float = ANSWER) -> str:
    """How the newest job of this name ended, where its scheduler no longer shows it; what kept that from being asked, where it
    keeps no accounts, say; empty where there was none."""
    if target.ended is None:
        return ""
    try:
        return target.outcome(run(target.ended(spec), answer), spec.name)
    except OSError as error:
        return f"no job of this name waits or runs on {target.name}; how it ended is not known: {error}"


def place(target: Target, spec: JobSpec, snapshot: Snapshot, records: Path) -> Stored:
    """Where the files of a submission belong: below the workdir, or in `records` where they go to a bucket from there."""
    id = snapshot.id(spec)
    folder = records / spec.name / id if target.uploads else Path(spec.workdir) / "launch" / id
    return Stored(id, str(folder.absolute()), code=bool(snapshot.archive))


def write(target: Target, spec: JobSpec, snapshot: Snapshot, stored: Stored) -> None:
    """Writes scripts, spec and code.

    Raises OSError where the folder cannot be made: a workdir of other machines, say.
    """
    folder = Path(stored.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be made ({error.strerror}); the workdir of target {target.name} must be seen from here, so submit "
            "where it is, or correct spec.workdir"
        ) from error
    for name, text in target.files(spec, stored).items():
        write_text(folder / name, text)
    write_text(folder / "spec.json", spec_json(spec))
    write_json(
        folder / "code.json", {"rmjax": snapshot.version, "commit": snapshot.commit, "changed": bool(snapshot.patch)}
    )
    if snapshot.patch:
        (folder / "changes.patch").write_bytes(snapshot.patch.encode("utf-8", "surrogateescape"))
    if snapshot.archive:
        (folder / "code.tar.gz").write_bytes(snapshot.archive)
        _unpack(snapshot.archive, folder / "code")
    _point(folder.parent / "latest", folder.name)


def _unpack(archive: bytes, folder: Path) -> None:
    """Into a folder that is there only when it is whole; an older one of the same id is the same."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f".code.{os.getpid()}")
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        tar.extractall(unfinished, filter="data")
    os.rename(unfinished, folder)


def _point(link: Path, name: str) -> None:
    unfinished = link.with_name(f".latest.{os.getpid()}")
    unfinished.symlink_to(name)
    os.replace(unfinished, link)


def upload(spec: JobSpec, stored: Stored) -> Command:
    """Brings the folder of a submission to the run's folder in the bucket, where the job finds it."""
    inside = stored.seen(spec).removeprefix(spec.mount)
    return (
        "gcloud", "storage", "rsync", "--recursive", "--exclude=code/.*", stored.folder, f"gs://{spec.bucket}{inside}",
    )  # fmt: skip


def commands(target: Target, spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    """All that a submission runs, in order."""
    return (*([upload(spec, stored)] if target.uploads else []), *target.submit(spec, stored))


def submit(target: Target, spec: JobSpec, snapshot: Snapshot, stored: Stored, answer: float = ANSWER) -> str:
    """Submits a job; the state of the one before it that was replaced, or "".

    Raises:
      FileExistsError: a job of this name is there and has not ended.
      OSError: as `write` and `run`.
    """
    before = state(target, spec, answer)
    if before and before.split()[0] not in target.over:
        raise FileExistsError(
            f"{spec.name} is there already ({before}), and two jobs must not share a workdir; --cancel it first, or give "
            "spec.run another name"
        )
    write(target, spec, snapshot, stored)
    if before:
        cancel(target, spec, answer)
    for command in commands(target, spec, stored):
        run(command, answer)
    return before


def cancel(target: Target, spec: JobSpec, answer: float = ANSWER) -> None:
    """Deletes what has exactly this job's name, all of it even where a part is gone already.

    Raises OSError with what failed.
    """
    failures = []
    for command in target.cancel(spec):
        try:
            run(command, answer)
        except OSError as error:
            failures.append(str(error))
    if failures:
        raise OSError("\n".join(failures))


def shown(commands: Sequence[Command]) -> str:
    """Commands as lines for a shell."""
    return "".join(shlex.join(command) + "\n" for command in commands)
