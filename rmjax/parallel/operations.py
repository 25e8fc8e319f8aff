"""What a compiled program does, an instruction at a time: matrix FLOPs, HBM bytes and collectives, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, so it is of no use for layers under a scan.
"""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Iterator

import numpy as np

from rmjax.parallel.hlo import Body, Instruction, Program, Shape, inputs, root, trips

_log = logging.getLogger(__name__)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
    "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
_NO_WORK = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}  # custom calls
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips."""

    kind: str
    bytes: int  # of the whole: gathered result, operand to be reduced, what a chip exchanges or sends
    groups: tuple[tuple[int, ...], ...]  # of partitions; for collective-permute (source, target)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that takes time on a chip, with its number of runs a step."""

    name: str
    opcode: str
    flops: float  # of matrix products and convolutions, a multiply-add being two; one run
    bytes: float  # read from and written to HBM in one run, each operand and result once
    collectives: tuple[Collective, ...]
    asynchronous: bool  # runs beside others
    times: int


def operations(program: Program) -> list[Operation]:
    """Every operation of the program, those of loops with their trip counts multiplied.

    Raises:
      ValueError: the text has a form that this reader does not know, and the count would be wrong.
    """
    return list(_walk(program, program.entry, 1, False))


def _walk(program: Program, computation: str, times: int, asynchronous: bool) -> Iterator[Operation]:
    body = program.computations[computation]
    for instruction in body.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")) or instruction.target in _NO_WORK:
            continue
        if opcode == "while":
            yield from _loop(program, body, instruction, times, asynchronous)
        elif opcode == "conditional":
            yield from _dearest(program, instruction, times, asynchronous)
        elif opcode == "call" or opcode == "async-start":
            for name in instruction.called:
                yield from _walk(program, name, times, asynchronous or opcode == "async-start")
        elif _stage(program, instruction) != "done":
            yield _operation(program, body, instruction, times, asynchronous)


def _loop(program: Program, body: Body, loop: Instruction, times: int, asynchronous: bool) -> Iterator[Operation]:
    found = trips(program, body, loop)
    if found is None:
        _log.warning("the compiled program does not say how often the loop %s runs; it is counted once", loop.name)
        found = 1
    for key, runs in (("condition", found + 1), ("body", found)):
        yield from _walk(program, loop.attribute(key) or "", times * runs, asynchronous)


def _dearest(program: Program, choice: Instruction, times: int, asynchronous: bool) -> list[Operation]:
    names = re.findall(r"%?([\w.-]+)", choice.attribute("branch_computations") or "")
    names = names or [choice.attribute(f"{side}_computation") or "" for side in ("true", "false")]
    branches = [list(_walk(program, name, times, asynchronous)) for name in names]
    return max(branches, key=lambda branch: sum(o.times * (o.flops + o.bytes) for o in branch))


def _stage(program: Program, instruction: Instruction) -> str:
    """A TPU's compiler splits an asynchronous collective over fusions: one begins it, one carries it through beside a
    product, one ends it; each holds the same collective. "start", "middle", "done", or "" for other instructions."""
    if instruction.opcode != "fusion":
        return ""
    for fused in program.called(instruction):
        targets = {i.target for i in fused.values()}
        for stage in ("start", "done"):
            if f"AsyncCollective{stage.capitalize()}" in targets:
                return stage
    return "middle" if any(name.startswith("async_collective_fusion") for name in instruction.called) else ""


def _operation(program: Program, body: Body, instruction: Instruction, times: int, asynchronous: bool) -> Operation:
    stage = _stage(program, instruction)
    found = () if stage == "middle" else tuple(_exchanges(program, body, instruction))
    started = stage == "start" or instruction.opcode.endswith("-start")
    return Operation(
        instruction.name, instruction.opcode, _flops(program, body, instruction), _bytes(program, body, instruction),
        found, asynchronous or started, times,
    )  # fmt: skip


def _exchanges(program: Program, body: Body, instruction: Instruction) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        groups = partition_groups(instruction.attributes)
        size = sum(s.bytes for name in instruction.operands for s in body[name].shapes)
        if (
            kind == "all-gather"
        ):  # over all chips, however many these are, the results say it; they come after the operands
            results = instruction.shapes[-len(instruction.operands) :]
            size = size * len(groups[0]) if groups else sum(s.bytes for s in results)
        yield Collective(kind, size, groups)
    if instruction.opcode == "fusion":
        # A reduction of which each chip keeps its part is one fusion on a TPU.
        scattered = any(name.startswith("all-reduce-scatter") for name in instruction.called)
        for fused in program.called(instruction):
            for inner in fused.values():
                for found in _exchanges(program, fused, inner):
                    yield dataclasses.replace(found, kind="reduce-scatter") if scattered else found


