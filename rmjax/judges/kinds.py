"""Kinds of judges: what each asks of a record, how a reply becomes numbers, and how these become scores."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rmjax.data.record import Comparison
from rmjax.judges.forms import EQUAL, Unread
from rmjax.judges.spec import Spec
from rmjax.judges.templates import turns

Place = tuple[int, ...]
"""Which outputs a question shows, in their order."""
Reading = tuple[float, ...]
"""What a reply says: one number, or one for each criterion."""
Readings = Mapping[Place, Sequence[Reading]]
"""Of one record: the replies that could be read."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of judge.

    Attributes:
      places: a record → the questions that it takes.
      read: a reply → numbers, or why there are none.
      score: readings of a record with N outputs → N scores, or why there are none.
    """

    places: Callable[[Comparison], list[Place]]
    read: Callable[[Spec, str], Reading | Unread]
    score: Callable[[Spec, int, Readings], list[float] | Unread]


def fields_of(spec: Spec, c: Comparison, place: Place) -> dict[str, object]:
    """What the prompt of a judge may read of a record."""
    answers = [str(c.outputs[n]) for n in place]
    names = ("answer_a", "answer_b") if spec.rules.kind == "pairwise" else ("answer",)
    found: dict[str, object] = {
        "prompt": str(c.prompt), "turns": turns(c.prompt), "references": [str(r) for r in c.references],
        "reference": str(c.references[0]) if c.references else "",
        "criteria": [dataclasses.asdict(criterion) for criterion in spec.criteria],
    }  # fmt: skip
    return found | dict(zip(names, answers, strict=True))


# --- two answers --------------------------------------------------------------------------------------------------------

_FIRST_IS_BETTER = {"first": 1.0, "second": 0.0, EQUAL: 0.5}


def _orders(c: Comparison) -> list[Place]:
    return list(itertools.permutations(range(len(c.outputs)), 2))


def _read_choice(spec: Spec, reply: str) -> Reading | Unread:
    found = spec.form.choice(reply)
    return found if isinstance(found, Unread) else (_FIRST_IS_BETTER[found],)


def preference(spec: Spec, forward: Sequence[Reading], backward: Sequence[Reading]) -> float:
    """How far i is preferred to j, 0 to 1, by the replies that saw i first and those that saw j first.

    Each order counts alike, however many of its replies could be read. `inconsistent="tie"`: a half where the orders do not both
    prefer the same one. `combine="majority"`: 0, ½ or 1.
    """
    by_order = np.asarray([_mean(forward), 1 - _mean(backward)])
    if spec.rules.inconsistent == "tie" and not (np.all(by_order > 0.5) or np.all(by_order < 0.5)):
        return 0.5
    both = float(by_order.mean())
    return (float(np.sign(both - 0.5)) + 1) / 2 if spec.rules.combine == "majority" else both


def _mean(readings: Sequence[Reading]) -> float:
    return float(np.mean([value for (value,) in readings]))


def _score_pairs(spec: Spec, outputs: int, readings: Readings) -> list[float] | Unread:
    """Of each output the mean over the others of how far it is preferred."""
    if outputs < 2:
        return Unread("one output, which a pairwise judge compares with nothing")
    preferred_NN = np.zeros((outputs, outputs))
    for i, j in itertools.combinations(range(outputs), 2):
        preferred_NN[i, j] = preference(spec, readings[i, j], readings[j, i])
        preferred_NN[j, i] = 1 - preferred_NN[i, j]
    return (preferred_NN.sum(1) / (outputs - 1)).tolist()


# --- one answer ---------------------------------------------------------------------------------------------------------


def _each(c: Comparison) -> list[Place]:
    return [(n,) for n in range(len(c.outputs))]


def combined(spec: Spec, readings: Sequence[Reading]) -> np.ndarray:
    """[values of a reading] over replies: the mean, or for `combine="majority"` the median."""
    return (np.median if spec.rules.combine == "majority" else np.mean)(np.asarray(readings, np.float64), axis=0)


def _read_number(spec: Spec, reply: str) -> Reading | Unread:
    found = spec.form.number(reply)
    return found if isinstance(found, Unread) else (found,)


def _score_numbers(spec: Spec, outputs: int, readings: Readings) -> list[float] | Unread:
    return [float(combined(spec, readings[n,])[0]) for n in range(outputs)]


def _criteria(spec: Spec, reply: str) -> dict[str, object] | Unread:
    """The reply's value of each criterion, no more and no fewer."""
    found = spec.form.object(reply)
    if isinstance(found, Unread):
        return found
    if lacking := [criterion.name for criterion in spec.criteria if criterion.name not in found]:
        return Unread("a criterion is missing" if len(lacking) < len(spec.criteria) else "no criterion")
    return found if len(found) == len(spec.criteria) else Unread("a criterion that there is not")


def _read_grades(spec: Spec, reply: str) -> Reading | Unread:
    found = _criteria(spec, reply)
    if isinstance(found, Unread):
        return found
    grades = [spec.form.in_range(found[criterion.name]) for criterion in spec.criteria]
    bad = [grade for grade in grades if isinstance(grade, Unread)]
    return bad[0] if bad else tuple(grade for grade in grades if not isinstance(grade, Unread))


def _score_grades(spec: Spec, outputs: int, readings: Readings) -> list[float] | Unread:
    weights = [criterion.weight for criterion in spec.criteria]
    return [float(np.average(combined(spec, readings[n,]), weights=weights)) for n in range(outputs)]


def _read_points(spec: Spec, reply: str) -> Reading | Unread:
    found = _criteria(spec, reply)
    if isinstance(found, Unread):
        return found
    values = [found[criterion.name] for criterion in spec.criteria]
    if not all(isinstance(value, bool) for value in values):
        return Unread("a point that is neither true nor false")
    return tuple(map(float, values))  # type: ignore[arg-type]


def checklist_score(spec: Spec, met: Sequence[float]) -> float:
    """1 + the weighted fraction of all points where more than half of the replies call each core point met, else the weighted
    fraction of core points, below 1: an answer is usable from 1 on."""
    weights, met_K = np.asarray([criterion.weight for criterion in spec.criteria]), np.asarray(met, np.float64)
    core = np.asarray([criterion.core for criterion in spec.criteria], bool)
    if np.all(met_K[core] > 0.5):
        return 1 + float(np.average(met_K, weights=weights))
    return float(np.average(np.where(met_K[core] > 0.5, met_K[core], 0.0), weights=weights[core]))


def _score_points(spec: Spec, outputs: int, readings: Readings) -> list[float] | Unread:
    return [checklist_score(spec, combined(spec, readings[n,]).tolist()) for n in range(outputs)]


KINDS: Mapping[str, Kind] = {
    "pairwise": Kind(_orders, _read_choice, _score_pairs),
    "pointwise": Kind(_each, _read_number, _score_numbers),
    "rubric": Kind(_each, _read_grades, _score_grades),
    "checklist": Kind(_each, _read_points, _score_points),
}
"""Name → kind. To add one, write its three functions, list it here, and its fields in `spec.FIELDS`."""
