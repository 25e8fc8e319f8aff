"""What the targets have to know of TPUs: how many hosts a slice has, and what each service calls it."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names of one generation of TPUs."""

    axes: int  # of a topology
    largest_host: int  # chips of the largest slice that is one host; the hosts of larger slices have 4
    per_chip: int  # devices that jax sees
    gke: str  # node label cloud.google.com/gke-tpu-accelerator
    machine: str  # of Compute Engine, less the number of chips
    queued: str  # accelerator type, less the number; empty: the Cloud TPU API does not have it
    per_chip_queued: int = 1  # what a chip adds to that number: v5p counts cores
    runtime: str = ""  # of the Cloud TPU API
    family: str = ""  # image family in ubuntu-os-accelerator-images


# Sources: docs.cloud.google.com/tpu/docs (runtimes, v5e, v5p, v6e, tpu7x), kubernetes-engine/docs/concepts/plan-tpus and
# compute/docs/tpus, read in November 2026.
_FAMILY = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
GENERATIONS: dict[str, Generation] = {
    "v5e": Generation(2, 8, 1, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v5litepod", 1, "v2-alpha-tpuv5-lite", _FAMILY),
    "v5p": Generation(3, 4, 1, "tpu-v5p-slice", "ct5p-hightpu", "v5p", 2, "v2-alpha-tpuv5", _FAMILY),
    "v6e": Generation(2, 8, 1, "tpu-v6e-slice", "ct6e-standard", "v6e", 1, "v2-alpha-tpuv6e", _FAMILY),
    "tpu7x": Generation(3, 4, 2, "tpu7x", "tpu7x-standard", ""),
}


def chips(tpu: str, topology: str) -> int:
    """Chips of a slice.

    Raises ValueError, naming the field, where the topology is not one of this generation.
    """
    axes = GENERATIONS[tpu].axes
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") + 1 != axes:
        raise ValueError(f"spec.topology is {topology!r}; a slice of {tpu} has {axes} axes, as {'x'.join('4' * axes)}")
    return math.prod(map(int, topology.split("x")))


def hosts(tpu: str, topology: str) -> int:
    """Hosts of a slice, as `chips`."""
    number = chips(tpu, topology)
    if number <= GENERATIONS[tpu].largest_host:
        return 1
    if number % 4:
        raise ValueError(
            f"spec.topology is {topology!r}, {number} chips; hosts have 4 each, so make it a multiple of 4"
        )
    return number // 4


def chips_per_host(tpu: str, topology: str) -> int:
    """Chips of one host of a slice, as `chips`."""
    return chips(tpu, topology) // hosts(tpu, topology)


def devices(tpu: str, topology: str) -> int:
    """Devices that jax sees of a slice."""
    return chips(tpu, topology) * GENERATIONS[tpu].per_chip


def machine(tpu: str, topology: str) -> str:
    """Machine type of Compute Engine."""
    return f"{GENERATIONS[tpu].machine}-{chips_per_host(tpu, topology)}t"


def queued_type(tpu: str, topology: str) -> str:
    """Accelerator type of the Cloud TPU API, as v6e-16."""
    generation = GENERATIONS[tpu]
    return f"{generation.queued}-{chips(tpu, topology) * generation.per_chip_queued}"
