"""The cost of MetaRM: its arms, the table from given seconds (nothing is timed), and two arms' steps."""

import pytest

from experiments.studies import timing
from experiments.studies.metarm_cost import config, measure
from rmjax.evaluate.rows import Row
from rmjax.methods.metarm import MODES
from rmjax.study.study import Result, run_cell


def test_every_mode_is_an_arm_beside_the_plain_step():
    (cell,) = measure.get_claim(config.get_config()).study.cells
    arms = {name: arm.gradient for name, arm in cell.config.arms.items()}
    assert arms[measure.STEP].name == "plain" and not cell.environment
    assert {name: arm.mode for name, arm in arms.items() if arm.name == "meta"} == {
        **{mode: mode for mode in MODES}, "second_order": "step_norm",
    }  # fmt: skip
    assert arms["second_order"].order == 2


def test_a_mode_is_compared_with_the_two_gradients_of_its_round():
    grid = config.get_config()
    seconds = {measure.STEP: 1.0, measure.ASCENT: 2.0} | dict.fromkeys(grid.arms, 3.3)
    rows = [Row(f"round {n}", n, timing.SECONDS, value * (1 + 9 * n), {"arm": arm}) for n in range(2)
            for arm, value in seconds.items()]  # fmt: skip
    rows += [Row("step", "step", "planned_temporary", 30 if arm in grid.arms else 10, {"arm": arm}) for arm in seconds]
    rows.append(Row("model", "model", "trainable_bytes", 8))
    text = measure.parts(measure.summarize(grid, {"steps": Result("done", tuple(rows))}))["modes"]
    assert "| step_norm | 1.10 (1.10 to 1.10) | +2.5 |" in text and len(text.splitlines()) == 2 + len(grid.arms)


@pytest.mark.slow
def test_arms_take_steps(tmp_path):
    grid = config.get_config()
    grid.update(layers=1, rows=1, row_tokens=24, rounds=1)
    grid.arms = {"second_order": ("step_norm", 2)}
    found = run_cell(measure.get_claim(grid).study, "steps", tmp_path)
    assert {row.groups.get("arm") for row in found.rows} == {measure.STEP, measure.ASCENT, "second_order", None}
    assert all(row.value > 0 for row in found.rows)
