"""Suites: how a benchmark's files load, and which evaluator aggregates them; one file for each published benchmark."""

from rmjax.evaluate.suites.entries import SUITES as SUITES
from rmjax.evaluate.suites.entries import Measure as Measure
from rmjax.evaluate.suites.entries import evaluators_from as evaluators_from
from rmjax.evaluate.suites.entries import load_comparisons as load_comparisons
from rmjax.evaluate.suites.entries import suite_of as suite_of
from rmjax.evaluate.suites.evaluator import notes_of_suite as notes_of_suite
from rmjax.evaluate.suites.published import BENCHMARKS as BENCHMARKS
from rmjax.evaluate.suites.suite import Loaded as Loaded
from rmjax.evaluate.suites.suite import Suite as Suite
from rmjax.evaluate.suites.suite import said as said
