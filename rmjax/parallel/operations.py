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

from rmjax.parallel.hlo import Instruction, Program, Shape

_log = logging.getLogger(__name__)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
    "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
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
    """Every operation of the program, those of loops with their trip counts multiplied."""
    return list(_walk(program, program.entry, 1, False))


def _walk(program: Program, computation: str, times: int, asynchronous: bool) -> Iterator[Operation]:
    body = program.computations[computation]
    for instruction in body.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            yield from _loop(program, instruction, times, asynchronous)
        elif opcode == "conditional":
            yield from _dearest(program, instruction, times, asynchronous)
        elif opcode == "call" or opcode == "async-start":
            for name in instruction.called:
                yield from _walk(program, name, times, asynchronous or opcode == "async-start")
        else:
            yield _operation(program, body, instruction, times, asynchronous)


def _loop(program: Program, loop: Instruction, times: int, asynchronous: bool) -> Iterator[Operation]:
    if loop.trips is None:
        _log.warning("the compiler does not know how often the loop %s runs; it is counted once", loop.name)
    trips = 1 if loop.trips is None else loop.trips
    for key, runs in (("condition", trips + 1), ("body", trips)):
        yield from _walk(program, loop.attribute(key) or "", times * runs, asynchronous)


def _dearest(program: Program, choice: Instruction, times: int, asynchronous: bool) -> list[Operation]:
    names = re.findall(r"%?([\w.-]+)", choice.attribute("branch_computations") or "")
    names = names or [choice.attribute(f"{side}_computation") or "" for side in ("true", "false")]
    branches = [list(_walk(program, name, times, asynchronous)) for name in names]
    return max(branches, key=lambda branch: sum(o.times * (o.flops + o.bytes) for o in branch))


def _operation(
    program: Program, body: dict[str, Instruction], instruction: Instruction, times: int, asynchronous: bool
) -> Operation:
    found = list(_exchanges(program, body, instruction))
    started = instruction.opcode.endswith("-start")
    return Operation(
        instruction.name, instruction.opcode, _flops(program, body, instruction),
        _bytes(program, body, instruction), tuple(found), asynchronous or started, times,
    )  # fmt: skip


def _exchanges(program: Program, body: dict[str, Instruction], instruction: Instruction) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        groups = partition_groups(instruction.attributes)
        size = sum(s.bytes for name in instruction.operands for s in body[name].shapes)
        yield Collective(kind, size * (len(groups[0]) if kind == "all-gather" and groups else 1), groups)
    if instruction.opcode == "fusion":
        for name in instruction.called:
            for inner in program.computations[name].values():
                yield from _exchanges(program, program.computations[name], inner)


def partition_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """`replica_groups` (listed, or as a transposed range) or `source_target_pairs`; () where there are none."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1]))
    ranged = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if not ranged:
        return ()
    shape, source, order = (tuple(map(int, g.split(","))) if g else None for g in ranged.groups())
    ids = np.arange(math.prod(source or ())).reshape(source or ())
    return tuple(map(tuple, (ids.transpose(order) if order else ids).reshape(shape).tolist()))


def _flops(program: Program, body: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode == "fusion":
        inner = (program.computations[name] for name in instruction.called)
        return sum(_flops(program, fused, i) for fused in inner for i in fused.values())
    if instruction.opcode == "custom-call":
        return float(instruction.backend.get("cost_estimate", {}).get("flops", 0))
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (body[name].shapes[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        axes = instruction.attribute("lhs_contracting_dims") or ""
        return 2.0 * instruction.shapes[0].elements * math.prod(lhs.sizes[int(n)] for n in axes.split(",") if n)
    return _convolution_flops(instruction, lhs, rhs)


def _convolution_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    """A TPU's compiler writes matrix products as convolutions, a batch of them with dilation: multiplications by the zeros
    that padding and dilation put in don't count."""
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


def _bytes(program: Program, body: dict[str, Instruction], instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode == "fusion":
        fused = program.computations[instruction.called[0]]
        return _reads_of_fusion(program, instruction, fused, body) + _writes_of_fusion(program, fused, instruction)
    if opcode.endswith("-start") and opcode.removesuffix("-start") not in COLLECTIVES:  # copies and slices
        moved = min((s.bytes for s in instruction.shapes if s.sizes), default=0)
        return sum(moved for s in instruction.shapes[:2] if s.space == 0)
    if opcode in _SLICES:
        return (
            2.0 * _hbm(instruction.shapes) if _hbm(body[instruction.operands[0]].shapes) else _hbm(instruction.shapes)
        )
    if opcode == "dynamic-update-slice":
        update = _hbm(body[instruction.operands[1]].shapes)
        return 2.0 * update
    written = 0 if opcode.endswith("-start") else _hbm(instruction.shapes)
    return float(written + sum(_hbm(body[name].shapes) for name in instruction.operands))


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(s.bytes for s in shapes if s.space == 0)


def _reads_of_fusion(
    program: Program, fusion: Instruction, fused: dict[str, Instruction], body: dict[str, Instruction]
) -> float:
    inputs = {int(i.arguments): i.name for i in fused.values() if i.opcode == "parameter"}
    total = 0.0
    for n, operand in enumerate(fusion.operands):
        whole = _hbm(body[operand].shapes)
        total += min(whole, _read(program, fused, inputs[n], whole)) if whole else 0
    return total


def _read(program: Program, fused: dict[str, Instruction], name: str, whole: float) -> float:
    """Bytes of an input of `whole` bytes that a fused computation reads: all, or the slices that it takes."""
    total = 0.0
    for user in fused.values():
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read(program, fused, user.name, whole)
        elif user.opcode in _SLICES and user.operands[0] == name:
            total += sum(s.bytes for s in user.shapes)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            inputs = {int(i.arguments): i.name for i in inner.values() if i.opcode == "parameter"}
            total += max(_read(program, inner, inputs[n], whole) for n, o in enumerate(user.operands) if o == name)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name) and user.opcode != "tuple":
            return whole
    return min(total, whole)


def _writes_of_fusion(program: Program, fused: dict[str, Instruction], fusion: Instruction) -> float:
    root = next(i for i in fused.values() if i.root)
    parts = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.shapes):
        return float(_hbm(fusion.shapes))
    return float(
        sum(_written(program, fused, part) for part, s in zip(parts, fusion.shapes, strict=True) if s.space == 0)
    )


def _written(program: Program, fused: dict[str, Instruction], part: Instruction) -> float:
    while part.opcode == "bitcast":
        part = fused[part.operands[0]]
    if part.opcode == "dynamic-update-slice":  # in place
        return sum(s.bytes for s in fused[part.operands[1]].shapes)
    if part.opcode == "parameter":
        return 0.0
    if part.opcode == "fusion":
        inner = program.computations[part.called[0]]
        root = next(i for i in inner.values() if i.root)
        return _written(program, inner, root) if root.opcode != "tuple" else sum(s.bytes for s in part.shapes)
    return sum(s.bytes for s in part.shapes)
