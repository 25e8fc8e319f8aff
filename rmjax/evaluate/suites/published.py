"""The published benchmarks, by name."""

from collections.abc import Mapping

from rmjax.evaluate.suites import (
    helpsteer,
    hh,
    judge_bench,
    llmbar,
    polar,
    ppe,
    reward_bench,
    reward_bench_2,
    rm_bench,
    rmb,
    shp,
    ultrafeedback,
)
from rmjax.evaluate.suites.benchmark import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        rmb, reward_bench, reward_bench_2, rm_bench, judge_bench, llmbar, ppe, hh, helpsteer, shp, ultrafeedback, polar,
    )
}  # fmt: skip
"""Name → benchmark; what `--suite` and `config.evals.*.suite` take (`rmjax.settings.BENCHMARKS`)."""
