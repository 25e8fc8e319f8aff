"""Google Kubernetes Engine: a JobSet of TPU slices, or of hosts with GPUs or CPUs."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from rmjax.launch import shell, tpus
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import STOPPED, Command, Stored, Target, labels, needs

MANIFEST = "jobset.yaml"
WORKER = "w"  # name of the replicated job; it stands in the name of every pod
CODE_IN_CONTAINER = "/tmp/rmjax-code"
"""Where the pod unpacks the code of a submission: of the container alone, not of a host, so nobody shares it and it goes with the
pod. /tmp because any image has it, and whatever user the image runs as may write there."""


class _Readable(yaml.SafeDumper):
    """YAML with scripts as blocks of lines; what a representer is added to has to be a class."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def to_yaml(value: Mapping[str, Any]) -> str:
    """In the order of the mapping, strings of several lines as blocks."""
    return yaml.dump(value, Dumper=_Readable, sort_keys=False, width=1000)


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {MANIFEST: to_yaml(jobset(spec, stored))}


def jobset(spec: JobSpec, stored: Stored) -> dict[str, Any]:
    """The manifest. A stop or a preemption restarts all pods without end, a failure `retries` times.

    Source of the fields: kubernetes-sigs/jobset, v1alpha2.
    """
    notes = {"rmjax/submission": stored.id}
    if spec.tpu:  # one slice of the job on one slice of the cluster
        notes["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    queue = {"kueue.x-k8s.io/queue-name": spec.queue} if spec.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": spec.name,
            **({"namespace": spec.namespace} if spec.namespace else {}),
            "labels": labels(spec) | queue,
            "annotations": notes,
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": _failure_policy(spec),
            "replicatedJobs": [{"name": WORKER, "replicas": spec.slices, "template": {"spec": _job(spec, stored)}}],
        },
    }


def _failure_policy(spec: JobSpec) -> dict[str, Any]:
    stop = {"name": "timeIsUp", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]}
    return {
        "maxRestarts": spec.retries,
        "rules": [
            {
                "name": "stoppedOrPreempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            },
            *([stop] if spec.max_hours else []),
        ],
    }


def _job(spec: JobSpec, stored: Stored) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        "parallelism": spec.slice_hosts,
        "completions": spec.slice_hosts,
        "backoffLimit": 0,
        **({"activeDeadlineSeconds": round(spec.max_hours * 3600)} if spec.max_hours else {}),
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "rmjax", "operator": "In", "values": [STOPPED]},
                },
            ]
        },
        "template": {
            "metadata": {"labels": labels(spec), "annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": _pod(spec, stored),
        },
    }


def _pod(spec: JobSpec, stored: Stored) -> dict[str, Any]:
    bucket = {
        "name": "bucket",
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": spec.bucket, "mountOptions": "implicit-dirs"},
        },
    }
    memory = {"name": "shm", "emptyDir": {"medium": "Memory"}}  # NCCL wants more than a container's 64 MB
    host_network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if spec.slices > 1 else {}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.grace_seconds,
        **({"serviceAccountName": spec.service_account} if spec.service_account else {}),
        **host_network,
        **({"nodeSelector": _nodes(spec)} if _nodes(spec) else {}),
        **({"tolerations": [_SPOT]} if spec.provisioning == "spot" else {}),
        "containers": [_container(spec, stored)],
        "volumes": [bucket, *([memory] if spec.gpus else [])],
    }


_SPOT = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}


def _nodes(spec: JobSpec) -> dict[str, str]:
    wanted = {
        "cloud.google.com/gke-tpu-accelerator": spec.tpu and tpus.GENERATIONS[spec.tpu].gke,
        "cloud.google.com/gke-tpu-topology": spec.topology,
        "cloud.google.com/gke-accelerator": spec.gpu,
        "cloud.google.com/gke-spot": "true" if spec.provisioning == "spot" else "",
        "cloud.google.com/reservation-name": spec.reservation,
    }
    return {name: value for name, value in wanted.items() if value}


