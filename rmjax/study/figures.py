"""Plots of a sweep: each metric against each axis that varies."""

import numbers
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
