"""The device mesh and the one table from logical axes to mesh axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")
SLOW_AXES = {"dcn_data": "data", "dcn_fsdp": "fsdp"}
"""Parts of an axis that run between slices, over the data center's network (DCN): `data` there sums gradients, once a
microbatch; `fsdp` gathers every layer's weights there too."""

Rules = tuple[tuple[str, tuple[str, ...] | None], ...]
"""Logical axis → mesh axes, as flax reads it: an array uses a mesh axis once, the first of its rows here has it."""
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # logical axis → mesh axes    shape that it stands in
    ("rows", ("data", "fsdp")),  # the batch [R, T], activations [R, T, D]
    ("tokens", ("context",)),  #   the batch [R, T], activations [R, T, D]
    ("experts", ("tensor",)),  #   an adapter's A [N, D, K] and B [N, K, O]; before the rest: it has the axis first
    ("vocab", ("tensor",)),  #     embedding [V, D]
    ("embed", ("fsdp",)),  #       every kernel's width side: [D, H·E], [D, F], [F, D], …
    ("heads", ("tensor",)),  #     query [D, H·E], output [H·E, D]
    ("kv_heads", ("tensor",)),  #  key, value [D, J·E]
    ("mlp", ("tensor",)),  #       gate, up [D, F], down [F, D]
    ("layers", ()),  #             the stacked leading axis of a layer's parameters
    ("head", ()),  #               query_norm, key_norm [E]
)


def make_rules(changes: Mapping[str, Sequence[str]]) -> Rules:
    """`RULES` with some rows changed: logical axis → mesh axes, none when empty.

    Raises:
      ValueError: an unknown logical or mesh axis.
    """
    table = dict(RULES) | {name: tuple(axes) for name, axes in changes.items()}
    known = [name for name, _ in RULES]
    for name, axes in table.items():
        if name not in known:
            raise ValueError(f"sharding has no logical axis {name!r}; it has {', '.join(known)}")
        if unknown := set(axes) - set(AXES):
            raise ValueError(
                f"sharding.{name}: mesh axis {sorted(unknown)[0]!r} is unknown; axes are {', '.join(AXES)}"
            )
    return tuple((name, table[name] or None) for name in known)


def make_mesh(sizes: Mapping[str, int], among: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or over `among` (those of a TPU topology, say); one of the four sizes may be −1 (the rest).
    `dcn_data` and `dcn_fsdp` are the factors of `data` and `fsdp` between slices (between processes where devices belong to
    no slices); the other factors, and the two other axes, stay within one. Axis types are Auto: Linen's rules fail on
    Explicit ones.

    Raises:
      ValueError: an unknown axis, a size below 1, two −1, a product that is not the number of devices, or `dcn_` sizes
        whose product is not the number of slices.
    """
    _check(sizes)
    devices = jax.devices() if among is None else among
    outer = [sizes.get(f"dcn_{axis}", 1) for axis in AXES]
    inner = [sizes.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in outer + inner if size != -1)
    inner = [len(devices) // known if size == -1 else size for size in inner]
    if math.prod(outer + inner) != len(devices):
        shown = dict(zip(AXES, inner, strict=True)) | {name: sizes[name] for name in SLOW_AXES if name in sizes}
        raise ValueError(f"mesh {shown} needs {math.prod(outer + inner)} devices; there are {len(devices)}")
    types = (AxisType.Auto,) * len(AXES)
    if math.prod(outer) == 1:
        return jax.make_mesh(tuple(inner), AXES, axis_types=types, devices=devices)
    return Mesh(_across_slices(inner, outer, devices), AXES, axis_types=types)


def named_mesh(mesh: Mesh | str | None) -> Mesh | None:
    """A mesh, `"all"` (rows over all devices of this process; none where there is one) or None (the default device).

    Raises:
      ValueError: another string.
    """
    if not isinstance(mesh, str):
        return mesh
    if mesh != "all":
        raise ValueError(f"mesh is {mesh!r}; give a jax Mesh, 'all' or None")
    devices = jax.local_devices()
    return make_mesh({"data": len(devices)}, devices) if len(devices) > 1 else None


def _check(sizes: Mapping[str, int]) -> None:
    if unknown := set(sizes) - {*AXES, *SLOW_AXES}:
        known = ", ".join((*AXES, *SLOW_AXES))
        raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown; axes are {known}")
    for axis, size in sizes.items():
        if size < 1 and (size != -1 or axis in SLOW_AXES):
            rest = "" if axis in SLOW_AXES else ", or -1 for the rest of the devices"
            raise ValueError(f"mesh axis {axis!r} has size {size}; give 1 or more{rest}")
    if list(sizes.values()).count(-1) > 1:
        raise ValueError("at most one mesh axis may be -1")


def _across_slices(inner: Sequence[int], outer: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices by mesh coordinates: what lies in one slice is contiguous along every axis."""
    slices = len({getattr(device, "slice_index", None) for device in devices})
    processes = len({device.process_index for device in devices})
    if math.prod(outer) not in (slices, processes):
        raise ValueError(
            f"mesh.dcn_data · mesh.dcn_fsdp is {math.prod(outer)}; the devices form {slices} slices and {processes} "
            "processes, so give one of these"
        )
    return create_hybrid_device_mesh(inner, outer, devices, process_is_granule=math.prod(outer) != slices)


def shards(mesh: Mesh, rules: Rules, logical: str) -> int:
    """Into how many parts a logical axis is cut."""
    return math.prod(mesh.shape[axis] for axis in dict(rules)[logical] or ())


def parameter_shardings(boxed: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Shardings of a tree of (abstract) parameters that carry logical axis names.

    Raises:
      ValueError: a parameter does not divide into as many parts; the message names it.
    """
    found = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
    jax.tree_util.tree_map_with_path(_check_divides, found, nn.meta.unbox(boxed))
    return found


def _check_divides(path: Any, sharding: NamedSharding, leaf: Any) -> None:
    for size, axes in zip(leaf.shape, sharding.spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        if size % parts:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name} has shape {leaf.shape}, and {size} does not divide into the {parts} parts of mesh axis "
                f"{' · '.join(names)}; change config.mesh, or config.sharding for this axis"
            )


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Rows over the data axes: a group never spans rows, so this needs no collective."""
    return NamedSharding(mesh, PartitionSpec(dict(rules)["rows"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
