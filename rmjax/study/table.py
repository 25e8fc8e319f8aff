"""What a study found, as tables: cells or arms as rows, metrics as columns; as text, Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.evaluate.rows import Row, of_metric, values
from rmjax.evaluate.statistics import Interval
from rmjax.study.cells import Cell, shown
from rmjax.study.study import Result, plain
from rmjax.terminal import printable

Table = Sequence[Sequence[str]]
"""Lines of cells; the first one is the head."""
SEED = "run.seed"


def markdown(table: Table) -> str:
    """As Markdown. A cell's own bars are escaped."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in table]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def aligned(table: Table) -> str:
    """For a terminal: columns of equal width, words to the left, numbers to the right."""
    lines = [[printable(cell) for cell in line] for line in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(_is_number(line[i]) for line in lines[1:]) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(cell: str) -> bool:
    return cell in ("", "–") or cell.lstrip("+-−")[:1].isdigit()


_FORMULA = ("=", "@", "+", "-", "\t", "\r")


def comma_separated(table: Table) -> str:
    """As CSV. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([["'" + c if c.startswith(_FORMULA) and not _is_number(c) else c for c in line] for line in table])
    return file.getvalue()


def interval_cell(found: Interval, sign: str = "") -> str:
    """`0.912 (0.880 to 0.940)`; sign "+" for differences; a dash where nothing was counted."""
    if found["value"] is None:
        return "–"
    low, value, high = (f"{found[side]:{sign}.3f}" for side in ("low", "value", "high"))  # type: ignore[literal-required]
    return f"{value} ({low} to {high})"


def seeds_cell(found: Mapping[str, Any], sign: str = "") -> str:
    """Of `statistics.over_seeds` or `statistics.paired`: the mean with its interval, then each seed's own."""
    each = " ".join("–" if value is None else f"{value:{sign}.3f}" for value in found["seeds"])
    return f"{interval_cell(found['mean'], sign)}; {each}"


# --- of a sweep --------------------------------------------------------------------------------------------------------


def metrics_of(results: Mapping[str, Result], named: Sequence[str] = ()) -> list[str]:
    """The metrics to show: those named, or else the evaluations' and the training loss.

    Raises:
      ValueError: a named metric that no cell has; the message lists what there is.
    """
    known = list(dict.fromkeys(row.metric for result in results.values() for row in result.rows))
    if known and (unknown := [name for name in named if name not in known]):
        raise ValueError(f"no cell has the metric {', '.join(unknown)}; there are {', '.join(known)}")
    if named:
        return list(named)
    chosen = [name for name in known if name.startswith("eval/") or name == "train/loss"]
    return [name for name in chosen if not name.endswith(("_low", "_high", "/low", "/high", "/n"))]


def by_member(cells: Sequence[Cell], results: Mapping[str, Result], metrics: Sequence[str]) -> Table:
    """A line for each member: what varies, its status, its metrics."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.values))
    lines = [[*_short(keys), "status", *metrics]]
    for cell in cells:
        found = results[cell.name]
        numbers = [_mean(of_metric(found.rows, name)) for name in metrics]
        lines.append([*(shown(cell.values.get(key, "")) for key in keys), found.status, *map(number, numbers)])
    return lines


def over_seeds(
    cells: Sequence[Cell], results: Mapping[str, Result], metrics: Sequence[str], seed: str = SEED
) -> Table | None:
    """A line for what differs in the seed only: mean (lowest to highest) of each metric; None if no seed varies."""
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        rest = tuple((key, shown(value)) for key, value in cell.values.items() if key != seed)
        groups.setdefault(rest, []).append(cell)
    if all(len(group) < 2 for group in groups.values()):
        return None
    keys = list(dict.fromkeys(key for rest in groups for key, _ in rest))
    lines = [[*_short(keys), "seeds", *metrics]]
    for rest, group in groups.items():
        own = dict(rest)
        done = [results[cell.name].rows for cell in group if results[cell.name].rows]
        columns = [[_mean(of_metric(rows, name)) for rows in done] for name in metrics]
        lines.append([*(str(own.get(key, "")) for key in keys), str(len(done)), *map(_spread, columns)])
    return lines


def _short(keys: Sequence[str]) -> list[str]:
    lasts = [key.rsplit(".", 1)[-1] for key in keys]
    return [last if lasts.count(last) == 1 else key for last, key in zip(lasts, keys, strict=True)]


def _mean(rows: Sequence[Row]) -> float | None:
    return float(np.mean(values(rows))) if rows else None


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is absent."""
    return "–" if value is None else f"{value:.4g}"


def _spread(found: Sequence[float | None]) -> str:
    there = [value for value in found if value is not None]
    if not there:
        return "–"
    return f"{np.mean(there):.4g} ({min(there):.4g} to {max(there):.4g})"


def long_form(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A dict for each row of each cell: its values by axis, the cell, item, cluster, metric, value, the row's groups."""
    return [
        {
            **cell.values,
            "cell": cell.name,
            "item": row.item,
            "cluster": row.cluster,
            "metric": row.metric,
            "value": plain(row.value),
        }
        | dict(row.groups)
        for cell in cells
        for row in results[cell.name].rows
    ]