def _container(spec: JobSpec, stored: Stored) -> dict[str, Any]:
    chips = {"google.com/tpu": tpus.chips_per_host(spec.tpu, spec.topology)} if spec.tpu else {}
    gpus = {"nvidia.com/gpu": spec.gpus} if spec.gpus else {}
    asked = ({"cpu": spec.cores} if spec.cores else {}) | ({"memory": f"{spec.memory_gb}G"} if spec.memory_gb else {})
    values = [{"name": name, "value": value} for name, value in shell.variables(spec).items()]
    return {
        "name": "rmjax",
        "image": spec.image,
        "command": ["bash", "-c", _script(spec, stored)],
        "env": values + _who(spec),
        "resources": {"requests": asked | chips | gpus, "limits": chips | gpus},
        "volumeMounts": [
            {"name": "bucket", "mountPath": spec.mount},
            *([{"name": "shm", "mountPath": "/dev/shm"}] if spec.gpus else []),
        ],
    }


def _who(spec: JobSpec) -> list[dict[str, Any]]:
    """Which process this is. GKE itself says it to TPUs; jax reads that."""
    if spec.all_processes == 1:
        return []
    if spec.tpu:
        return [{"name": "RMJAX_COORDINATOR", "value": "auto"}]
    first = f"{spec.name}-{WORKER}-0-0.{spec.name}"
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "RMJAX_COORDINATOR", "value": f"{first}:{shell.COORDINATOR_PORT}"},
        {"name": "RMJAX_PROCESSES", "value": str(spec.all_processes)},
        {"name": "RMJAX_PROCESS", "valueFrom": index},
    ]


def _script(spec: JobSpec, stored: Stored) -> str:
    """`exec`, so that Kubernetes' SIGTERM reaches the command."""
    unpacked = shell.unpacked(spec, stored, CODE_IN_CONTAINER)
    return f"{shell.STRICT}{unpacked}{shell.setup(spec)}exec {shlex.join(spec.arguments)}\n"


def _check(spec: JobSpec) -> None:
    needs(spec, "gke", "image", "bucket")
    if spec.processes > 1:
        raise ValueError(f"spec.processes is {spec.processes}; on GKE a pod is one process, so leave it out")
    if spec.gpus and not spec.gpu:
        raise ValueError("spec.gpu is empty; name the model as GKE does, such as nvidia-h100-80gb")
    if spec.provisioning == "flex":
        raise ValueError("spec.provisioning is 'flex'; on GKE the node pool is made so, and the job names a spec.queue")


def _kubectl(spec: JobSpec, *arguments: str) -> Command:
    place = [f"--context={spec.cluster}"] if spec.cluster else []
    place += [f"--namespace={spec.namespace}"] if spec.namespace else []
    return ("kubectl", *place, *arguments)


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    return (_kubectl(spec, "create", f"--filename={stored.folder}/{MANIFEST}"),)


def _find(spec: JobSpec) -> Command:
    fields = "{.metadata.name} {.status.terminalState} restarts {.status.restarts}"
    return _kubectl(spec, "get", "jobset", spec.name, "--ignore-not-found", f"--output=jsonpath={fields}")


def _state(output: str, name: str) -> str:
    first, _, rest = output.strip().partition(" ")
    rest = " ".join(rest.split())
    return (rest if rest.startswith(("Completed", "Failed")) else f"Active {rest}") if first == name else ""


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    return (_kubectl(spec, "delete", "jobset", spec.name, "--ignore-not-found"),)


def _logs(spec: JobSpec, id: str) -> str:
    selected = f"--selector=jobset.sigs.k8s.io/jobset-name={spec.name}"
    return shlex.join(
        _kubectl(spec, "logs", selected, "--container=rmjax", "--prefix", "--tail=20", "--max-log-requests=100")
    )


GKE = Target(
    name="gke",
    tools=("kubectl", "gcloud"),
    # A pod's name is JOBSET-w-SLICE-HOST-xxxxx, 63 characters at most.
    longest=63 - len("-w-999-9999-xxxxx"),
    honors=frozenset(
        {"cluster", "namespace", "queue", "service_account", 
            "tpu", "gpus", "gpu", "hosts", "slices", "cores", "memory_gb", "image", "bucket", "max_hours", "provisioning",
            "reservation",
        }
    ),
    files=_files,
    submit=_submit,
    find=_find,
    cancel=_cancel,
    logs=_logs,
    check=_check,
    state=_state,
    over=frozenset({"Completed", "Failed"}),
    uploads=True,
)  # fmt: skip
