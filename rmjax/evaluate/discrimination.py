"""Policy discrimination: does a reward model tell who wrote what?

POLAR pre-training (arXiv 2507.05197, eq. 7) scores trajectories of policy A above those of another
policy B, given a reference by A. The accuracy on held-out triples (reference by A, positive by A,
negative by B) is what pre-training has learned; the same with policies never trained on is what it
has learned in general. Scores that tie count 1/2. Intervals resample prompts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from rmjax.data.record import Comparison, RecordError, require_reference
from rmjax.evaluate.baselines import OF_POLICIES
from rmjax.evaluate.rows import Row, gain, grouped, mean, of_metric, values
from rmjax.evaluate.scorers import Baseline, checked
from rmjax.evaluate.statistics import Interval

HISTOGRAM_BINS = 40
CREDIT, SAME, OTHER = "credit", "same_reward", "other_reward"


class Cell(TypedDict):
    """Accuracy of one (A, B) pair of policies: too few triples for an interval."""

    value: float
    n: int


class Histogram(TypedDict):
    """Counts of rewards between `edges` (one more than counts), same and other policy."""

    edges: list[float]
    same: list[int]
    other: list[int]


class PolicyAccuracy(TypedDict):
    """How well one scorer finds the policy: over all triples and for each policy A."""

    overall: Interval
    ties: int
    policies: dict[str, Interval]


class Discrimination(PolicyAccuracy):
    """What `discriminate` returns."""

    kinds: dict[str, dict[str, Interval]]
    confusion: dict[str, dict[str, Cell]]
    baselines: dict[str, PolicyAccuracy]
    differences: dict[str, Interval]
    rewards: Histogram


def discrimination_rows(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> list[Row]:
    """In long form, for every triple (the best-ranked output of a record against each of the others): `credit` (1 if the positive
    scores higher, 1/2 on a tie, else 0), `same_reward` of the positive and `other_reward` of the negative.

    Columns: `policy` A of the reference and the positive, `other` B of the negative.

    Args:
      comparisons: each with a reference, one positive (the only output of the lowest rank), at least one negative, and the
        name of each output's policy.
      scores: a list per record, one per output, higher is better.

    Raises:
      RecordError: a reference, the policies or a single positive are missing, or a negative is by
        the positive's own policy.
      ScoreError: the scores do not fit the outputs or are not finite.
    """
    rows = []
    positives = [_positive(comparison) for comparison in comparisons]
    for number, (c, found) in enumerate(zip(comparisons, checked(comparisons, scores), strict=True)):
        same, policies, item = found[positives[number]], c.policies or (), c.id or c.place or str(number)
        for index, other in enumerate(found):
            if index != positives[number]:
                groups = {"policy": policies[positives[number]], "other": policies[index]}
                credit = float((np.sign(same - other) + 1) / 2)
                measured = ((CREDIT, credit), (SAME, same), (OTHER, other))
                rows += [Row(item, c.prompt, metric, value, groups) for metric, value in measured]
    return rows


def discriminate(
    comparisons: Sequence[Comparison],
    scores: Sequence[Sequence[float]],
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Discrimination:
    """Policy discrimination of a reward model and of the baselines on the same triples.

    Args:
      comparisons: records as `discrimination_rows` takes them; a record with K negatives is K triples.
      scores: a list per record, a score per output.
      kinds: policy -> its kind (persona, temperature, depth, ...), for the table by pairs of kinds.
        None: no such table.
      seed: of the bootstrap.

    Returns:
      `overall` accuracy, `ties` (triples), `policies.A`, `kinds.KIND_A.KIND_B`, `confusion.A.B`
      (value and n), `baselines.NAME` (overall, ties, policies), `differences.NAME` (paired, model
      minus baseline), and `rewards`, a histogram of same-policy and other-policy rewards.

    Raises:
      RecordError, ScoreError: as `discrimination_rows`.
      ValueError: a policy without a kind where `kinds` is given, or too few lists of scores.
    """
    model = discrimination_rows(comparisons, scores)
    baselines = {name: discrimination_rows(comparisons, Baseline(name).score(comparisons)) for name in OF_POLICIES}
    return discrimination_of(model, baselines, kinds, seed)


def discrimination_of(
    model: Sequence[Row], baselines: Mapping[str, Sequence[Row]], kinds: Mapping[str, str] | None = None, seed: int = 0
) -> Discrimination:
    """What `discriminate` returns, of rows in long form that are there already.

    Args:
      model: of `discrimination_rows`.
      baselines: name → the same of a baseline; of these the credits are enough.
      kinds: as `discriminate`.
      seed: of the bootstrap.

    Raises:
      ValueError: a policy without a kind where `kinds` is given.
    """
    return Discrimination(
        **policy_accuracy(model, seed),
        kinds=_by_kind(of_metric(model, CREDIT), kinds, seed) if kinds is not None else {},
        confusion=_confusion(of_metric(model, CREDIT)),
        baselines={name: policy_accuracy(rows, seed) for name, rows in baselines.items()},
        differences={
            name: gain(of_metric(model, CREDIT), of_metric(rows, CREDIT), seed) for name, rows in baselines.items()
        },
        rewards=reward_histogram(model),
    )


def reward_histogram(rows: Sequence[Row], bins: int = HISTOGRAM_BINS) -> Histogram:
    """How often which reward was given to same-policy and to other-policy outputs.

    Args:
      rows: of `discrimination_rows`; none gives an empty histogram.
      bins: number of bins of equal width, from the lowest to the highest reward.
    """
    same_N = np.asarray(values(of_metric(rows, SAME)), np.float64)
    other_N = np.asarray(values(of_metric(rows, OTHER)), np.float64)
    if same_N.size == 0:
        return Histogram(edges=[], same=[], other=[])
    edges_E = np.histogram_bin_edges(np.concatenate([same_N, other_N]), bins)
    return Histogram(
        edges=edges_E.tolist(),
        same=np.histogram(same_N, edges_E)[0].tolist(),
        other=np.histogram(other_N, edges_E)[0].tolist(),
    )


def _positive(comparison: Comparison) -> int:
    """Index of the only best-ranked output, after checking that the record is a triple."""
    ranks, policies = comparison.ranks, comparison.policies
    place = comparison.place
    require_reference(comparison)
    if policies is None or len(policies) != len(comparison.outputs):
        raise RecordError(place, "policies", "not one name per output", "name each one's policy")
    if ranks is None or len(ranks) < 2 or ranks.count(min(ranks)) != 1:
        remedy = "rank first the one output that is by the reference's policy"
        raise RecordError(place, "ranks", "no single positive and negatives", remedy)
    positive = ranks.index(min(ranks))
    if policies.count(policies[positive]) != 1:
        remedy = "draw the negatives from other policies"
        raise RecordError(place, "policies", "a negative by the positive's own policy", remedy)
    return positive


def policy_accuracy(rows: Sequence[Row], seed: int = 0) -> PolicyAccuracy:
    """Accuracy over `discrimination_rows`, over all and by the policy that is to be found."""
    credits = of_metric(rows, CREDIT)
    return PolicyAccuracy(
        overall=mean(credits, seed),
        ties=values(credits).count(0.5),
        policies={name: mean(members, seed) for name, members in grouped(credits, "policy").items()},
    )


def _by_kind(credits: Sequence[Row], kinds: Mapping[str, str], seed: int) -> dict[str, dict[str, Interval]]:
    unknown = sorted({row.groups[column] for row in credits for column in ("policy", "other")} - kinds.keys())
    if unknown:
        raise ValueError(f"no kind is given for the policies {', '.join(unknown)}")

    def kind(row: Row) -> Row:
        return dataclasses.replace(row, groups={column: kinds[name] for column, name in row.groups.items()})

    return {
        name: {other: mean(cell, seed) for other, cell in grouped(members, "other").items()}
        for name, members in grouped([kind(row) for row in credits], "policy").items()
    }


def _confusion(credits: Sequence[Row]) -> dict[str, dict[str, Cell]]:
    return {
        policy: {
            other: Cell(value=float(np.mean(values(cell))), n=len(cell))
            for other, cell in grouped(members, "other").items()
        }
        for policy, members in grouped(credits, "policy").items()
    }