def partition_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """`replica_groups` (listed, as a transposed range, or as axes of a mesh) or `source_target_pairs`; () where all chips
    are one group."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}", attributes)
    if listed:
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1] or ""))
    ranged = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if ranged:
        shape, source, order = (tuple(map(int, g.split(","))) if g else None for g in ranged.groups())
        ids = np.arange(math.prod(source or ())).reshape(source or ())
        return tuple(map(tuple, (ids.transpose(order) if order else ids).reshape(shape).tolist()))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes)
    if named:
        chips = _mesh_order(named[2])
        return tuple(tuple(chips.get(n, n) for n in group) for group in _groups_of_axes(named[1], named[3]))
    if "replica_groups=" in attributes:
        raise ValueError(f"groups of a collective in a form that is not known: {attributes[:200]}")
    return ()


def _mesh_order(text: str | None) -> dict[int, int]:
    """Place in the mesh → chip: of `[2,4]T(1,0)` (all numbers, transposed) or of `0,2,1,3`; {} where they are the same."""
    if not text:
        return {}
    ranged = re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", text)
    if ranged:
        sizes, order = (tuple(map(int, g.split(","))) for g in ranged.groups())
        return dict(enumerate(np.arange(math.prod(sizes)).reshape(sizes).transpose(order).ravel().tolist()))
    return dict(enumerate(map(int, text.split(","))))


def _groups_of_axes(mesh: str, chosen: str) -> tuple[tuple[int, ...], ...]:
    """`'a'=4,'b'=2` and `'b'`, or a part of an axis, `'a':(2)2`: two as the second factor, after two."""
    sizes = {name: [int(size)] for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    picked = [(name, int(before or 1), int(size or 0)) for name, before, size in _AXIS.findall(chosen)]
    for name, before, size in picked:
        if size:
            (whole,) = sizes[name]
            sizes[name] = [before, size, whole // (before * size)]
    order = [(name, n) for name, parts in sizes.items() for n in range(len(parts))]
    grouped = [order.index((name, 1 if size else 0)) for name, _, size in picked]
    others = [n for n in range(len(order)) if n not in grouped]
    shape = [sizes[name][n] for name, n in order]
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(*others, *grouped)
    return tuple(map(tuple, ids.reshape(-1, math.prod(shape[n] for n in grouped)).tolist()))


_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def _flops(program: Program, body: Body, instruction: Instruction) -> float:
    if instruction.opcode == "fusion":
        return sum(_flops(program, fused, i) for fused in program.called(instruction) for i in fused.values())
    if instruction.opcode == "custom-call":
        return _kernel_flops(instruction)
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (body[name].shapes[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        axes = instruction.attribute("lhs_contracting_dims") or ""
        return 2.0 * instruction.shapes[0].elements * math.prod(lhs.sizes[int(n)] for n in axes.split(",") if n)
    return _convolution_flops(instruction, lhs, rhs)


def _kernel_flops(call: Instruction) -> float:
    if call.target == "tpu_custom_call" and "flops" not in _stated(call):
        _log.warning("the kernel %s does not state what it costs; its FLOPs are left out", call.name)
    return _stated(call).get("flops", 0.0)


def _stated(call: Instruction) -> dict[str, float]:
    """What the author of a kernel for TPUs (Pallas) states that it costs."""
    found = call.backend.get("custom_call_config", {}).get("cost_estimate", {})
    return {name: float(value) for name, value in found.items()}


def _convolution_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    """A TPU's compiler writes matrix products as convolutions, some of them with padding or dilation: multiplications by
    the zeros that these put in don't count."""
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels; the text's format may have changed")
    out = instruction.shapes[0]
    window = dict(part.split("=") for part in (instruction.attribute("window") or "").split() if "=" in part)
    useful = 1
    for n, axis in enumerate(sorted(c for c in labels[3] if c.isdigit())):
        stride, left, right = (int(window[k].split("x")[n]) if k in window else 1 for k in _WINDOW)
        padding = int(window["pad"].split("x")[n].split("_")[0]) if "pad" in window else 0
        sizes = (shape.sizes[label.index(axis)] for shape, label in zip((lhs, rhs, out), labels.groups(), strict=True))
        useful *= _useful(*sizes, stride, padding, left, right)
    batch, features = (out.sizes[labels[3].index(c)] for c in "bf")
    return 2.0 * batch * features * rhs.sizes[labels[2].index("i")] * useful


