"""Votes as soft order: the fraction of voters for each pair is its target, their agreement its margin or weight.

Source: Secrets of RLHF in Large Language Models, Part II (arXiv 2401.06080), sections 2.2 and 2.3: preference strength, soft
labels and adaptive margins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rmjax.data.record import Comparison, RecordError, require_order
from rmjax.data.strength import Rules, strength_of

ORDERS = ("ranks", "votes", "targets", "strength")
STRENGTHS = ("none", "margin", "weight")
MEASURES = ("fraction", "values")
WITHOUT_VOTES = ("refuse", "ranks")
TIED = ("rao_kupper", "davidson")
"""Losses to which equal ranks say something."""
_PAIRS = ("pair_target", "pair_weight", "pair_margin")


@dataclasses.dataclass(frozen=True)
class Order:
    """What the order of a record's outputs is taken from."""

    kind: str = (
        "ranks"  # ranks | votes: the fraction of voters | targets: the field `pair_target` | strength: see `rules`
    )
    strength: str = "none"  # votes: what a pair's strength becomes: none | margin | weight
    measure: str = "fraction"  # of strength: fraction, 2p − 1 | values, the mean difference of the voters' values
    scale: float = 1.0  # factor of margin (in units of reward) or weight
    without_votes: str = "refuse"  # records without votes: refuse | ranks, which then count as unanimous
    rules: Rules | None = None  # what strengths are used for, with their thresholds
    ties: bool = False  # whether a record of equal ranks alone can be learned from
    scores: str = ""  # of its outputs: empty, not read | beside the order | alone, and no order is needed

    @classmethod
    def of(cls, loss: Any) -> Order:
        """From `config.loss`. ValueError for a strength without votes, or for weights that are all 0."""
        if loss.strength != "none" and loss.order != "votes":
            raise ValueError(
                f"config.loss.strength is {loss.strength!r}, which votes give; set config.loss.order=votes"
            )
        if loss.strength == "weight" and not loss.strength_scale:
            raise ValueError(
                "config.loss.strength_scale is 0, which gives every pair the weight 0; make it larger, or loss.strength=none"
            )
        scores = "alone" if loss.name == "regression" else "beside" if loss.regression_weight else ""
        if scores == "alone" and loss.order != "ranks":
            raise ValueError(
                f"config.loss.order is {loss.order!r}, but loss.name is regression; leave the order at ranks"
            )
        return cls(
            loss.order,
            loss.strength,
            loss.strength_measure,
            loss.strength_scale,
            loss.without_votes,
            ties=loss.name in TIED,
            scores=scores,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The on-demand columns that a batch needs for it, by full name (`packing.ForestShape.columns`)."""
        scores = ("score_RGN",) if self.scores else ()
        if self.kind == "ranks":
            return scores
        if self.kind in ("targets", "strength"):
            return ("target_RGNN", "weight_RGNN", "margin_RGNN", *scores)
        return (
            ("target_RGNN", *scores) if self.strength == "none" else ("target_RGNN", f"{self.strength}_RGNN", *scores)
        )

    def apply(self, c: Comparison) -> Comparison:
        """The record with the columns of its pairs.

        Raises:
          RecordError: nothing orders two of its outputs.
        """
        return _APPLY[self.kind](self, c)


def vote_fractions(votes: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """p_NN: the fraction of voters who value output i above j, ties counting one half; −1 where no voter orders the two."""
    sign_MNN = np.sign(_differences(votes))
    ordered_NN = np.any(sign_MNN != 0, axis=0)
    return np.where(ordered_NN, (np.mean(sign_MNN, axis=0) + 1) / 2, -1.0)


def _differences(votes: tuple[tuple[float, ...], ...]) -> np.ndarray:
    votes_MN = np.asarray(votes, np.float64)
    return votes_MN[:, :, None] - votes_MN[:, None, :]


def _from_ranks(order: Order, c: Comparison) -> Comparison:
    if order.scores == "alone" and c.scores is None:
        remedy = "give one number per output, or set config.loss.name to a loss on the order"
        raise RecordError(c.place, "scores", "missing, and config.loss.name is regression", remedy)
    if order.scores != "alone" and not (order.ties and c.ranks is not None and len(c.outputs) > 1):
        require_order(c)
    if order.kind == "ranks":  # a soft order is then not read, and must not stand beside ranks
        return dataclasses.replace(c, columns={n: v for n, v in c.columns.items() if n not in _PAIRS})
    ranks = np.asarray(c.ranks)
    better_NN = ranks[:, None] < ranks[None, :]
    strength = better_NN.astype(float) - better_NN.T
    return _with_pairs(order, c, np.where(better_NN | better_NN.T, (strength + 1) / 2, -1.0), strength)


def _from_votes(order: Order, c: Comparison) -> Comparison:
    if c.votes is None:
        if order.without_votes == "ranks":
            return _from_ranks(order, c)
        raise RecordError(
            c.place, "votes", "missing, and config.loss.order is votes",
            "give one list per voter, or set config.loss.without_votes=ranks",
        )  # fmt: skip
    target_NN = vote_fractions(c.votes)
    if not (target_NN >= 0).any():
        raise RecordError(c.place, "votes", "no voter orders two outputs", "drop the record, or train on its ranks")
    strength = np.where(target_NN >= 0, 2 * target_NN - 1, 0.0)
    return _with_pairs(
        order, c, target_NN, strength if order.measure == "fraction" else np.mean(_differences(c.votes), axis=0)
    )


def _with_pairs(order: Order, c: Comparison, target_NN: np.ndarray, strength_NN: np.ndarray) -> Comparison:
    found = {"pair_target": _tuples(target_NN)}
    if order.strength == "margin":
        found["pair_margin"] = _tuples(order.scale * strength_NN)
    elif order.strength == "weight":
        found["pair_weight"] = _tuples(order.scale * np.abs(strength_NN))
    kept = {name: value for name, value in c.columns.items() if name not in _PAIRS}
    return dataclasses.replace(c, columns={**kept, **found})


def _given(order: Order, c: Comparison) -> Comparison:
    """The record, whose pairs are checked: what (i, j) says must be what (j, i) says."""
    if "pair_target" not in c.columns:
        raise RecordError(
            c.place, "pair_target", "missing, and config.loss.order is targets", "give N lists of N numbers"
        )
    target_NN, weight_NN, margin_NN = (np.asarray(c.columns.get(name, 0.0), np.float64) for name in _PAIRS)
    known_NN = target_NN >= 0
    if not known_NN.any():
        raise RecordError(c.place, "pair_target", "no pair has a target", "give a probability for at least one pair")
    sums_NN = target_NN + target_NN.T
    for field, is_right in (
        ("pair_target", np.array_equal(known_NN, known_NN.T) and np.allclose(sums_NN[known_NN], 1, atol=1e-6)),
        ("pair_weight", np.array_equal(weight_NN, weight_NN.T)),
        ("pair_margin", np.array_equal(margin_NN, -margin_NN.T)),
    ):
        if not is_right:
            raise RecordError(
                c.place, field, "pair (i, j) and pair (j, i) contradict each other",
                "let targets add up to 1 (or both be −1), weights be equal, margins opposite",
            )  # fmt: skip
    return c


def _from_strength(order: Order, c: Comparison) -> Comparison:
    """The record as it is: what is made of its strength depends on the others' (`strength.by_strength`)."""
    assert order.rules
    strength_of(c, order.rules.of)
    return c


def _tuples(values_NN: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values_NN.tolist()))


_APPLY: dict[str, Callable[[Order, Comparison], Comparison]] = {
    "ranks": _from_ranks,
    "votes": _from_votes,
    "targets": _given,
    "strength": _from_strength,
}

RANKS = Order()
"""The order that ranks, `chosen` or `best` give."""
