"""Preference strength: how far several reward models put two answers apart, and what is made of it.

Source: Secrets of RLHF in Large Language Models, Part II (arXiv 2401.06080), sections 2.2 and 2.3, equation 4. Cross-fitted
strengths, of models that did not learn from the record, are ours: the paper's are all in-sample.

N outputs of a record, M models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.data.again import Again, Found
from rmjax.data.flips import reverse
from rmjax.data.record import Comparison, RecordError, require_order

IN_SAMPLE, CROSS_FITTED = "in_sample", "cross_fitted"
KINDS = (IN_SAMPLE, CROSS_FITTED)
SOFT = ("none", "votes", "sigmoid")
_PREFIX = {IN_SAMPLE: "pair_", CROSS_FITTED: "pair_cross_"}
FIELDS = tuple(f"{prefix}{name}" for prefix in _PREFIX.values() for name in ("votes", "strength", "deviation"))
"""Of a record."""
_TOLERANCE = 1e-4  # numbers of files are rounded
_WRITE = "write them with python -m experiments.strength"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What strengths are used for; `config.strength` says what each means.

    Attributes:
      flipped: the largest strength of a record that is turned round; −inf = none. `by_strength` finds it.
    """

    of: str = IN_SAMPLE
    below: float = 0.0
    flip: float = 0.0
    filter: float = 0.0
    smooth: float = 0.0
    soft: str = "none"
    margin: float = 0.0
    margin_limit: float = 0.0
    flipped: float = -np.inf


def measured(rewards_NM: np.ndarray, kind: str = IN_SAMPLE) -> dict[str, Any]:
    """Votes, mean and deviation (divisor M) of the models' differences for every pair, as a record's fields: [i][j] says of i
    against j. A vote that is split counts one half."""
    difference_NNM = rewards_NM[:, None] - rewards_NM[None, :]
    prefix = _PREFIX[kind]
    return {
        f"{prefix}votes": _tuples(np.mean((np.sign(difference_NNM) + 1) / 2, axis=-1)),
        f"{prefix}strength": _tuples(np.mean(difference_NNM, axis=-1)),
        f"{prefix}deviation": _tuples(np.std(difference_NNM, axis=-1)),
    }


def with_strengths(c: Comparison, rewards_NM: np.ndarray, learned_M: np.ndarray) -> Comparison:
    """The record with strengths in-sample, of the models that learned from it, and cross-fitted, of the others; without those
    that no model can give."""
    known = {name: value for name, value in c.columns.items() if name not in FIELDS}
    for kind, chosen_M in ((IN_SAMPLE, learned_M), (CROSS_FITTED, ~learned_M)):
        if chosen_M.any():
            known |= measured(np.asarray(rewards_NM)[:, chosen_M], kind)
    return dataclasses.replace(c, columns=known)


def strength_of(c: Comparison, kind: str) -> float:
    """A record's strength: the mean over its ordered pairs, positive where the models agree with the order.

    Raises:
      RecordError: it has none, or one that contradicts itself.
    """
    return float(np.mean(_pairs(c, kind)[_better(c)]))


def _pairs(c: Comparison, kind: str) -> np.ndarray:
    """Strengths of a record's pairs, checked."""
    require_order(c)
    field = f"{_PREFIX[kind]}strength"
    if field not in c.columns:
        raise RecordError(c.place, field, "missing, and config.loss.order is strength", _WRITE)
    strength_NN, votes = np.asarray(c.columns[field], np.float64), c.columns.get(f"{_PREFIX[kind]}votes")
    if not np.allclose(strength_NN, -strength_NN.T, atol=_TOLERANCE):
        raise RecordError(c.place, field, "pair (i, j) and pair (j, i) contradict each other", _WRITE)
    if votes is not None and not np.allclose(np.asarray(votes) + np.asarray(votes).T, 1, atol=_TOLERANCE):
        problem = "the votes for i and for j do not add up to 1"
        raise RecordError(c.place, f"{_PREFIX[kind]}votes", problem, f"{_WRITE}, or correct the record")
    return strength_NN


def _better(c: Comparison) -> np.ndarray:
    ranks = np.asarray(c.ranks)
    return np.asarray(ranks[:, None] < ranks[None, :])


