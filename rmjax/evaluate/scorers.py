"""Scorers: records → scores. A reward model on any mesh, baselines and ensembles are scorers alike.

Every scorer passes its scores through `checked`: a score that is not finite never leaves it.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from rmjax.data import placement
from rmjax.data.formats import Encoder
from rmjax.data.packing import ForestShape, Tree, arrange, at_most_two_digits, pack
from rmjax.data.pipeline import WHOLE
from rmjax.data.record import Comparison
from rmjax.evaluate.baselines import BASELINES
from rmjax.models.forest import Forest
from rmjax.models.parameters import flat
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import RULES, Rules, replicated, shards

BATCH_TOKENS = 4096
"""Tokens a batch at most (one row at least), on each shard of its rows."""
Rewards = Callable[[Any, Forest], jax.Array]
Combine = Callable[[np.ndarray], np.ndarray]
Scores = list[list[float]]


@dataclasses.dataclass(frozen=True)
class OfMembers:
    """Rewards of several members as `Rewards`: (params, forest) → [R, G, N, K].

    Attributes:
      combine: all rewards of a record, [N outputs, K members] → one score per output. It gets whole records, whatever forests
        their outputs were scored in.
    """

    rewards: Rewards
    combine: Combine

    def __call__(self, params: Any, forest: Forest) -> jax.Array:
        return self.rewards(params, forest)

    def compiled(self, how: Callable[[Rewards], Rewards]) -> "OfMembers":
        """The same with rewards that `how` compiled."""
        return dataclasses.replace(self, rewards=how(self.rewards))


class ScoreError(ValueError):
    """A scorer gave too few, too many or non-finite scores for a record; the message names it and the cause."""


class Scorer(Protocol):
    """Records → scores, higher is better, in any unit."""

    @property
    def name(self) -> str:
        """For tables and files."""
        ...

    @property
    def counts(self) -> Counter[str]:
        """What encoding had to change since this scorer was made, such as `cut` texts; empty where nothing is encoded."""
        ...

    def score(self, records: Sequence[Comparison], progress: bool = False) -> Scores:
        """A list per record with one finite score per output.

        Raises:
          ScoreError: a score is not finite.
        """
        ...


def check_scores(record: Comparison, scores: Sequence[float], cause: str = "the model is broken") -> None:
    """Raises ScoreError unless there is one finite score for each output."""
    place = record.place or record.id or f"the record with the prompt {record.prompt[:40]!r}"
    if len(scores) != len(record.outputs):
        raise ScoreError(f"{place}: {len(record.outputs)} outputs have {len(scores)} scores; give one for each")
    if not all(map(math.isfinite, scores)):
        raise ScoreError(f"{place}: a score is not finite ({list(scores)}); {cause}")


def checked(
    records: Sequence[Comparison], scores: Sequence[Sequence[float]], cause: Callable[[], str] | None = None
) -> Scores:
    """The scores, one finite number per output of each record; else ScoreError. cause: asked only where a score is not finite."""
    if len(records) != len(scores):
        raise ScoreError(f"{len(records)} comparisons have {len(scores)} lists of scores; give one for each")
    why = cause() if cause and not all(math.isfinite(x) for row in scores for x in row) else "the model is broken"
    for record, found in zip(records, scores, strict=True):
        check_scores(record, found, why)
    return [list(found) for found in scores]


class RewardScorer:
    """A reward model as a scorer, on whatever device or mesh its `rewards` run.

    Args:
      rewards: (params, forest) → rewards_RGN on the host or on every process: of `model_rewards` or `on_mesh`.
      params: what `rewards` takes.
      encoder: records → trees.
      batch_tokens: tokens a batch at most (one row at least).
    """

    def __init__(
        self,
        rewards: Rewards,
        params: Any,
        encoder: Encoder,
        batch_tokens: int = BATCH_TOKENS,
        name: str = "reward model",
    ):
        self.rewards, self.params, self.encoder = rewards, params, encoder
        self.batch_tokens, self.name = batch_tokens, name
        self.counts: Counter[str] = Counter()

    def score(self, records: Sequence[Comparison], progress: bool = False) -> Scores:
        """Rewards of every output of every record, prefixes shared; with several references their mean.

        They do not depend on what else is scored, nor on the mesh, to 1e-5 in fp32.

        Raises:
          ScoreError: a reward is not finite; the message names the record, and the parameter where one is to blame.
        """
        before = self.encoder.counts.copy()
        found = score(self.rewards, self.params, self.encoder, records, self.batch_tokens, progress)
        self.counts += self.encoder.counts - before
        return checked(records, found, self._cause)

    def _cause(self) -> str:
        bad = [path for path, x in flat(self.params).items() if not bool(jax.numpy.isfinite(x).all())]
        if bad:
            return f"parameter {bad[0]} is not finite either: the model is broken; take an earlier checkpoint"
        return "all parameters are finite, so the model overflows on this text; score with dtype float32"


def batch_tokens(mesh: Mesh | None, rules: Rules = RULES) -> int:
    """`BATCH_TOKENS` for every shard of a batch's rows."""
    return BATCH_TOKENS * (shards(mesh, rules, "rows") if mesh else 1)


