"""SkyPilot: the file of a managed job, which SkyPilot's own controller starts again on other machines."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from rmjax.launch import shell, tpus
from rmjax.launch.gke import to_yaml
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import STOPPED, Command, Stored, Target, needs

TASK = "sky.yaml"


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {TASK: to_yaml(task(spec, stored))}


def task(spec: JobSpec, stored: Stored) -> dict[str, Any]:
    """The task. Source of the fields: SkyPilot 0.14.1."""
    bucket = {spec.mount: {"source": f"gs://{spec.bucket}", "mode": "MOUNT"}}
    return {
        "name": spec.name,
        "resources": _resources(spec),
        "num_nodes": spec.all_hosts,
        **({"workdir": f"{stored.folder}/code"} if stored.code else {}),
        "file_mounts": bucket,
        "envs": shell.variables(spec),
        **({"setup": "".join(["set -e\n", *(spec.filled(line) + "\n" for line in spec.setup)])} if spec.setup else {}),
        "run": _run(spec, stored),
    }


def _resources(spec: JobSpec) -> dict[str, Any]:
    tpu = f"tpu-{tpus.queued_type(spec.tpu, spec.topology)}:1" if spec.tpu else ""
    accelerator = tpu or (f"{spec.gpu}:{spec.gpus}" if spec.gpus else "")
    return {
        **({"infra": f"gcp/{spec.zone.rpartition('-')[0]}/{spec.zone}"} if spec.zone else {}),
        **({"accelerators": accelerator} if accelerator else {}),
        **({"cpus": f"{spec.cores}+"} if spec.cores else {}),
        **({"memory": f"{spec.memory_gb}+"} if spec.memory_gb else {}),
        **({"image_id": f"docker:{spec.image}"} if spec.image else {}),
        "use_spot": spec.provisioning == "spot",
        "job_recovery": {"max_restarts_on_errors": spec.retries, "recover_on_exit_codes": [STOPPED]},
    }


def _run(spec: JobSpec, stored: Stored) -> str:
    several = (
        f'RMJAX_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p):{shell.COORDINATOR_PORT}"\n'
        "export RMJAX_COORDINATOR\n"
        'export RMJAX_PROCESSES="$SKYPILOT_NUM_NODES"\n'
        'export RMJAX_PROCESS="$SKYPILOT_NODE_RANK"\n'
    )
    code = 'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"\n' if stored.code else ""
    return f"{shell.FORGET}{several if spec.all_hosts > 1 else ''}{code}exec {shlex.join(spec.arguments)}\n"


def _check(spec: JobSpec) -> None:
    needs(spec, "sky", "bucket")
    if spec.gpus and not spec.gpu:
        raise ValueError("spec.gpu is empty; name the model as SkyPilot does, such as H100")
    if spec.tpu and (spec.all_hosts > 1 or not tpus.GENERATIONS[spec.tpu].queued):
        raise ValueError(f"spec.topology is {spec.topology!r} of {spec.tpu}; target sky takes one TPU host, so use gke")
    if spec.provisioning in ("reserved", "flex"):
        raise ValueError(
            f"spec.provisioning is {spec.provisioning!r}; SkyPilot's own settings say that, so leave it out"
        )


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    return (("sky", "jobs", "launch", "--name", spec.name, "--yes", "--detach-run", f"{stored.folder}/{TASK}"),)


def _find(spec: JobSpec) -> Command:
    return ("sky", "jobs", "queue", "--skip-finished", "--output", "json")


def _ended(spec: JobSpec) -> Command:
    return ("sky", "jobs", "queue", "--output", "json")


def _jobs(output: str, name: str) -> list[Mapping[str, Any]]:
    """From the JSON list of jobs; a line of another kind may come before it."""
    start = re.search(r"^\[", output, re.MULTILINE)
    jobs = json.loads(output[start.start() :]) if start else []
    return [job for job in jobs if job.get("job_name") == name]


def _state(output: str, name: str) -> str:
    return next((str(job.get("status", "there")) for job in _jobs(output, name)), "")


def _outcome(output: str, name: str) -> str:
    newest = max(_jobs(output, name), key=lambda job: job.get("job_id") or 0, default={})
    parts = (newest.get("status"), newest.get("job_id") and f"job {newest['job_id']}", newest.get("failure_reason"))
    return ", ".join(str(part) for part in parts if part)


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    return (("sky", "jobs", "cancel", "--name", spec.name, "--yes"),)


SKY = Target(
    name="sky",
    tools=("sky", "gcloud"),
    longest=63,
    honors=frozenset({"zone", "tpu", "gpus", "gpu", "hosts", "cores", "memory_gb", "image", "bucket", "provisioning"}),
    files=_files,
    submit=_submit,
    find=_find,
    cancel=_cancel,
    logs=lambda spec, id: f"sky jobs logs --name {spec.name}",
    check=_check,
    state=_state,
    ended=_ended,
    outcome=_outcome,
    uploads=True,
)
