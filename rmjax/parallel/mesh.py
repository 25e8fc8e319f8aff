"""The device mesh and the one table from logical axes to mesh axes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")

RULES: tuple[tuple[str, Any], ...] = (
    # logical axis → mesh axes      shape that it stands in
    ("rows", ("data", "fsdp")),  #  activations [R, T, D]
    ("tokens", "context"),  #       activations [R, T, D]
    ("experts", "tensor"),  #       LoRAMoE's A [N, D, K] and B [N, K, O]; before the rest: it has the axis first
    ("vocab", "tensor"),  #         embedding [V, D]
    ("embed", "fsdp"),  #           every kernel's width side: [D, H·E], [D, F], [F, D], …
    ("heads", "tensor"),  #         query [D, H·E], output [H·E, D]
    ("kv_heads", "tensor"),  #      key, value [D, J·E]
    ("mlp", "tensor"),  #           gate, up [D, F], down [F, D]
    ("layers", None),  #            the stacked leading axis of a layer's parameters
    ("head", None),  #              query_norm, key_norm [E]
)


def make_mesh(sizes: dict[str, int], among: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or over `among` (those of a TPU topology, say); one size may be −1 (the rest). Axis types are
    Auto: Linen's rules fail on Explicit ones.

    Raises:
      ValueError: an unknown axis, a size below 1, two −1, or a product that is not the number of devices.
    """
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown; axes are {', '.join(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    devices = jax.device_count() if among is None else len(among)
    for axis, size in zip(AXES, shape, strict=True):
        if size < 1 and size != -1:
            raise ValueError(f"mesh axis {axis!r} has size {size}; give 1 or more, or -1 for the rest of the devices")
    if shape.count(-1) > 1:
        raise ValueError("at most one mesh axis may be -1")
    known = 1
    for size in shape:
        known *= 1 if size == -1 else size
    shape = [devices // known if size == -1 else size for size in shape]
    product = known * (devices // known if -1 in [sizes.get(axis, 1) for axis in AXES] else 1)
    if product != devices:
        raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))} needs {product} devices; there are {devices}")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=among)


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of (abstract) parameters that carry logical axis names."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes: a group never spans rows, so this needs no collective."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
