"""Parts of shell scripts that several targets have in common."""

import shlex

from rmjax.launch.spec import JobSpec
from rmjax.launch.target import STOPPED, Stored

HOUR = 3600  # seconds after which an attempt has got somewhere: failures before it no longer count
COORDINATOR_PORT = 8476  # of process 0, where nothing else runs beside the job


def header(spec: JobSpec, stored: Stored, purpose: str) -> str:
    """First lines of a script."""
    return f"#!/usr/bin/env bash\n# {spec.name}: {purpose}. Written by experiments.launch, submission {stored.id}.\n"


STRICT = "set -euo pipefail\n"


def variables(spec: JobSpec) -> dict[str, str]:
    """The environment of every process: what it has to find when it has joined, and the spec's own entries."""
    platform = "tpu,cpu" if spec.tpu else "cuda,cpu" if spec.gpus else "cpu"
    ours = {
        "JAX_PLATFORMS": platform,  # an accelerator that does not come up is an error then, and no slow run on CPUs
        "PYTHONUNBUFFERED": "1",
        "RMJAX_EXPECT_PROCESSES": str(spec.all_processes),
        "RMJAX_EXPECT_HOSTS": str(spec.all_hosts),
        **({"RMJAX_EXPECT_DEVICES": str(spec.all_devices)} if spec.all_devices else {}),
        **({"RMJAX_EXPECT_SLICES": str(spec.slices)} if spec.tpu else {}),
        "RMJAX_STOPPED_CODE": str(STOPPED),
    }
    return ours | dict(spec.filled(entry).split("=", 1) for entry in spec.environment)


def exports(values: dict[str, str]) -> str:
    """Lines that export these variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


# What a shell that submits may have left behind, and libtpu would wait for.
FORGET = 'unset "${!MEGASCALE_@}"\n'


def setup(spec: JobSpec) -> str:
    """The spec's own lines, for which unset variables are no errors: activate scripts and modules have them."""
    if not spec.setup:
        return ""
    return "".join(["set +u\n", *(spec.filled(line) + "\n" for line in spec.setup), "set -u\n"])


def command(spec: JobSpec) -> str:
    """The command, stopped after `max_hours`."""
    limit = round(spec.max_hours * 3600)
    bounded = f"timeout --signal=TERM --kill-after={spec.grace_seconds} {limit} " if limit else ""
    return bounded + shlex.join(spec.arguments)


def into_code(stored: Stored, folder: str) -> str:
    """Into the snapshot of the code, so that what is edited later does not change a job that waits."""
    return f'cd {folder}\nexport PYTHONPATH="$PWD${{PYTHONPATH:+:$PYTHONPATH}}"\n' if stored.code else ""


def unpacked(spec: JobSpec, stored: Stored, folder: str) -> str:
    """Unpacks the snapshot that lies in the bucket onto a disk of this host, and goes there."""
    if not stored.code:
        return ""
    return f"mkdir -p {folder}\ntar -xzf {stored.seen(spec)}/code.tar.gz -C {folder}\n{into_code(stored, folder)}"


def supervised(spec: JobSpec) -> str:
    """Runs the function `attempt` until it is finished, and again after a stop or a failure: no process but this one decides."""
    time_is_up = f"""
  elif ((status == 124)); then
    echo "{spec.name} has had its {spec.max_hours:g} hours (spec.max_hours) and is not started again"
    exit 124"""
    return f"""\
failures=0
stopping=
trap 'stopping=1' TERM INT
while true; do
  began=$SECONDS
  status=0
  attempt || status=$?
  if ((status == 0)); then
    echo "{spec.name} is finished"
    exit 0
  elif [[ $stopping ]]; then
    echo "{spec.name} was told to stop; submit it again and it goes on"
    exit {STOPPED}{time_is_up if spec.max_hours else ""}
  elif ((status == {STOPPED})); then
    echo "{spec.name} was asked to stop and has saved; it goes on"
  else
    ((SECONDS - began < {HOUR})) || failures=0
    failures=$((failures + 1))
    echo "{spec.name} ended with exit code $status, failure $failures in a row of {spec.retries} that are retried"
    ((failures <= {spec.retries})) || exit "$status"
  fi
  sleep {spec.pause_seconds} &
  wait $! || true
done
"""
