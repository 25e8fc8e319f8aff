"""Entries of `config.evals` and their suites.

An entry names a suite by its `kind`, or with the kind `suite` a published benchmark. `evaluators_from` is what training,
commands and studies make of entries.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from rmjax.data import sources
from rmjax.data.layouts import RECORDS
from rmjax.data.readers import RandomAccessSource
from rmjax.data.samples import take
from rmjax.evaluate.evaluators import EVALUATORS
from rmjax.evaluate.scorers import Scorer
from rmjax.evaluate.suites.benchmark import Benchmark
from rmjax.evaluate.suites.evaluator import evaluator_of
from rmjax.evaluate.suites.published import BENCHMARKS
from rmjax.evaluate.suites.suite import Loaded, Suite, said

_log = logging.getLogger(__name__)
Measure = Callable[[Any], Mapping[str, float]]
"""Parameters → name → number, for a training log."""


def load_comparisons(
    path: str, root: str, split: str, on_error: Literal["raise", "skip"] = "raise", layout: str = RECORDS
) -> Loaded:
    """Ranked answers: a file in a layout, or a split of the real set of that name under `root`.

    Raises:
      OSError, RecordError, ValueError: as `sources.records`.
    """
    dropped: Counter[str] = Counter()
    source = sources.records(path, root, split, on_error, dropped=dropped, layout=layout)
    found = [source[i] for i in range(len(source))]
    if not isinstance(source, RandomAccessSource):
        return Loaded(found, dropped=dict(+dropped))
    return Loaded(found, dict(source.skipped), dict(+dropped), source.contradicting, dict(source.unknown))


def _pool(entry: Any) -> Loaded:
    """Triples from a policy pool: a reference and a positive by one policy, a negative by another one."""
    pool = sources.pool(entry.path, entry.policies, entry.prompts)
    before = pool.skipped["identical_candidates"]  # of other entries on the same pool
    triples = pool.triples(seed=0, per_prompt=entry.per_prompt, wrapper=entry.wrapper)
    dropped = pool.skipped - Counter(identical_candidates=before)
    return Loaded(triples, dropped=dict(+dropped))


def _samples(entry: Any) -> Loaded:
    """Fixed groups of a policy's samples, unlabeled."""
    dropped: Counter[str] = Counter()
    groups = sources.sample_groups(entry, entry.source, "evals.*", dropped)
    rngs = (np.random.default_rng([0, i]) for i in range(len(groups)))
    drawn = [
        take(c, rng, samples=len(c.outputs), references=entry.references) for c, rng in zip(groups, rngs, strict=True)
    ]
    return Loaded(drawn, dropped=dict(+dropped))


def _published(benchmark: Benchmark) -> Suite:
    return Suite(lambda e: benchmark.load(e.path, e.on_error), evaluator_of(benchmark))


SUITES: Mapping[str, Suite] = {
    "comparisons": Suite(
        lambda e: load_comparisons(e.path, e.root, e.split, layout=e.layout), EVALUATORS["preference"]
    ),
    "pool": Suite(_pool, EVALUATORS["discrimination"]),
    "samples": Suite(_samples, EVALUATORS["gaps"]),
    **{name: _published(benchmark) for name, benchmark in BENCHMARKS.items()},
}
"""Kind of an entry, or name of a benchmark → suite. To add a benchmark, write its file here and list it in `published`."""


def suite_of(entry: Any) -> Suite:
    """The suite that an entry names.

    Raises:
      ValueError: there is none of its `kind`, or no benchmark of its name.
    """
    key, known = (
        ("suite", BENCHMARKS) if entry.kind == "suite" else ("kind", SUITES.keys() - BENCHMARKS.keys() | {"suite"})
    )
    name = getattr(entry, key)
    if name not in known:
        raise ValueError(f"config.evals.*.{key} is {name!r}; choose {', '.join(sorted(known))}")
    return SUITES[name]


def evaluators_from(
    evals: Mapping[str, Any],
    scorer: Callable[[Any], Scorer],
    further: Mapping[str, Callable[[Any], Scorer]] = MappingProxyType({}),
) -> dict[str, tuple[int, Measure]]:
    """Name → (every so many steps, parameters → numbers), of all entries of `config.evals`; their files are read now.

    What an entry leaves out is said once, as is what encoding had to change.

    Args:
      evals: name → entry (`rmjax.settings.EVALUATIONS`).
      scorer: parameters → scorer of the model with these.
      further: name → the same for numbers that are reported as their mean over candidates (an ensemble's disagreement).

    Raises:
      OSError, RecordError, PoolError, ValueError: an entry's files cannot be used; as `Suite.load`.
    """
    return {
        name: (entry.every, _measure(name, suite_of(entry), entry, scorer, further)) for name, entry in evals.items()
    }


def _measure(
    name: str, suite: Suite, entry: Any, scorer: Callable[[Any], Scorer], further: Mapping[str, Callable[[Any], Scorer]]
) -> Measure:
    loaded = suite.load(entry)
    _say(name, "left out", {**loaded.unreadable, **loaded.dropped})
    _say(name, f"of {len(loaded.records)} records without a number", suite.evaluator.left_out(loaded.records))
    encoded: list[bool] = []

    def measure(params: Any) -> Mapping[str, float]:
        made = scorer(params)
        found = suite.evaluator.metrics(made, loaded.records)
        for number, of in further.items() if found else ():
            found[number] = float(np.mean(np.concatenate([np.asarray(x) for x in of(params).score(loaded.records)])))
        if not encoded:  # the same at every evaluation
            _say(name, "while encoding", made.counts)
            encoded.append(True)
        return found

    return measure


def _say(name: str, what: str, counts: Mapping[str, int]) -> None:
    if counts:
        _log.warning("evals.%s: %s: %s", name, what, said(counts))
