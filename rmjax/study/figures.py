"""Plots of a sweep: each metric against each axis that varies. And whether two drawings show the same."""

import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmjax.evaluate.plots import BLUE, GRAY, STYLE, WIDTH
from rmjax.evaluate.rows import of_metric, values
from rmjax.study.cells import Cell, shown
from rmjax.study.study import Result
from rmjax.study.table import SEED
from rmjax.terminal import printable

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NAME = re.compile(r'((?:id="|url\(#|href="#))[^")]+')
_APART = 0.05  # points by which a coordinate may differ: hundredths are written, and cut
_LOGARITHMIC = 30  # highest over lowest value from which an axis is logarithmic


@matplotlib.rc_context(STYLE)
def against(cells: Sequence[Cell], results: Mapping[str, Result], metrics: Sequence[str]) -> dict[str, Figure]:
    """Axis → figure with a panel for each metric (four at most): a dot for each member, the means joined.

    Axes with one value, and seeds beside other axes, have no figure.
    """
    axes = list(dict.fromkeys(key for cell in cells for key in cell.values))
    several = [axis for axis in axes if len({shown(cell.values.get(axis)) for cell in cells}) > 1]
    drawn = [axis for axis in several if axis != SEED] or several
    return {axis: _figure(axis, cells, results, metrics[:4]) for axis in drawn if metrics}


def _figure(axis: str, cells: Sequence[Cell], results: Mapping[str, Result], metrics: Sequence[str]) -> Figure:
    figure = Figure(figsize=(WIDTH, 0.5 + 1.9 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        _panel(panel, axis, cells, results, metric)
    panels[-1].set_xlabel(printable(axis))
    return figure


def _panel(panel: Axes, axis: str, cells: Sequence[Cell], results: Mapping[str, Result], metric: str) -> None:
    found: list[tuple[Any, float]] = []
    for cell in cells:
        rows = of_metric(results[cell.name].rows, metric)
        if rows and axis in cell.values:
            found.append((cell.values[axis], float(np.mean(values(rows)))))
    numeric = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value, _ in found)
    names = [] if numeric else list(dict.fromkeys(shown(value) for value, _ in found))
    places = [float(value) if numeric else names.index(shown(value)) for value, _ in found]
    panel.plot(places, [value for _, value in found], "o", color=GRAY, markersize=4, alpha=0.7)
    means = {
        place: float(np.mean([v for p, (_, v) in zip(places, found, strict=True) if p == place]))
        for place in sorted(set(places))
    }
    panel.plot(list(means), list(means.values()), "-o" if numeric else "o", color=BLUE, markersize=5)
    if not numeric:
        panel.set_xticks(range(len(names)), [printable(name)[:24] for name in names], rotation=20, ha="right")
    elif places and min(places) > 0 and max(places) / min(places) >= _LOGARITHMIC:
        panel.set_xscale("log")
    panel.set_ylabel(printable(metric), fontsize=8)


def alike(one: str, other: str) -> bool:
    """Whether two SVG texts show the same: equal but for names of their parts, which depend on the last digits of coordinates,
    and for a twentieth of a point in these."""
    if one == other:
        return True
    first, second = (_NAME.sub(r"\1", text) for text in (one, other))
    if _NUMBER.sub("0", first) != _NUMBER.sub("0", second):
        return False
    pairs = zip(_NUMBER.findall(first), _NUMBER.findall(second), strict=True)
    return all(abs(float(a) - float(b)) <= _APART for a, b in pairs)
