"""The benchmark for accelerators takes its steps, at sizes for a CPU."""

import json

import pytest

from experiments import benchmark_accelerator as benchmark
from experiments.benchmarks import configured


def test_the_large_step_is_polars_on_one_device():
    config = benchmark.large(benchmark.Sizes(rows=2, row_tokens=1024))
    assert config.model.attention == "blockwise"  # on a CPU
    assert (config.model.preset, config.model.dtype) == ("internlm2_5_1_8b", "bfloat16")
    assert (config.data.rows, config.data.row_tokens, config.optimizer.microbatches) == (2, 1024, 1)


@pytest.mark.slow
def test_both_measurements_are_written(tmp_path):
    sizes = benchmark.Sizes(tokens=48, layers=1, rounds=2)
    small = configured({"model.dtype": "bfloat16", "model.attention": "blockwise"}, layers=1, rows=1, row_tokens=24)
    benchmark.run(tmp_path / "out.json", small, [24, 48], sizes)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["step"]["mfu"]["median"] > 0 and set(found["attention"]) == {"24", "48"}
    assert found["attention"]["24"]["rows"] == 2 and found["attention"]["24"]["ratio"]["blockwise"]["median"] > 0
