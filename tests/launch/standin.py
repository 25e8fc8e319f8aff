#!/usr/bin/env python3
"""Stands in for gcloud, sbatch, squeue, sacct, scancel, srun, scontrol, kubectl and sky, by the name it is called with.

It writes each call to $STANDIN/calls.jsonl, keeps what exists in $STANDIN/state.json, "KIND/NAME" → state, which a test may
change to play the service, and refuses as the real ones do: a name that is taken, a name that is not there. $STANDIN/sleep makes
it hang.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STANDIN"])


def main(program, arguments):
    with (HOME / "calls.jsonl").open("a") as file:
        file.write(json.dumps([program, *arguments]) + "\n")
    if (HOME / "sleep").exists():
        time.sleep(60)
    path = HOME / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    code = PROGRAMS[program](state, arguments)
    path.write_text(json.dumps(state))
    return code or 0


def flag(arguments, name):
    return next((a.partition("=")[2] for a in arguments if a.startswith(f"--{name}=")), "")


def fail(text):
    print(f"ERROR: {text}", file=sys.stderr)
    return 1


def create(state, key, value):
    if key in state:
        return fail(f"{key} already exists")
    state[key] = value


def delete(state, key):
    return fail(f"{key} was not found") if state.pop(key, None) is None else 0


def sbatch(state, arguments):
    name = re.search(r"--job-name=(\S+)", Path(arguments[-1]).read_text())[1]
    state[f"slurm/{name}"] = "PENDING"  # Slurm has nothing against two jobs of one name
    print(len(state))


def squeue(state, arguments):
    key = f"slurm/{flag(arguments, 'name')}"
    if key in state:
        print(f"{key.partition('/')[2]} {state[key]} job 1, 0:00 of 1-00:00:00, None")


def sacct(state, arguments):
    """Knows the jobs that have ended: "ended/NAME" → state."""
    if (HOME / "no-accounts").exists():
        return fail("Slurm accounting storage is disabled")
    name = flag(arguments, "name")
    for number, value in enumerate(
        [*state.get("earlier", []), *([state[f"ended/{name}"]] if f"ended/{name}" in state else [])]
    ):
        print(f"{name}|{value}|{number + 1}|1:0|2026-11-28T12:00:00")


def scancel(state, arguments):
    state.pop(f"slurm/{flag(arguments, 'name')}", None)


def scontrol(state, arguments):
    if arguments[:2] == ["show", "hostnames"]:
        print("\n".join(arguments[2].split(",")))
    else:
        state[f"requeued/{arguments[1]}"] = "PENDING"


def srun(state, arguments):
    """One task after the other."""
    command = [a for a in arguments if not a.startswith("-")]
    tasks = int(os.environ["SLURM_NTASKS"])
    codes = [
        subprocess.run(command, env=os.environ | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}).returncode
        for i in range(tasks)
    ]
    return max(codes)


def kubectl(state, arguments):
    verb = next(a for a in arguments if a in ("create", "get", "delete"))
    if verb == "create":
        name = re.search(r"^  name: (\S+)", Path(flag(arguments, "filename")).read_text(), re.MULTILINE)[1]
        return create(state, f"jobset/{name}", " restarts 0")
    key = f"jobset/{arguments[arguments.index('jobset') + 1]}"
    if verb == "get" and key in state:
        print(f"{key.partition('/')[2]} {state[key]}", end="")
    if verb == "delete":
        state.pop(key, None)


def gcloud(state, arguments):
    words = [a for a in arguments if not a.startswith("--")]
    if words[:2] == ["storage", "rsync"]:
        shutil.copytree(words[2], HOME / "buckets" / words[3].removeprefix("gs://"), dirs_exist_ok=True)
        return 0
    collection = next(
        c for c in ("queued-resources", "resource-policies", "instance-templates", "managed") if c in words
    )
    verb = words[words.index(collection) + 1]
    if verb == "list":
        for key, value in state.items():
            if key.startswith(f"{collection}/"):
                print(f"{key.partition('/')[2]}\t{value}")
        return 0
    key = f"{collection}/{words[-1]}"
    new = {"queued-resources": "WAITING_FOR_RESOURCES", "managed": f"{flag(arguments, 'size')}\tFalse"}.get(
        collection, "there"
    )
    return create(state, key, new) if verb == "create" else delete(state, key)


def sky(state, arguments):
    verb = arguments[1]
    name = arguments[arguments.index("--name") + 1] if "--name" in arguments else ""
    if verb == "launch":
        state[f"sky/{name}"] = "PENDING"
    elif verb == "cancel":
        return delete(state, f"sky/{name}")
    else:
        jobs = [
            {"job_id": number, "job_name": key.partition("/")[2], "status": value}
            for number, (key, value) in enumerate(state.items())
            if key.startswith("sky/") and not ("--skip-finished" in arguments and value in ("FAILED", "SUCCEEDED"))
        ]
        print("Fetching managed job statuses...\n" + json.dumps(jobs, indent=2))


PROGRAMS = {f.__name__: f for f in (sbatch, squeue, sacct, scancel, scontrol, srun, kubectl, gcloud, sky)}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
