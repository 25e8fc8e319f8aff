"""The study of noise: its data, its cells, its summary, and a tiny grid from end to end."""

import dataclasses

import numpy as np
import pytest

from experiments.studies.noise import config as grids
from experiments.studies.noise import data, measure
from rmjax.evaluate.comparisons import CREDIT
from rmjax.evaluate.rows import Row
from rmjax.study import engines
from rmjax.study.run import Options, run
from rmjax.study.study import Result, run_cell
from tests.experiments.starting import save_start


def tiny(start="", **changes):
    config = grids.get_config("rule")
    values = {
        "init": str(start),
        "layers": 2,
        "pairs": 12,
        "tested": 6,
        "noise": (0.0, 0.25),
        "seeds": (0, 1),
        "rows": 4,
    }
    config.update(values | changes)
    return config.lock()


def test_pairs_by_the_rule_are_of_other_prompts_where_they_are_tested():
    learned, tested = (data.pairs(tiny(), test) for test in (False, True))
    assert len(learned) > 600 and len(tested) > 150
    assert not {c.prompt for c in learned} & {c.prompt for c in tested}
    assert all(c.ranks == (0, 1) and c.outputs[0] != c.outputs[1] for c in (*learned, *tested))
    assert len({c.id for c in learned}) == len(learned)


def test_cells_that_would_be_the_same_are_left_out():
    found = list(measure.cells(tiny()))
    clean = {c.values["arm"] for c in found if not c.values["noise"]}
    assert clean == {"bradley_terry", "margin", "two", "double", "curriculum"} and len(found) == 2 * (5 + 9)
    by_name = {c.name: c for c in found}
    assert by_name["margin-noise25-seed1"].needs == ("two-noise25-seed1",)
    runs = {arm: by_name[f"{arm}-noise25-seed0"].config.training for arm in tiny().arms}
    assert {run.data.flip for arm, run in runs.items() if arm != "margin"} == {0.25} and runs["margin"].data.flip == 0
    assert runs["smoothing"].loss.label_smoothing == 0.25 and runs["double"].data.epochs == 4
    assert [runs[arm].crm.review for arm in ("bradley_terry", "two", "self", "random", "crm")] == [
        "", "none", "self", "random", "peer",
    ]  # fmt: skip


def test_grids_that_cannot_be_run():
    with pytest.raises(ValueError, match="noise:law is unknown; choose harmless or rule"):
        grids.get_config("law")
    with pytest.raises(ValueError, match="the arm margin takes its strengths from two; choose that too"):
        measure.get_claim(tiny(chosen="margin|crm", compared=()))


def test_the_summary_and_its_tables():
    grid = tiny()
    results = {}
    for cell in measure.cells(grid):
        right = {"crm": 1.0, "bradley_terry": 0.5}.get(cell.values["arm"], 0.75) - cell.values["noise"]
        rows = [Row(f"{i}", f"p{i}", CREDIT, right) for i in range(4)]
        if cell.values["arm"] == "crm":
            rows += [Row("run", "run", name, 0.5) for name in measure.DIAGNOSTICS]
        results[cell.name] = Result("done", tuple(rows))
    claim = measure.get_claim(grid)
    lines = claim.summarize(results)
    found = {(line["arm"], line["noise"], line["metric"]): line["value"] for line in lines}
    assert found["crm", 0.25, "accuracy"] == 0.75 and found["crm − bradley_terry", 0.25, "difference"] == 0.5
    assert ("crm − self", 0.0, "difference") not in found and found["crm", 0.25, "jaccard"] == 0.5
    parts = claim.parts(lines)
    assert "| crm − two | +0.250" in parts["difference"] and "25 % flipped" in parts["accuracy"]
    assert "| crm | 25 % flipped | 0.50 | 0.50 | 0.50 | 0.50 |" in parts["review"]
    assert set(claim.figures(lines)) == {"noise_rule"}


@pytest.mark.slow
def test_a_tiny_grid(tmp_path):
    grid = tiny(save_start(tmp_path / "start", objective="language_model"), seeds=(0,), noise=(0.25,))
    claim, workdir = measure.get_claim(grid), tmp_path / "grid"
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, workdir))
    found = run(claim.study, workdir, engine, Options(lambda name: []))
    assert {result.status for result in found.values()} == {"done"} and len(found) == 9
    lines = {(line["arm"], line["metric"]): line for line in claim.summarize(found)}
    assert lines["crm", "accuracy"]["n"] == 6 and 0 <= lines["crm", "estimate"]["value"] <= 0.5
    assert {arm for arm, metric in lines if metric == "jaccard"} == {"two", "self", "random", "crm", "curriculum"}
    assert lines["two", "jaccard"]["value"] == 1 and lines["self", "jaccard"]["value"] <= 1
    assert all(np.isfinite(line["value"]) for line in lines.values())
    assert dataclasses.asdict(found["margin-noise25-seed0"])["status"] == "done"
