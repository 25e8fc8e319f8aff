"""The study of scoring's memory: architectures, reports as the table, what does not fit."""

import pytest

from experiments.studies.scoring_memory import config, measure
from rmjax import ahead
from rmjax.models.parameters import count
from rmjax.reward_model import abstract_params
from rmjax.study.study import run_cell

GRID = config.get_config()
REPORT = {
    "parameters": 7_000_000_000, "parameter_bytes": 14e9, "hbm_bytes_of_chip": 34e9,
    "memory_bytes": {"arguments": 14e9, "peak": 15e9},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"),
    # 72,706,203,648 of Qwen2.5-72B without its vocabulary head (152,064 · 8192), with two matrices and biases as the head
    [("polar_1_8b", 1_699_581_952), ("polar_7b", 7_358_652_416), ("worldpm_72b", 71_527_620_609)],
)
def test_sizes_are_those_of_the_models(name, parameters):
    assert count(abstract_params(measure.architecture(GRID.models[name].sizes))) == parameters


def test_reports_become_the_table(monkeypatch, tmp_path):
    def scoring(model, where, sizes, shape):
        if shape.row_tokens > 1024:
            raise ahead.DoesNotFit("4 rows of 16384 tokens do not fit: 40G of 31.25G HBM")
        return REPORT

    monkeypatch.setattr(ahead, "scoring", scoring)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    grid = config.get_config()
    del grid.models["polar_1_8b"], grid.models["worldpm_72b"]
    study = measure.get_claim(grid).study
    lines = measure.summarize(grid, {cell.name: run_cell(study, cell.name, tmp_path) for cell in study.cells})
    text = measure.parts(lines)["table"]
    assert (
        "| internlm/POLAR-7B | 7.00 B | 14.0 | 1 × v6e | 15.0 of 34.0 | 4 rows of 16384 tokens do not fit: 40G" in text
    )
