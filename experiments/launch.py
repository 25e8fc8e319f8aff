"""A job on another machine: `python -m experiments.launch SPEC [--dry_run|--submit|--status|--cancel] [-- ARGUMENT …]`.

SPEC is a file such as launch/slurm.py; `--target=gke` asks another target, `--set=run=polar-2` changes a field, and what follows
`--` is added to the command. `python -m experiments.launch doctor [SPEC]` says what would keep a job from starting here. Nothing
of this runs beside the job: it resumes by itself.
"""

import dataclasses
import getpass
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.launch import doctor, snapshot, tools
from rmjax.launch.spec import JobSpec, changed, checked, load
from rmjax.launch.target import Stored, Target, check_for, unused
from rmjax.launch.targets import ALL
from rmjax.sections import nearest

ACTIONS = ("dry_run", "submit", "status", "cancel")


def chosen(path: Path, target: str | None, assignments: Sequence[str], more: Sequence[str]) -> tuple[JobSpec, Target]:
    """The spec that a file and the flags make, and its target, both checked.

    Raises OSError or ValueError that names the file, the flag or the field.
    """
    spec = changed(load(path), [*assignments, *([f"target={target}"] if target else [])], more)
    if not spec.owner:
        spec = dataclasses.replace(spec, owner=re.sub(r"[^a-z0-9]", "", getpass.getuser().lower()))
    if spec.target not in ALL:
        raise ValueError(f"spec.target is {spec.target!r}; {nearest(spec.target, ALL)}")
    spec = checked(spec)
    check_for(ALL[spec.target], spec)
    return spec, ALL[spec.target]


def dry_run(target: Target, spec: JobSpec, stored: Stored) -> str:
    """All that `--submit` would write and run."""
    parts = [f"=== {name}\n{text}" for name, text in target.files(spec, stored).items()]
    asked = (
        ("submit", tools.commands(target, spec, stored)),
        ("status", (target.find(spec), *([target.ended(spec)] if target.ended else []))),
        ("cancel", target.cancel(spec)),
    )
    return "\n".join([*parts, *(f"=== to {action}\n{tools.shown(commands)}" for action, commands in asked)])


def describe(code: snapshot.Snapshot, target: Target, spec: JobSpec) -> str:
    """What the snapshot has and lacks, and what of the spec is for other targets."""
    others = unused(target, spec)
    return _code(code) + (
        f"\nof no use to {target.name}: {', '.join(f'spec.{name}' for name in others)}" if others else ""
    )


def _code(code: snapshot.Snapshot) -> str:
    if not code.archive:
        return f"code: rmjax {code.version} as it is installed where the job runs (this folder is no git checkout)"
    changes = ", with changes that are not committed" if code.patch else ""
    lacks = ""
    if code.untracked:
        names = ", ".join(code.untracked[:5]) + (", …" if len(code.untracked) > 5 else "")
        lacks = f"\nnot in it, since git does not track them: {len(code.untracked)} files: {names}"
    return f"code: {len(code.files)} files of commit {code.commit[:12]}{changes}{lacks}"


def submit(target: Target, spec: JobSpec, records: Path) -> str:
    """Submits, and says where everything is."""
    if problem := tools.missing(target):
        raise FileNotFoundError(problem)
    code = snapshot.take(Path.cwd())
    snapshot.check_files(spec, code, Path.cwd())
    stored = tools.place(target, spec, code, records)
    before = tools.submit(target, spec, code, stored)
    replaced = f" (in place of one that was {before})" if before else ""
    return (
        f"{spec.name} is submitted to {target.name}{replaced}: {spec.all_processes} processes on {spec.all_hosts} hosts\n"
        f"{describe(code, target, spec)}\nscripts, spec and code: {stored.folder}\noutput: {target.logs(spec, stored.id)}"
    )


def status(target: Target, spec: JobSpec) -> str:
    """The job's state, and how far it is where the workdir can be seen from here."""
    if problem := tools.missing(target):
        raise FileNotFoundError(problem)
    found = tools.state(target, spec) or tools.outcome(target, spec)
    lines = [f"{spec.name}: {found or f'no job of this name on {target.name}'}", progress(Path(spec.workdir))]
    return "\n".join(line for line in [*lines, f"output: {target.logs(spec, '')}"] if line)


def progress(workdir: Path) -> str:
    """The last step in metrics.jsonl and how long ago it was; empty where there is none here."""
    file = workdir / "metrics.jsonl"
    try:
        last = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
        return f"step {last['step']}, written {time.time() - file.stat().st_mtime:.0f} s ago"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def cancel(target: Target, spec: JobSpec) -> str:
    """Deletes the job of exactly this name."""
    if problem := tools.missing(target):
        raise FileNotFoundError(problem)
    tools.cancel(target, spec)
    return f"{spec.name} is cancelled on {target.name}; submitted again, it goes on from its newest checkpoint"


def examine(workdir: str | None, job: tuple[JobSpec, Target] | None) -> str:
    """A line for each check.

    Raises ValueError, with the same lines, where one found something.
    """
    folder = workdir or (job[0].workdir if job and not job[1].uploads else None)
    around = doctor.here(workdir=Path(folder) if folder else None)
    found = doctor.examine(around)
    if around.gpus and not any(found.values()):  # starting jax can hang where one of them has
        found["cpus alone"] = doctor.cpus_alone(around, jax.default_backend())
    if job:
        found[f"programs of {job[1].name}"] = tools.missing(job[1])
    lines = "\n".join(f"{name}: {message or 'ok'}" for name, message in found.items())
    if problems := sum(message is not None for message in found.values()):
        raise ValueError(f"{problems} of {len(found)} checks found something\n{lines}")
    return lines


def act(arguments: Sequence[str]) -> str:
    """What the command line asks for."""
    asked = [action for action in ACTIONS if flags.FLAGS[action].value]
    if not arguments or len(asked) > 1:
        raise ValueError("give a spec or `doctor`, and one of --dry_run (the default), --submit, --status, --cancel")
    values = flags.FLAGS.target, flags.FLAGS.set or []
    if arguments[0] == "doctor":
        job = chosen(Path(arguments[1]), *values, arguments[2:]) if len(arguments) > 1 else None
        return examine(flags.FLAGS.workdir, job)
    spec, target = chosen(Path(arguments[0]), *values, arguments[1:])
    records = Path(flags.FLAGS.records)
    action = asked[0] if asked else "dry_run"
    if action == "dry_run":
        code = snapshot.take(Path.cwd())
        snapshot.check_files(spec, code, Path.cwd())
        return f"{dry_run(target, spec, tools.place(target, spec, code, records))}\n{describe(code, target, spec)}"
    if action == "submit":
        return submit(target, spec, records)
    return {"status": status, "cancel": cancel}[action](target, spec)


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    sys.exit(guarded(lambda: print(act(argv[1:]))))


if __name__ == "__main__":
    flags.DEFINE_enum("target", None, sorted(ALL), "instead of the spec's")
    flags.DEFINE_multi_string("set", None, "FIELD=VALUE of the spec; entries of a tuple are separated by spaces")
    flags.DEFINE_string(
        "records", "runs/launch", "folder for what is submitted to clouds; other targets keep it in the workdir"
    )
    flags.DEFINE_string("workdir", None, "doctor: the folder that must be writable")
    flags.DEFINE_bool("dry_run", False, "show scripts and commands")
    flags.DEFINE_bool("submit", False, "submit the job")
    flags.DEFINE_bool("status", False, "say what became of it")
    flags.DEFINE_bool("cancel", False, "delete it")
    prepare()
    app.run(main, flags_parser=parse_flags)
