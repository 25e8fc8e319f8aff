"""How long a step takes at best on a slice, from what its compiled program does.

    compute  matrix FLOPs / peak
    hbm      bytes read and written / HBM bandwidth, each operand and each result once
    ici      every collective at the speed of the links that its chips share (`exchange_seconds`)

    overlapped  max(compute, hbm, ici): everything runs beside everything
    in_turn     one operation after the other, each at max(its compute, its hbm), plus the collectives that the compiler did
                not make asynchronous; at least hbm and ici

Not in it: the vector unit, padding of matrices to the 128 or 256 lanes of the matrix unit, start-up of an operation, input.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rmjax.parallel.chips import Slice
from rmjax.parallel.operations import Collective, Operation

Coordinates = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step, and what they come from, per chip."""

    flops: float
    hbm_bytes: float
    compute: float
    hbm: float
    ici: float
    overlapped: float
    in_turn: float


def roofline(operations: Sequence[Operation], where: Slice, coordinates: Coordinates) -> Roofline:
    """`coordinates`: of each partition's chip, as `device.coords`."""
    chip = where.chip
    flops = sum(o.flops * o.times for o in operations)
    moved = sum(o.bytes * o.times for o in operations)
    compute, hbm = flops / chip.flops, moved / chip.hbm_speed
    exchanges = [(o, sum(exchange_seconds(c, where, coordinates) for c in o.collectives) * o.times) for o in operations]
    ici = sum(seconds for _, seconds in exchanges)
    busy = sum(max(o.flops / chip.flops, o.bytes / chip.hbm_speed) * o.times for o in operations if not o.asynchronous)
    waited = sum(seconds for o, seconds in exchanges if not o.asynchronous)
    return Roofline(flops, moved, compute, hbm, ici, max(compute, hbm, ici), max(busy + waited, hbm, ici))


def exchange_seconds(collective: Collective, where: Slice, coordinates: Coordinates) -> float:
    """Of one run. What a chip must receive comes in over its links along the axes that its group spans, two where the
    axis is a ring and the group the whole of it, one at the end of a line. n chips a group, b bytes (`Collective.bytes`):

        all-gather, reduce-scatter  b (n − 1) / n / (links · speed)
        all-reduce                  twice that
        all-to-all                  b l / 8 / speed on a ring of l chips, b l / 4 / speed on a line: the middle is crossed
        collective-permute          b · hops / speed
    """
    speed = where.chip.link_speed
    if collective.kind == "collective-permute":
        hops = max((_hops(where, coordinates[a], coordinates[b]) for a, b in collective.groups), default=0)
        return collective.bytes * hops / speed
    groups = collective.groups or (tuple(range(len(coordinates))),)
    return max(_group_seconds(collective, where, [coordinates[p] for p in group]) for group in groups)


def _group_seconds(collective: Collective, where: Slice, chips: Coordinates) -> float:
    n, speed = len(chips), where.chip.link_speed
    spans = {axis: len({c[axis] for c in chips}) for axis in range(len(where.lengths))}
    closed = {a: where.rings[a] and spans[a] == where.lengths[a] for a in spans}
    links = sum(2 if closed[a] else 1 for a in spans if spans[a] > 1)
    if not links:
        return 0.0
    if collective.kind.endswith("all-to-all"):
        return max(collective.bytes * spans[a] / (8 if closed[a] else 4) / speed for a in spans if spans[a] > 1)
    rounds = 2 if collective.kind == "all-reduce" else 1
    return rounds * collective.bytes * (n - 1) / n / (links * speed)


def _hops(where: Slice, source: Sequence[int], target: Sequence[int]) -> int:
    steps = [abs(source[a] - target[a]) for a in range(len(where.lengths))]
    return sum(
        min(s, length - s) if ring else s for s, length, ring in zip(steps, where.lengths, where.rings, strict=True)
    )


def collective_table(operations: Sequence[Operation], where: Slice, coordinates: Coordinates) -> list[dict[str, Any]]:
    """Collectives by kind, size and number of chips, those that take longest first."""
    times: Counter[tuple[str, int, int, bool]] = Counter()
    seconds: dict[tuple[str, int, int, bool], float] = defaultdict(float)
    for o in operations:
        for c in o.collectives:
            key = (c.kind, c.bytes, len(c.groups[0]) if c.groups else len(coordinates), o.asynchronous)
            times[key] += o.times
            seconds[key] += o.times * exchange_seconds(c, where, coordinates)
    names = ("kind", "bytes", "chips", "asynchronous")
    return [
        dict(zip(names, key, strict=True)) | {"times": times[key], "seconds": seconds[key]}
        for key in sorted(seconds, key=lambda key: -seconds[key])
    ]