def by_strength(rules: Rules, records: Found, place: str) -> tuple[Found, int]:
    """The records after the rules, and how many the filter took.

    Raises:
      RecordError: of the first record without a strength.
      ValueError: no model tells two answers apart, or nothing is left.
    """
    strengths = np.asarray([strength_of(c, rules.of) for c in records])
    if not np.any(strengths):
        raise ValueError(
            f"{place}: every {rules.of} strength is 0: the vote models tell nothing apart; train them longer"
        )
    kept = np.flatnonzero(strengths > _threshold(strengths, rules.filter, rules.below))
    if not len(kept):
        raise ValueError(f"{place}: config.strength.filter leaves no record; lower it, or strength.below")
    rules = dataclasses.replace(rules, flipped=_threshold(strengths[kept], rules.flip, rules.below))
    taken = len(strengths) - len(kept)
    if isinstance(records, Again):
        before = records.prepare
        return dataclasses.replace(
            records, usable=records.usable[kept], prepare=lambda c: applied(rules, before(c))
        ), taken
    return [applied(rules, records[int(i)]) for i in kept], taken


def _threshold(strengths: np.ndarray, fraction: float, below: float) -> float:
    """The largest of the weakest ⌊fraction · n⌋ strengths that are below `below`; −inf where there are none."""
    weakest = np.sort(strengths)[: int(np.floor(fraction * len(strengths) + 1e-9))]
    under = weakest[weakest < below]
    return float(under[-1]) if len(under) else -np.inf


def applied(rules: Rules, c: Comparison) -> Comparison:
    """The record with a target, a weight and a margin for each of its ordered pairs.

    A record of a strength up to `rules.flipped` is turned round, and its margin with it. `smooth` is the paper's: only pairs of
    a strength below `below` are softened. `soft` takes every target from the models instead.
    """
    is_flipped = strength_of(c, rules.of) <= rules.flipped
    if is_flipped:
        c = reverse(c)
    strength_NN, better_NN = _pairs(c, rules.of), _better(c)
    known_NN = better_NN | better_NN.T
    sure_NN = 1 - (0.0 if is_flipped else rules.smooth) * (strength_NN < rules.below)
    target_NN = np.where(better_NN, sure_NN, 0.0) + np.where(better_NN.T, 1 - sure_NN.T, 0.0)
    if rules.soft == "votes":
        target_NN = np.asarray(c.columns[f"{_PREFIX[rules.of]}votes"], np.float64)
    elif rules.soft == "sigmoid":
        target_NN = 1 / (1 + np.exp(-np.clip(strength_NN, -500, 500)))
    margin_NN = rules.margin * strength_NN
    if rules.margin_limit:
        margin_NN = np.clip(margin_NN, -rules.margin_limit, rules.margin_limit)
    pairs = {
        "pair_target": np.where(known_NN, target_NN, -1.0),
        "pair_weight": known_NN.astype(float),
        "pair_margin": np.where(known_NN, margin_NN, 0.0),
    }
    return dataclasses.replace(c, columns={**c.columns, **{name: _tuples(values) for name, values in pairs.items()}})


def carried(records: Sequence[Comparison], onto: Sequence[Comparison], place: str) -> list[Comparison]:
    """Records with the strengths of others of the same ids, prompts and outputs.

    Raises:
      ValueError: strengths of another data set: records that are missing; or a record that is there twice with two strengths.
    """
    known: dict[tuple[Any, ...], Comparison] = {}
    for c in records:
        there = known.setdefault(_same(c), c)
        if any(there.columns.get(name) != c.columns.get(name) for name in FIELDS):
            raise ValueError(f"{place} has record {c.id or c.place} twice, with two strengths; keep one of them")
    missing = [c.id or c.place for c in onto if _same(c) not in known]
    if missing:
        raise ValueError(
            f"{place} has the strengths of another data set: {len(missing)} of {len(onto)} records are not in it, the first is "
            f"{missing[0]}; measure them on these records"
        )
    found = [{name: value for name, value in known[_same(c)].columns.items() if name in FIELDS} for c in onto]
    return [dataclasses.replace(c, columns={**c.columns, **more}) for c, more in zip(onto, found, strict=True)]


def _same(c: Comparison) -> tuple[Any, ...]:
    """What two records have in common that are one."""
    return c.id, c.prompt, c.outputs


def check(rules: Rules) -> None:
    """ValueError for rules that contradict each other, or do nothing."""
    if rules.smooth and rules.soft != "none":
        raise ValueError(
            f"config.strength.soft is {rules.soft!r}, which gives every target, and strength.smooth is {rules.smooth}; drop one"
        )
    if rules.flip and rules.soft != "none":
        raise ValueError(
            f"config.strength.soft is {rules.soft!r}, which gives every target, and strength.flip is {rules.flip}; drop one"
        )
    if not any((rules.flip, rules.filter, rules.smooth, rules.margin, rules.soft != "none")):
        raise ValueError(
            "config.loss.order is strength, but config.strength uses it for nothing; set flip, filter, smooth, soft or margin"
        )


def _tuples(values_NN: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values_NN.tolist()))
