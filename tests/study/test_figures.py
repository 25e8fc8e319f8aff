"""Plots of a sweep."""

import pytest
from ml_collections import ConfigDict

from rmjax.evaluate.plots import svg
from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.study.figures import against, alike
from rmjax.study.study import Result


def test_each_metric_against_each_axis_that_varies():
    values = [
        {"rate": rate, "kind": kind, "run.seed": seed, "one": 1}
        for rate in (1e-4, 1e-2)
        for kind in "ab"
        for seed in (0, 1)
    ]
    cells = [Cell(str(i), value, ConfigDict()) for i, value in enumerate(values)]
    found = {cell.name: Result("done", (Row("x", "x", "train/loss", 1.0 + i),)) for i, cell in enumerate(cells[:-1])}
    found[cells[-1].name] = Result("failed")
    figures = against(cells, found, ["train/loss", "absent"])
    assert list(figures) == ["rate", "kind"] and all("<svg" in svg(figure, "x") for figure in figures.values())
    first = figures["rate"].axes[0]
    assert len(first.lines[0].get_xdata()) == 7 and list(first.lines[1].get_ydata()) == [2.5, 6.0]
    assert first.get_xscale() == "log" and figures["kind"].axes[0].get_xscale() == "linear"
    assert list(against(cells[:2], found, ["train/loss"])) == ["run.seed"]


DRAWING = '<svg aria-label="a"><path id="m1f" d="M 10.25 3 L -4.50 7"/><use href="#m1f"/><text>at 12</text></svg>'


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("m1f", "ma0", True),
        ("10.25", "10.27", True),
        ("10.25", "10.35", False),
        ("-4.50", "4.50", False),
        ("at 12", "at 13", False),
        ("at 12", "of 12", False),
        (" L -4.50 7", "", False),
    ],
)
def test_drawings_are_alike_but_for_names_and_hundredths(old, new, same):
    assert alike(DRAWING, DRAWING.replace(old, new)) is same
