"""Evaluating reward models: scorers, accuracies with intervals, baselines, scaling laws, reports.

Names are imported on first use: who scores texts needs neither figures nor reports.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmjax.evaluate.comparisons import (
        Evaluation,
        evaluate_comparison,
        evaluate_comparisons,
        paired_gain,
        with_best_as_reference,
    )
    from rmjax.evaluate.discrimination import Discrimination, discriminate
    from rmjax.evaluate.evaluators import EVALUATORS, Evaluator
    from rmjax.evaluate.inline import Shown, show_report
    from rmjax.evaluate.report import environment, polar_report, read_curves, read_runs, write_report
    from rmjax.evaluate.rows import Row
    from rmjax.evaluate.scaling import PowerLaw, envelope, fit_power_law
    from rmjax.evaluate.scorers import Baseline, Ensemble, RewardScorer, ScoreError, Scorer
    from rmjax.evaluate.statistics import Interval, difference, interval
    from rmjax.evaluate.suites import SUITES, Suite, evaluators_from
    from rmjax.evaluate.table import format_table, print_table

_PLACES = {
    "comparisons": "Evaluation evaluate_comparison evaluate_comparisons paired_gain with_best_as_reference",
    "discrimination": "Discrimination discriminate",
    "evaluators": "EVALUATORS Evaluator",
    "inline": "Shown show_report",
    "report": "environment polar_report read_curves read_runs write_report",
    "rows": "Row",
    "scaling": "PowerLaw envelope fit_power_law",
    "scorers": "Baseline Ensemble RewardScorer ScoreError Scorer",
    "statistics": "Interval difference interval",
    "suites": "SUITES Suite evaluators_from",
    "table": "format_table print_table",
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names.split()}

__all__ = [
    "EVALUATORS",
    "SUITES",
    "Baseline",
    "Discrimination",
    "Ensemble",
    "Evaluation",
    "Evaluator",
    "Interval",
    "PowerLaw",
    "RewardScorer",
    "Row",
    "ScoreError",
    "Scorer",
    "Shown",
    "Suite",
    "difference",
    "discriminate",
    "envelope",
    "environment",
    "evaluate_comparison",
    "evaluate_comparisons",
    "evaluators_from",
    "fit_power_law",
    "format_table",
    "interval",
    "paired_gain",
    "polar_report",
    "print_table",
    "read_curves",
    "read_runs",
    "show_report",
    "with_best_as_reference",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rmjax.evaluate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rmjax.evaluate.{_MODULES[name]}"), name)
