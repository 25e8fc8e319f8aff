"""The study of POLAR's runs on slices: its cells, reports as rows and as the table, what does not fit, no compiler."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.studies.pods import config, measure
from rmjax import ahead
from rmjax import config as base
from rmjax.parallel.chips import Slice
from rmjax.parallel.mesh import RULES
from rmjax.program import check
from rmjax.study.study import run_cell

REPORT = {
    "mesh": {"fsdp": 256}, "batch": {"rows": 1024, "row_tokens": 16384, "microbatches": 4}, "chips": 256, "model_flops": 1e15,
    "memory_bytes": {"peak": 9e9}, "hbm_bytes_of_chip": 16e9,
    "seconds": {"compute": 1.0, "hbm": 0.5, "ici": 0.25, "overlapped": 1.0, "in_turn": 1.25},
    "mfu": {"overlapped": 0.6, "in_turn": 0.48},
}  # fmt: skip
CELLS = measure.get_claim(config.get_config()).study.cells


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_runs_of_the_table_can_be_laid_out(cell):
    run, where = cell.config.training, Slice.parse(cell.config.topology)
    fsdp = int(np.prod(where.lengths)) // run.mesh.tensor
    sizes = {"data": 1, "fsdp": fsdp, "tensor": run.mesh.tensor, "context": 1}
    check(base.chosen(run), SimpleNamespace(shape=sizes, devices=np.array([SimpleNamespace(platform="tpu")])), RULES)
    assert run.data.rows == fsdp * run.optimizer.microbatches  # a row at a time
    assert run.data.streams == fsdp  # a host reads the rows of its own chips
    assert run.data.row_tokens >= 2 * 1024 + 3 * 4096


def test_reports_become_the_table(monkeypatch, tmp_path):
    def report(training, where):
        if where.kind == "v6e":
            raise ahead.DoesNotFit("17G of 15.75G")
        return REPORT

    monkeypatch.setattr(ahead, "report", report)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    grid = config.get_config()
    grid.runs = grid.runs[:1]
    study = measure.get_claim(grid).study
    lines = measure.summarize(grid, {cell.name: run_cell(study, cell.name, tmp_path) for cell in study.cells})
    text = measure.parts(lines)["table"]
    assert (
        "| pretrain_1_8b | v5e-256 | fsdp 256 | 1024 × 16384 (256) | 9.0 of 16.0 | 1,000 | 500 | 250 | 1,000 |" in text
    )
    assert "60.0 | 48.0" in text and "| pretrain_1_8b | v6e-64 | 17G of 15.75G |" in text


def test_without_the_compiler_nothing_is_started(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs libtpu: pip install -c constraints.txt -e '.\[tpu\]'"):
        measure.require_compiler(tmp_path)
