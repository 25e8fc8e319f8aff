"""Policy discrimination: does a reward model tell who wrote what?

POLAR pre-training (arXiv 2507.05197, eq. 7) scores trajectories of policy A above those of another
policy B, given a reference by A. The accuracy on held-out triples (reference by A, positive by A,
negative by B) is what pre-training has learned; the same with policies never trained on is what it
has learned in general. Scores that tie count 1/2. Intervals resample prompts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from rmjax.data.record import Comparison, RecordError, require_reference
from rmjax.evaluate import baselines
from rmjax.evaluate.bootstrap import Interval, difference, interval
from rmjax.evaluate.comparisons import check_scores

HISTOGRAM_BINS = 40


class Cell(TypedDict):
    """Accuracy of one (A, B) pair of policies: too few triples for an interval."""

    value: float
    n: int


class Histogram(TypedDict):
    """Counts of rewards between `edges` (one more than counts), same and other policy."""

    edges: list[float]
    same: list[int]
    other: list[int]


class Scorer(TypedDict):
    """How well one scorer finds the policy: over all triples and for each policy A."""

    overall: Interval
    ties: int
    policies: dict[str, Interval]


class Discrimination(Scorer):
    """What `discriminate` returns."""

    kinds: dict[str, dict[str, Interval]]
    confusion: dict[str, dict[str, Cell]]
    baselines: dict[str, Scorer]
    differences: dict[str, Interval]
    rewards: Histogram


@dataclasses.dataclass(frozen=True)
class Triple:
    """A scored (reference, positive, negative), the reference left implicit.

    Attributes:
      prompt: what was answered; triples that share it are resampled together.
      policy: A, who wrote the reference and the positive.
      other: B, who wrote the negative.
      same_reward: of the positive, no unit.
      other_reward: of the negative, no unit.
    """

    prompt: str
    policy: str
    other: str
    same_reward: float
    other_reward: float

    @property
    def credit(self) -> float:
        """1 if the positive scores higher, 1/2 on a tie, else 0."""
        return float((np.sign(self.same_reward - self.other_reward) + 1) / 2)


def triples(comparison: Comparison, scores: Sequence[float]) -> list[Triple]:
    """The triples of one record: its best-ranked output against each of the others.

    Args:
      comparison: one positive (the only output of the lowest rank), at least one negative, and the
        name of each output's policy.
      scores: one per output, higher is better.

    Raises:
      RecordError: a reference, the policies or a single positive are missing, or a negative is by
        the positive's own policy.
      ScoreError: the scores do not fit the outputs or are not finite.
    """
    positive = _positive(comparison)
    policies = comparison.policies or ()
    check_scores(comparison, scores)
    return [
        Triple(comparison.prompt, policies[positive], other, scores[positive], scores[index])
        for index, other in enumerate(policies)
        if index != positive
    ]


def discriminate(
    comparisons: Sequence[Comparison],
    scores: Sequence[Sequence[float]],
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Discrimination:
    """Policy discrimination of a reward model and of the baselines on the same triples.

    Args:
      comparisons: records as `triples` takes them; a record with K negatives is K triples.
      scores: a list per record, a score per output.
      kinds: policy -> its kind (persona, temperature, depth, ...), for the table by pairs of kinds.
        None: no such table.
      seed: of the bootstrap.

    Returns:
      `overall` accuracy, `ties` (triples), `policies.A`, `kinds.KIND_A.KIND_B`, `confusion.A.B`
      (value and n), `baselines.NAME` (overall, ties, policies), `differences.NAME` (paired, model
      minus baseline), and `rewards`, a histogram of same-policy and other-policy rewards.

    Raises:
      RecordError, ScoreError: as `triples`.
      ValueError: a policy without a kind where `kinds` is given, or too few lists of scores.
    """
    if len(comparisons) != len(scores):
        raise ValueError(f"{len(comparisons)} comparisons have {len(scores)} lists of scores")
    model = _flat(triples(c, s) for c, s in zip(comparisons, scores, strict=True))
    rivals = {name: _flat(triples(c, scorer(c)) for c in comparisons) for name, scorer in baselines.BASELINES.items()}
    prompts = [triple.prompt for triple in model]
    return Discrimination(
        **_scorer(model, seed),
        kinds=_by_kind(model, kinds, seed) if kinds is not None else {},
        confusion=_confusion(model),
        baselines={name: _scorer(rival, seed) for name, rival in rivals.items()},
        differences={
            name: difference(_credits(model), _credits(rival), prompts, seed) for name, rival in rivals.items()
        },
        rewards=reward_histogram(model),
    )


def reward_histogram(scored: Sequence[Triple], bins: int = HISTOGRAM_BINS) -> Histogram:
    """How often which reward was given to same-policy and to other-policy outputs.

    Args:
      scored: the triples; none gives an empty histogram.
      bins: number of bins of equal width, from the lowest to the highest reward.
    """
    same_N = np.asarray([triple.same_reward for triple in scored], np.float64)
    other_N = np.asarray([triple.other_reward for triple in scored], np.float64)
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


def _flat(groups: Iterable[list[Triple]]) -> list[Triple]:
    return [triple for group in groups for triple in group]


def _credits(scored: Sequence[Triple]) -> list[float]:
    return [triple.credit for triple in scored]


def _mean(scored: Sequence[Triple], seed: int) -> Interval:
    return interval(_credits(scored), [triple.prompt for triple in scored], seed)


def _scorer(scored: Sequence[Triple], seed: int) -> Scorer:
    by_policy = _grouped(scored, lambda triple: triple.policy)
    return Scorer(
        overall=_mean(scored, seed),
        ties=sum(triple.credit == 0.5 for triple in scored),
        policies={name: _mean(members, seed) for name, members in by_policy.items()},
    )


def _by_kind(scored: Sequence[Triple], kinds: Mapping[str, str], seed: int) -> dict[str, dict[str, Interval]]:
    unknown = sorted({name for t in scored for name in (t.policy, t.other)} - kinds.keys())
    if unknown:
        raise ValueError(f"no kind is given for the policies {', '.join(unknown)}")
    return {
        kind: {
            other: _mean(cell, seed) for other, cell in _grouped(members, lambda triple: kinds[triple.other]).items()
        }
        for kind, members in _grouped(scored, lambda triple: kinds[triple.policy]).items()
    }


def _confusion(scored: Sequence[Triple]) -> dict[str, dict[str, Cell]]:
    return {
        policy: {
            other: Cell(value=float(np.mean(_credits(cell))), n=len(cell))
            for other, cell in _grouped(members, lambda triple: triple.other).items()
        }
        for policy, members in _grouped(scored, lambda triple: triple.policy).items()
    }


def _grouped(scored: Sequence[Triple], key: Callable[[Triple], str]) -> dict[str, list[Triple]]:
    groups: dict[str, list[Triple]] = {}
    for triple in scored:
        groups.setdefault(key(triple), []).append(triple)
    return dict(sorted(groups.items()))
