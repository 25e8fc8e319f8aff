"""The cost of adapters: arms of equal inner width, cells, the table from given seconds (nothing is timed), one arm's steps."""

import pytest

from experiments.studies import timing
from experiments.studies.adapter_cost import config, measure
from experiments.studies.adapter_cost.config import training
from rmjax.config import chosen
from rmjax.evaluate.rows import Row
from rmjax.methods.adapters import adapter_config
from rmjax.study.study import Result, run_cell


def test_the_single_adapter_has_the_inner_width_of_all_experts():
    grid = config.get_config()
    one, several = (adapter_config(training(grid, name).adapter) for name in ("lora", "loramoe"))
    assert one.rank == several.rank * several.experts == 24
    full, low = (training(grid, name) for name in ("full", "loramoe_bf16_base"))
    assert full.adapter.kind == "" and "lora_" not in chosen(full).trainable
    assert low.model.param_dtype == "bfloat16" and full.model.param_dtype == "float32"


def test_all_arms_are_timed_in_one_process_and_each_peak_is_of_its_own():
    found = {cell.name: cell for cell in measure.get_claim(config.get_config()).study.cells}
    assert len(found["steps"].config.arms) == 8 and set(found["peak-full"].config.arms) == {"full"}
    assert len(found) == 9 and all(cell.environment == timing.ALONE for cell in found.values())


def test_the_table(monkeypatch):
    grid = config.get_config()
    rows = [Row(f"round {n}", n, timing.SECONDS, seconds * (1 + n), {"arm": arm}) for n in range(2)
            for arm, seconds in {name: 1.2 if "moe" in name else 1.0 for name in grid.arms}.items()]  # fmt: skip
    rows += [Row("step", "step", name, 2**20, {"arm": arm}) for arm in grid.arms
             for name in ("planned_arguments", "planned_temporary", "trained", "peak_bytes")]  # fmt: skip
    text = measure.parts(measure.summarize(grid, {"steps": Result("done", tuple(rows))}))["arms"]
    assert "| lora | 1,048,576 | 1 | lora | 2 | 1 |" in text
    assert "| loramoe_dropout | 1,048,576 | 1.20 (1.20 to 1.20) | lora_dropout | 2 | 1 |" in text


def test_an_arm_that_is_compared_with_none():
    grid = config.get_config()
    grid.arms.full.over = "nothing"
    with pytest.raises(ValueError, match=r"config.arms.\*.over names nothing; the arms are lora, "):
        measure.get_claim(grid)


@pytest.mark.slow
def test_an_arm_takes_steps(tmp_path, monkeypatch):
    grid = config.get_config()
    grid.update(layers=1, rows=1, row_tokens=12, rounds=1)
    grid.arms = {name: grid.arms[name] for name in ("lora", "loramoe_balanced")}
    study = measure.get_claim(grid).study
    for cell in study.cells:
        for arm in cell.config.arms.values():
            arm.model.update(width=32, heads=2, kv_heads=1, mlp_width=32)
    for name, value in timing.ALONE.items():
        monkeypatch.setenv(name, value)
    found = {name: run_cell(study, name, tmp_path) for name in study.by_name}
    assert [row.metric for row in found["peak-lora"].rows] == ["peak_bytes"]
    lines = measure.summarize(grid, found)
    assert timing.of_arms(lines, "trained")["loramoe_balanced"]["value"] > 0
    assert all(line["value"] > 0 for line in lines) and len(measure.parts(lines)["arms"].splitlines()) == 4
