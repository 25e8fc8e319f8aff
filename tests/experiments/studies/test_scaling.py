"""The scaling study: its cells, its page's tables from given losses, and one tiny cell from end to end."""

import pytest

from experiments.studies.scaling import config, measure
from rmjax.evaluate.rows import Row
from rmjax.study.study import Result, run_cell
from tests.experiments.starting import save_start


def test_sizes_and_budgets():
    found = {cell.name: cell.config.training for cell in measure.get_claim(config.get_config()).study.cells}
    assert len(found) == 12 and found["layers14-steps80"].model.frozen_layers == 12
    assert found["layers14-steps80"].run.steps == found["layers14-steps80"].run.save_every == 80


def test_a_known_law_is_found():
    grid = config.get_config()
    results = {
        cell.name: Result("done", (
            Row("run", "run", "compute", 1e12 * cell.values["layers"] * cell.values["steps"]),
            *(Row(f"{i}-0", "p", "loss", 2 * (cell.values["layers"] * cell.values["steps"]) ** slope, {"split": split})
              for i in range(2) for split, slope in (("seen", -0.1), ("unseen", -0.2))),
        )) for cell in measure.cells(grid)
    }  # fmt: skip
    lines = measure.summarize(grid, results)
    parts = measure.get_claim(grid).parts(lines)
    assert "| seen | all runs | 12 | −0.100 (−0.100 to −0.100) | 1.000 |" in parts["fits"]
    assert (
        "| unseen | envelope | 12 | −0.200" in parts["fits"]
        and "| 6 | 40 | 2.4e14 | 1.156 | 0.668 |" in parts["losses"]
    )
    assert set(measure.figures(lines)) == {"scaling_seen", "scaling_unseen"}


@pytest.mark.slow
def test_a_cell(tmp_path, monkeypatch):
    grid = config.get_config()
    grid.update(layers=(2,), steps=(2,))
    claim = measure.get_claim(grid)
    training = claim.study.cells[0].config.training
    training.model.update(init=str(save_start(tmp_path / "start")), frozen_layers=1)
    pool = measure.pool
    monkeypatch.setattr(measure, "pool", lambda *of: Few(pool(*of)))
    found = run_cell(claim.study, "layers2-steps2", tmp_path / "study")
    assert {(row.metric, row.groups.get("split")) for row in found.rows} == {
        ("loss", "seen"), ("loss", "unseen"), ("compute", None),
    }  # fmt: skip
    assert next(row.value for row in found.rows if row.metric == "compute") > 1e6


class Few:
    """Of a pool a few triples."""

    def __init__(self, whole):
        self.whole = whole

    def triples(self, **options):
        return self.whole.triples(**options)[:3]