_WINDOW = ("stride", "lhs_dilate", "rhs_dilate")


@functools.cache
def _useful(size: int, kernel: int, out: int, stride: int, padding: int, left: int, right: int) -> int:
    """Pairs (output position, kernel position) along one axis that meet an element of the input."""
    start = np.arange(out) * stride - padding
    found = 0
    for k in range(kernel):
        at = start + k * right
        found += int(np.count_nonzero((at >= 0) & (at <= (size - 1) * left) & (at % left == 0)))
    return found


def _bytes(program: Program, body: Body, instruction: Instruction) -> float:
    opcode, operands = instruction.opcode, [body[name].shapes for name in instruction.operands]
    if opcode == "fusion":
        if _stage(program, instruction) == "start":  # the operand is a result as well, in its own place
            return float(sum(map(_hbm, operands)) + _hbm(instruction.shapes[1:]))
        return _reads(program, instruction, body) + _writes(program, instruction)
    if opcode.endswith("-start") and opcode.removesuffix("-start") not in COLLECTIVES:  # copies and slices
        moved = min((s.bytes for s in instruction.shapes if s.sizes), default=0)
        return float(sum(moved for s in instruction.shapes[:2] if s.space == 0))
    if opcode in _SLICES:
        taken = sum(s.bytes for s in instruction.shapes)
        return float((taken if _hbm(operands[0]) else 0) + _hbm(instruction.shapes))
    if opcode == "dynamic-update-slice":
        changed = sum(s.bytes for s in operands[1])
        return float((changed if _hbm(instruction.shapes) else 0) + _hbm(operands[1]))
    if opcode == "custom-call" and "bytes_accessed" in (stated := _stated(instruction)):
        return stated["bytes_accessed"]  # a kernel may read an operand more than once
    written = 0 if opcode.endswith("-start") else _hbm(instruction.shapes)
    return float(written + sum(map(_hbm, operands)))


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(s.bytes for s in shapes if s.space == 0)


def _reads(program: Program, fusion: Instruction, body: Body) -> float:
    (fused,), total = program.called(fusion), 0.0
    names = inputs(fused)
    for n, operand in enumerate(fusion.operands):
        whole = _hbm(body[operand].shapes)
        total += _read(program, fused, names[n], whole) if whole else 0
    return total


def _read(program: Program, fused: Body, name: str, whole: float) -> float:
    """Bytes of an input of `whole` bytes that a fused computation reads: all, or the slices that it takes. What it updates
    in place or hands on it does not read."""
    total = 0.0
    for user in fused.values():
        if name not in user.operands or user.opcode == "tuple" or user.opcode in COLLECTIVES:
            continue
        if user.opcode == "bitcast":
            total += _read(program, fused, user.name, whole)
        elif user.opcode in _SLICES and user.operands[0] == name:
            total += sum(s.bytes for s in user.shapes)
        elif user.opcode == "fusion":
            (inner,) = program.called(user)
            names = inputs(inner)
            total += max(_read(program, inner, names[n], whole) for n, o in enumerate(user.operands) if o == name)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return min(total, whole)


def _writes(program: Program, fusion: Instruction) -> float:
    (fused,) = program.called(fusion)
    result = root(fused)
    parts = [fused[name] for name in result.operands] if result.opcode == "tuple" else [result]
    if len(parts) != len(fusion.shapes):
        return float(_hbm(fusion.shapes))
    pairs = zip(parts, fusion.shapes, strict=True)
    return float(sum(min(_written(program, fused, part), s.bytes) for part, s in pairs if s.space == 0))


def _written(program: Program, fused: Body, part: Instruction) -> float:
    while part.opcode == "bitcast":
        part = fused[part.operands[0]]
    if part.opcode == "dynamic-update-slice":  # in place
        return sum(s.bytes for s in fused[part.operands[1]].shapes)
    if part.opcode == "parameter" or part.opcode == "all-gather":
        return 0.0
    if part.opcode == "fusion":
        (inner,) = program.called(part)
        if root(inner).opcode != "tuple":
            return _written(program, inner, root(inner))
    return sum(s.bytes for s in part.shapes)
