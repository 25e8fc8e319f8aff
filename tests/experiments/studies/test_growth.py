"""How the cost grows: the points, the table and the plot from given speeds (nothing is timed), and one point's steps."""

import pytest
from ml_collections import ConfigDict

from experiments.studies.growth import config, measure
from experiments.studies.growth.config import row_tokens
from rmjax.evaluate.rows import Row
from rmjax.study.study import Result, run_cell

FIXED = {
    "trained": ("rows", "groups"), "row_tokens": ("layers", "candidates", "attention"), "candidates": ("layers", "rows"),
    "devices": ("layers", "rows", "groups", "candidates"),
}  # fmt: skip


def test_every_panel_changes_one_thing_and_rows_are_full():
    grid = config.get_config()
    for name, panel in grid.panels.items():
        cases = [ConfigDict(grid.case.to_dict() | dict(changes)) for changes in panel.points]
        assert all((measure.random_groups(case, 100).group_RT > 0).all() for case in cases), name
        assert all(len({case[key] for case in cases}) == 1 for key in FIXED[panel.axis]), name
        if panel.axis == "row_tokens":
            assert {case.rows * row_tokens(case) for case in cases} == {4096}


def test_panels_share_a_point_and_devices_are_simulated_in_processes_of_their_own():
    found = {cell.name: cell for cell in measure.get_claim(config.get_config()).study.cells}
    assert len(found) == 19 - 3
    flags = [cell.environment["XLA_FLAGS"] for cell in found.values() if "XLA_FLAGS" in cell.environment]
    assert flags == [f"--xla_force_host_platform_device_count={n}" for n in (2, 4, 8)]


def test_the_table_and_the_plot():
    grid = config.get_config()
    rows = [Row(f"step {n}", n, measure.SPEED, speed) for n, speed in enumerate((4.0, 5.0, 3.0))]
    rows.append(Row("model", "model", "trained", 2_000_000))
    lines = measure.summarize(grid, {cell.name: Result("done", tuple(rows)) for cell in measure.cells(grid)})
    text = measure.parts(lines)["points"]
    assert (
        len(lines) == 19
        and "| simulated devices | 8 | 4 (3–5) |" in text
        and "| trained parameters | 2,000,000 |" in text
    )
    assert "| tokens a row (4096 a batch) | 1,024 |" in text
    assert len(measure.figures(lines)["growth"].axes) == 5


@pytest.mark.slow
def test_a_point_takes_steps(tmp_path, monkeypatch):
    grid = config.get_config()
    grid.rounds = 2
    grid.case.update(layers=1, heads=3, rows=1, groups=1, candidates=3)
    grid.panels = {"rows": config.panel("rows", "rows", {"rows": 1})}
    study = measure.get_claim(grid).study
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    found = run_cell(study, study.cells[0].name, tmp_path)
    (line,) = measure.summarize(grid, {study.cells[0].name: found})
    assert line["n"] == 2 and line["value"] > 0 and line["at"] == 1
    assert study.cells[0].config.training.data.row_tokens == 160
