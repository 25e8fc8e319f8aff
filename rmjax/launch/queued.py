"""Queued resources of the Cloud TPU API: frozen by Google and without TPU7x, still the usual way for v5e, v5p and v6e."""

import shlex
from collections.abc import Mapping

from rmjax.launch import tpus, vm
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import Command, Stored, Target, labels, needs


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {vm.SCRIPT: vm.startup(spec, stored)}


def _check(spec: JobSpec) -> None:
    needs(spec, "queued", "tpu", "zone", "bucket")
    if not tpus.GENERATIONS[spec.tpu].queued:
        raise ValueError(f"spec.tpu is {spec.tpu!r}, which the Cloud TPU API does not have; use target gke or mig")
    if spec.provisioning == "flex":
        raise ValueError("spec.provisioning is 'flex'; queued resources have on-demand, spot and reserved")


def _place(spec: JobSpec) -> list[str]:
    return [*([f"--project={spec.project}"] if spec.project else []), f"--zone={spec.zone}"]


def _queued(spec: JobSpec, *arguments: str) -> Command:
    return ("gcloud", "compute", "tpus", "queued-resources", *arguments, *_place(spec))


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    several = (f"--node-count={spec.slices}", f"--node-prefix={spec.name}")
    create = _queued(
        spec,
        "create",
        spec.name,
        f"--accelerator-type={tpus.queued_type(spec.tpu, spec.topology)}",
        f"--runtime-version={spec.vm_image or tpus.GENERATIONS[spec.tpu].runtime}",
        *(several if spec.slices > 1 else (f"--node-id={spec.name}",)),
        *({"spot": ["--spot"], "reserved": ["--reserved"]}.get(spec.provisioning, [])),
        *([f"--service-account={spec.service_account}"] if spec.service_account else []),
        f"--labels={','.join(f'{name}={value}' for name, value in labels(spec).items())}",
        f"--metadata-from-file=startup-script={stored.folder}/{vm.SCRIPT}",
        *spec.options,
    )
    return (create,)


def _find(spec: JobSpec) -> Command:
    return _queued(spec, "list", "--format=value(name.basename(),state.state)")


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    return (_queued(spec, "delete", spec.name, "--force", "--quiet"),)


def _logs(spec: JobSpec, id: str) -> str:
    node = spec.name if spec.slices == 1 else f"{spec.name}-0"
    show = f"tail -n 20 {vm.log(spec)}"
    return shlex.join(
        ("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *_place(spec), "--worker=all", f"--command={show}")
    )


QUEUED = Target(
    name="queued",
    tools=("gcloud",),
    longest=58,  # 63 with the number of a slice
    honors=frozenset(
        {
            "project",
            "zone",
            "service_account",
            "tpu",
            "slices",
            "vm_image",
            "bucket",
            "max_hours",
            "provisioning",
            "options",
            "pause_seconds",
        }
    ),
    files=_files,
    submit=_submit,
    find=_find,
    cancel=_cancel,
    logs=_logs,
    check=_check,
    over=frozenset({"SUSPENDED", "FAILED"}),
    uploads=True,
)
