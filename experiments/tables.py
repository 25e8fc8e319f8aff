"""Summaries of grids as Markdown tables, for results.md and the pages in docs/."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_cell(found: Mapping[str, Any], sign: str = "") -> str:
    """`0.912 (0.880 to 0.940)`; sign "+" for differences; a dash where nothing was counted."""
    if found["value"] is None:
        return "–"
    low, value, high = (f"{found[side]:{sign}.3f}" for side in ("low", "value", "high"))
    return f"{value} ({low} to {high})"


def routing(routed: Mapping[str, Any]) -> str:
    """Of arm → `grids.routing_over_seeds`, seed by seed; empty where nothing is routed."""
    if not routed:
        return ""
    types = list(next(iter(routed.values()))["served"])
    rows = [["routing", "coefficient of variation", *(f"mass of {name} on its experts" for name in types)]]
    for arm, found in routed.items():
        rows.append([arm, *(_seeds(values) for values in (found["variation"], *found["served"].values()))])
    return markdown(rows)


def _seeds(values: Sequence[float | None], sign: str = "") -> str:
    return " ".join("–" if value is None else f"{value:{sign}.3f}" for value in values)


def cell(found: Mapping[str, Any], sign: str = "") -> str:
    """Of `statistics.over_seeds` or `statistics.paired`: the mean with its interval, then each seed's own."""
    return f"{mean_cell(found['mean'], sign)}; {_seeds(found['seeds'], sign)}"