def model_rewards(config: TransformerConfig, mesh: Mesh | None = None, rules: Rules = RULES) -> Rewards:
    """(params, forest) → rewards of a `RewardTransformer`, on the default device or on a mesh.

    Models of one architecture on one mesh share what is compiled, whatever their weights. The dropout of an adapter is of
    training only and ignored.
    """
    adapter = config.adapter and dataclasses.replace(config.adapter, dropout=0.0)
    config = dataclasses.replace(config, adapter=adapter)
    return functools.partial(_on_device, config=config) if mesh is None else _of_model(config, mesh, rules)


def _apply(params: Any, forest: Forest, config: TransformerConfig) -> jax.Array:
    return RewardTransformer(config).apply({"params": params}, forest)  # type: ignore[return-value]


_on_device = jax.jit(_apply, static_argnames="config")


@functools.cache
def _of_model(config: TransformerConfig, mesh: Mesh, rules: Rules) -> Rewards:
    return on_mesh(rewards_of(config), mesh, rules)


def on_mesh(rewards: Rewards, mesh: Mesh, rules: Rules = RULES) -> Rewards:
    """(params, forest) → rewards on every process, of parameters that lie on the mesh.

    Rows are cut over the mesh as in training, filled up with empty ones where they are too few; where a row's tokens do not
    divide, every device runs all.

    Args:
      rewards: the same as a pure function, not compiled.
    """

    if isinstance(rewards, OfMembers):
        return rewards.compiled(lambda of_members: on_mesh(of_members, mesh, rules))

    cut, whole = cut_over(rewards, mesh, rules), jax.jit(rewards, out_shardings=replicated(mesh))
    shardings = placement.forest_shardings(mesh, rules)
    parts, tokens = (shards(mesh, rules, axis) for axis in ("rows", "tokens"))

    def run(params: Any, forest: Forest) -> jax.Array:
        rows = len(forest.tokens_RT)
        with jax.set_mesh(mesh):
            if forest.shape[1] % tokens:
                return whole(params, forest)
            padded = jax.tree.map(lambda x: np.pad(x, [(0, -rows % parts)] + [(0, 0)] * (x.ndim - 1)), forest)
            return cut(params, placement.place(padded, shardings, WHOLE))[:rows]

    return run


def cut_over(rewards: Rewards, mesh: Mesh, rules: Rules = RULES) -> Any:
    """(params, forest) → rewards on every device, compiled for rows and tokens that divide over the mesh."""

    def with_rules(params: Any, forest: Forest) -> jax.Array:
        with nn.logical_axis_rules(rules):
            return rewards(params, forest)

    return jax.jit(with_rules, out_shardings=replicated(mesh))


def rewards_of(config: TransformerConfig) -> Rewards:
    """(params, forest) → rewards as a pure function, not compiled."""
    return functools.partial(_apply, config=config)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One of `BASELINES` as a scorer. ValueError for another name."""

    name: str
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.name not in BASELINES:
            raise ValueError(f"baseline {self.name!r} does not exist; there are {', '.join(BASELINES)}")

    def score(self, records: Sequence[Comparison], progress: bool = False) -> Scores:
        """The baseline's score of every output."""
        del progress
        return checked(records, [BASELINES[self.name](record) for record in records])


COMBINATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda scores_SN: np.mean(scores_SN, axis=0),
    "minimum": lambda scores_SN: np.min(scores_SN, axis=0),
    "disagreement": lambda scores_SN: np.std(scores_SN, axis=0),
    "majority": lambda scores_SN: _preferred_to_all(scores_SN),
}
"""How an ensemble's scores [S scorers, N outputs] become one score per output."""


