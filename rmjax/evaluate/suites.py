"""Suites: how a benchmark's files load, and which evaluator aggregates them.

An entry of `config.evals` names a suite by its `kind`. `evaluators_from` is what training, commands and studies make of entries.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from rmjax.data import sources
from rmjax.data.readers import RandomAccessSource
from rmjax.data.record import Comparison
from rmjax.data.samples import take
from rmjax.evaluate.evaluators import EVALUATORS, Evaluator
from rmjax.evaluate.scorers import Scorer

_log = logging.getLogger(__name__)
Measure = Callable[[Any], Mapping[str, float]]
"""Parameters → name → number, for a training log."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A benchmark's records.

    Attributes:
      records: what is scored.
      unreadable: reason → number of rows that were broken (`on_error="skip"`).
      dropped: reason → number of rows, or of what was drawn of them, that are left out by the suite's rules.
      contradicting: number of records whose scores contradict their ranks, which count.
      unknown: field name → number of rows in which it was ignored.
    """

    records: list[Comparison]
    unreadable: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    contradicting: int = 0
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """How a benchmark is read and evaluated.

    Attributes:
      load: an entry (`rmjax.settings.EVALUATIONS`) → its records. Raises as the readers in `rmjax.data.sources`.
      evaluator: makes rows and numbers of their scores.
    """

    load: Callable[[Any], Loaded]
    evaluator: Evaluator


def load_comparisons(path: str, root: str, split: str, on_error: Literal["raise", "skip"] = "raise") -> Loaded:
    """Ranked answers: a file, or a split of the real set of that name under `root`.

    Raises:
      OSError, RecordError, ValueError: as `sources.records`.
    """
    dropped: Counter[str] = Counter()
    source = sources.records(path, root, split, on_error, dropped=dropped)
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


SUITES: Mapping[str, Suite] = {
    "comparisons": Suite(lambda e: load_comparisons(e.path, e.root, e.split), EVALUATORS["preference"]),
    "pool": Suite(_pool, EVALUATORS["discrimination"]),
    "samples": Suite(_samples, EVALUATORS["gaps"]),
}
"""Kind of an entry → suite. To add one, write how it loads, list it here, and its entry in `rmjax.settings.EVALUATIONS`."""


def suite_of(entry: Any) -> Suite:
    """The suite that an entry names.

    Raises:
      ValueError: there is none of its `kind`.
    """
    if entry.kind not in SUITES:
        raise ValueError(f"config.evals.*.kind is {entry.kind!r}; choose {', '.join(SUITES)}")
    return SUITES[entry.kind]


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


def said(counts: Mapping[str, int]) -> str:
    """`3 × cut, 1 × order unknown`."""
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())
