"""Judging reward models: accuracies with intervals, baselines, scaling laws, reports."""

from rmjax.evaluate.bootstrap import Interval, difference, interval
from rmjax.evaluate.comparisons import (
    Evaluation,
    evaluate_comparisons,
    judge,
    paired_gain,
    with_best_as_reference,
)
from rmjax.evaluate.discrimination import Discrimination, discriminate
from rmjax.evaluate.report import environment, polar_report, read_runs, write_report
from rmjax.evaluate.scaling import PowerLaw, envelope, fit_power_law
from rmjax.evaluate.table import format_table, print_table

__all__ = [
    "Discrimination",
    "Evaluation",
    "Interval",
    "PowerLaw",
    "difference",
    "discriminate",
    "envelope",
    "environment",
    "evaluate_comparisons",
    "fit_power_law",
    "format_table",
    "interval",
    "judge",
    "paired_gain",
    "polar_report",
    "print_table",
    "read_runs",
    "with_best_as_reference",
    "write_report",
]