def _preferred_to_all(scores_SN: np.ndarray) -> np.ndarray:
    """Majority voting: 1 for the output that more members prefer to each other one than the reverse, else 0."""
    votes_NN = np.sign(scores_SN[:, :, None] - scores_SN[:, None, :]).sum(0)
    return ((votes_NN > 0).sum(1) == scores_SN.shape[1] - 1).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several scorers as one: their mean, minimum (a careful reward), disagreement (standard deviation), or majority.

    The scores are combined as they are: scorers of different units or zeros are to be brought to one scale first, except for
    the majority, which reads each member's order only.
    """

    scorers: Sequence[Scorer]
    combine: str = "mean"

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("an ensemble has no scorers; give one or more")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine is {self.combine!r}; choose {', '.join(COMBINATIONS)}")

    @property
    def name(self) -> str:
        """The combination and its members."""
        return f"{self.combine} of {', '.join(scorer.name for scorer in self.scorers)}"

    @property
    def counts(self) -> Counter[str]:
        """Of all members together."""
        return sum((scorer.counts for scorer in self.scorers), Counter[str]())

    def score(self, records: Sequence[Comparison], progress: bool = False) -> Scores:
        """The combined score of every output."""
        each = [checked(records, scorer.score(records, progress)) for scorer in self.scorers]
        combine = COMBINATIONS[self.combine]
        return checked(records, [combine(np.asarray(rows, np.float64)).tolist() for rows in zip(*each, strict=True)])


def score(
    rewards: Rewards,
    params: Any,
    encoder: Encoder,
    comparisons: Sequence[Comparison],
    batch_tokens: int,
    progress: bool = False,
) -> Scores:
    """One list of rewards per record, in the order of its outputs; with several references their mean; of several members what
    they combine to.

    The records are encoded, packed into forests, run in compiled calls of one shape, and unpacked.

    Args:
      rewards: (params, forest) → rewards_RGN, jitted; or `OfMembers`.
      batch_tokens: tokens a batch at most (one row at least).
    """
    trees = [(i, *part) for i, c in enumerate(comparisons) for part in encoder.scoring_trees(c, i)]
    sums: list[Any] = [0.0] * len(comparisons)
    times = [np.zeros(len(c.outputs)) for c in comparisons]
    if not trees:
        return []
    shape = fitting_shape([tree for *_, tree in trees], batch_tokens)
    with tqdm(total=len(trees), desc="scoring", unit="group", disable=not progress) as bar:
        for forest, places in pack([tree for *_, tree in trees], shape):
            values = np.asarray(rewards(params, forest), np.float64)  # [R, G, N] or [R, G, N, K]
            for r, row in enumerate(places):
                for g, t in enumerate(row):
                    i, branches, _ = trees[t]
                    if not times[i].any():
                        sums[i] = np.zeros((len(times[i]), *values.shape[3:]))
                    for n, outputs in enumerate(branches):  # of equal tokens: of one branch
                        sums[i][outputs] += values[r, g, n]
                        times[i][outputs] += 1
            bar.update(sum(map(len, places)))
    found = [(s.T / n).T for s, n in zip(sums, times, strict=True)]
    if isinstance(rewards, OfMembers):
        found = [rewards.combine(of_members) for of_members in found]
    return [values.tolist() for values in found]


def fitting_shape(trees: Sequence[Tree], batch_tokens: int) -> ForestShape:
    """Sizes of batches for these trees: as few batches as `batch_tokens` tokens (or one row) allow, about equally full. Rows are
    one of 1, 2, 3, 4, 6, 8, 12, … or as many as are allowed, the other sizes powers of two, so that few are ever compiled."""
    # Long rows leave less of themselves empty; beyond 512 a dense mask costs more than that saves.
    usual = min(512, _power_of_two(sum(tree.size for tree in trees)))
    row_tokens = max(128, usual, _power_of_two(max(tree.size for tree in trees)))
    groups = _power_of_two(min(row_tokens // min(tree.size for tree in trees), 32))
    needed, most = len(arrange(trees, row_tokens, groups)), max(1, batch_tokens // row_tokens)
    even = -(-needed // -(-needed // most))
    return ForestShape(
        rows=min(at_most_two_digits(even), most),
        row_tokens=row_tokens,
        groups=groups,
        branches=_power_of_two(max(len(tree.branches) for tree in trees)),
    )


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
