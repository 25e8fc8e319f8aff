"""Managed instance groups of Compute Engine: one TPU slice, with the workload policy that wires its VMs together."""

import shlex
from collections.abc import Mapping

from rmjax.launch import tpus, vm
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import Command, Stored, Target, labels, needs


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {vm.SCRIPT: vm.startup(spec, stored)}


def _check(spec: JobSpec) -> None:
    needs(spec, "mig", "tpu", "project", "zone", "bucket")
    if not (spec.vm_image or tpus.GENERATIONS[spec.tpu].family):
        raise ValueError(f"spec.vm_image is empty; name the image family for {spec.tpu}")
    if spec.provisioning == "flex" and not spec.max_hours:
        raise ValueError("spec.max_hours is 0; provisioning 'flex' is for a stated time, so set it (168 at most)")


def _region(spec: JobSpec) -> str:
    return spec.zone.rpartition("-")[0]


def _compute(spec: JobSpec, *arguments: str) -> Command:
    return ("gcloud", "compute", *arguments, f"--project={spec.project}")


def _own(spec: JobSpec, collection: str) -> str:
    return f"projects/{spec.project}/regions/{_region(spec)}/{collection}/{spec.name}"


def _provisioning(spec: JobSpec) -> list[str]:
    return {
        "on-demand": [],
        "spot": ["--provisioning-model=SPOT", "--instance-termination-action=STOP"],
        "reserved": ["--reservation-affinity=specific", f"--reservation={spec.reservation}"],
        "flex": [
            "--provisioning-model=FLEX_START",
            "--instance-termination-action=DELETE",
            f"--max-run-duration={round(spec.max_hours * 3600)}s",
        ],
    }[spec.provisioning]


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    """Source: docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice, read in November 2026."""
    several = spec.slice_hosts > 1
    policy = _compute(
        spec, "resource-policies", "create", "workload-policy", spec.name, f"--region={_region(spec)}", "--type=HIGH_THROUGHPUT",
        f"--accelerator-topology={spec.topology}",
    )  # fmt: skip
    template = _compute(
        spec, "instance-templates", "create", spec.name, f"--instance-template-region={_region(spec)}",
        f"--machine-type={tpus.machine(spec.tpu, spec.topology)}",
        f"--image-family={spec.vm_image or tpus.GENERATIONS[spec.tpu].family}", "--image-project=ubuntu-os-accelerator-images",
        "--maintenance-policy=TERMINATE", "--scopes=cloud-platform", *_provisioning(spec),
        *([f"--service-account={spec.service_account}"] if spec.service_account else []),
        f"--labels={','.join(f'{name}={value}' for name, value in labels(spec).items())}",
        f"--metadata-from-file=startup-script={stored.folder}/{vm.SCRIPT}", *spec.options,
    )  # fmt: skip
    wired = ["--target-size-policy-mode=bulk", f"--workload-policy={_own(spec, 'resourcePolicies')}"] if several else []
    group = _compute(
        spec, "instance-groups", "managed", "create", spec.name, f"--zone={spec.zone}",
        f"--template={_own(spec, 'instanceTemplates')}", f"--size={spec.slice_hosts}",
        "--default-action-on-vm-failure=do-nothing", *wired,
    )  # fmt: skip
    return (*([policy] if several else []), template, group)


def _find(spec: JobSpec) -> Command:
    fields = "value(name,targetSize,status.isStable)"
    return _compute(spec, "instance-groups", "managed", "list", f"--zones={spec.zone}", f"--format={fields}")


def _state(output: str, name: str) -> str:
    for line in output.splitlines():
        first, *rest = line.split("\t")
        if first == name:
            size, stable = (*rest, "", "")[:2]
            return f"{'stable' if stable == 'True' else 'changing'}, {size} VMs"
    return ""


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    policy = _compute(spec, "resource-policies", "delete", spec.name, f"--region={_region(spec)}", "--quiet")
    return (
        _compute(spec, "instance-groups", "managed", "delete", spec.name, f"--zone={spec.zone}", "--quiet"),
        _compute(spec, "instance-templates", "delete", spec.name, f"--region={_region(spec)}", "--quiet"),
        *([policy] if spec.slice_hosts > 1 else []),
    )


def _logs(spec: JobSpec, id: str) -> str:
    listing = _compute(spec, "instance-groups", "managed", "list-instances", spec.name, f"--zone={spec.zone}")
    return f"{shlex.join(listing)} # then, on each by gcloud compute ssh: tail -n 20 {vm.log(spec)}"


MIG = Target(
    name="mig",
    tools=("gcloud",),
    longest=58,  # 63 with the four characters of a VM
    honors=frozenset(
        {
            "project",
            "zone",
            "service_account",
            "tpu",
            "vm_image",
            "bucket",
            "max_hours",
            "provisioning",
            "reservation",
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
    state=_state,
    uploads=True,
)
