"""Reads the text of an optimized XLA program: computations, their instructions, shapes with their layout."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0} | {"s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{\s*$")
_NAME = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, layout as the text has it."""

    kind: str
    sizes: tuple[int, ...]
    layout: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def space(self) -> int:
        """Memory space: 0 is HBM; on a TPU others lie on the chip (1 is VMEM) or on the host (5)."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0

    @property
    def bytes(self) -> int:
        """As laid out: the dimensions of the first tile are rounded up to it."""
        order, _, rest = self.layout.partition(":")
        minor_first = [int(n) for n in order.split(",")] if order else list(range(len(self.sizes)))[::-1]
        tile = re.match(r"T\(([\d,]+)\)", rest)
        sizes = list(self.sizes)
        for size, axis in zip([int(n) for n in tile[1].split(",")][::-1] if tile else [], minor_first, strict=False):
            sizes[axis] = -(-sizes[axis] // size) * size
        return math.prod(sizes) * _bits(self.kind) // 8


def _bits(kind: str) -> int:
    if kind in _BITS:
        return _BITS[kind]
    found = re.match(r"[a-z]+(\d+)", kind)
    if not found:
        raise ValueError(f"the element type {kind!r} of a compiled program is unknown; add it to parallel/hlo.py")
    return int(found[1])


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = shapes opcode(operands), attributes`."""

    name: str
    shapes: tuple[Shape, ...]  # several for a tuple, nested ones flattened
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # between the parentheses, as text
    attributes: str
    root: bool

    def attribute(self, key: str) -> str | None:
        """The value of `key=value`: a name without its %, a brace's content, or a word."""
        found = re.search(rf"(?:^|[ ,]){key}=(?:\{{(.*?)\}}(?=,|$)|%?([^ ,]+))", self.attributes)
        return None if found is None else found[1] if found[1] is not None else found[2]

    @property
    def called(self) -> list[str]:
        """Computations that this one runs once: those of a fusion, a call, an asynchronous start."""
        found = (self.attribute(key) for key in ("calls", "to_apply", "called_computation"))
        return [name.lstrip("%") for name in found if name]

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def backend(self) -> dict:
        """The backend's own notes, where they are JSON."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]
        except ValueError:
            return {}


Body = dict[str, Instruction]
"""A computation: its instructions by name and in order."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name."""

    computations: dict[str, Body]
    entry: str

    def called(self, instruction: Instruction) -> list[Body]:
        """Computations that an instruction runs once."""
        return [self.computations[name] for name in instruction.called]


def root(body: Body) -> Instruction:
    """What a computation returns."""
    return next(i for i in body.values() if i.root)


def inputs(body: Body) -> dict[int, str]:
    """Names of a computation's parameters, by number."""
    return {int(i.arguments): i.name for i in body.values() if i.opcode == "parameter"}


def trips(program: Program, body: Body, loop: Instruction) -> int | None:
    """How often a `while` of `body` runs: what the compiler wrote beside it, or what its condition `counter < limit` says
    of a counter that grows by one; None where neither does."""
    written = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if written:
        return int(written[1])
    condition = program.computations[loop.attribute("condition") or ""]
    test = root(condition)
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    counter, limit = (condition[name] for name in test.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if counter.opcode != "get-tuple-element" or index is None or limit.opcode != "constant":
        return None
    start = _constant(body, body[loop.operands[0]], int(index[1]))
    return None if start is None else int(limit.arguments) - start


def _constant(body: Body, carry: Instruction, index: int) -> int | None:
    """An element of a tuple, if it is an integer written down; 0 where it comes in from an outer loop."""
    if carry.opcode != "tuple":
        return None
    found = body[carry.operands[index]]
    while found.opcode in ("copy", "bitcast"):
        found = body[found.operands[0]]
    return int(found.arguments) if found.opcode == "constant" else 0 if found.opcode == "get-tuple-element" else None


def parse(text: str) -> Program:
    """`compiled.as_text()`.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, Body] = {}
    entry, body = "", None
    for line in _COMMENT.sub("", text).splitlines():
        if line.startswith("}"):
            body = None
        elif body is not None:
            found = _instruction(line)
            if found:
                body[found.name] = found
        elif not line.startswith("HloModule") and (match := _COMPUTATION.match(line)):
            body = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("the text of the compiled program has no ENTRY computation; its format may have changed")
    return Program(computations, entry)


def shapes(text: str) -> Iterator[Shape]:
    """Every array shape in a piece of text."""
    for kind, sizes, layout in _SHAPE.findall(text):
        yield Shape(kind, tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n), layout)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    root, name, rest = match.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        name, tuple(shapes(rest[:end])), rest[end:opening].strip(), tuple(_NAME.findall(arguments)), arguments,
        rest[closing + 1 :].lstrip(", "), bool(root),
    )  # fmt: skip


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a line of the compiled program has an open parenthesis: {text[:120]}")
