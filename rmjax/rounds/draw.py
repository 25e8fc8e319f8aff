"""A round's answers: drawn by a generator, rewarded, and with what models say of their tokens recorded beside them."""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmjax.data.packing import ForestShape, Tree, arrange, at_most_two_digits, pack
from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated, Generator
from rmjax.rewards.reward import Failure, Reward, Values, checked, rewarded
from rmjax.rounds.files import Round

_log = logging.getLogger(__name__)
TokenMeasure = Callable[[Any, Any], Any]
"""(parameters of all roles, forest) → a number at every token, [R, T], on the host or a device."""
SECONDS = ("sampling", "rewarding", "recording")


class Rewarded(NamedTuple):
    """Answers with their rewards.

    Attributes:
      records: those that have an answer with a reward, with the column `rewards`.
      places: of each, the index of what was asked.
      failed: index of what was asked → its outputs without a reward.
      dropped: reason → answers that could not be had or rewarded; and `records without a reward`.
    """

    records: list[Comparison]
    places: list[int]
    failed: dict[int, list[dict[str, str]]]
    dropped: Counter[str]


@dataclasses.dataclass(frozen=True)
class _Said:
    """A reward whose values are known."""

    name: str
    values: Values

    def __call__(self, records: Sequence[Comparison]) -> Values:
        return self.values


def with_rewards(asked: Sequence[Comparison], found: Generated, reward: Reward) -> Rewarded:
    """A generator's answers with their rewards; what has none is dropped, with its reason."""
    places = places_of(asked, found.records)
    values = checked(found.records, reward(found.records), reward.name)
    kept, dropped = rewarded(found.records, _Said(reward.name, values))
    able = [i for i, each in enumerate(values) if not all(isinstance(value, Failure) for value in each)]
    failed = {
        place: [
            {"output": str(output), "reason": value.reason}
            for output, value in zip(c.outputs, of_outputs, strict=True)
            if isinstance(value, Failure)
        ]
        for place, c, of_outputs in zip(places, found.records, values, strict=True)
    }
    return Rewarded(
        kept, [places[i] for i in able], {n: each for n, each in failed.items() if each}, found.dropped + dropped
    )


def places_of(asked: Sequence[Comparison], answered: Sequence[Comparison]) -> list[int]:
    """Of each answered record the index of what was asked: they are in its order, and some may be absent."""
    found, i = [], 0
    for c in answered:
        while (asked[i].id, asked[i].prompt, asked[i].place) != (c.id, c.prompt, c.place):
            i += 1
        found.append(i)
        i += 1
    return found


def over_tokens(
    measure: TokenMeasure, params: Any, trees: Sequence[Tree], shape: ForestShape, unit: int = 1
) -> list[list[np.ndarray]]:
    """What a measure says of the tokens of every branch of every tree.

    Args:
      shape: of a batch at most; fewer rows where that is enough.
      unit: what the number of rows has to be a multiple of.
    """
    needed = -(-len(arrange(trees, shape.row_tokens, shape.groups)) // unit)
    rows = min(shape.rows, unit * at_most_two_digits(max(1, needed)))
    found: list[list[np.ndarray]] = [[]] * len(trees)
    for forest, places in pack(trees, dataclasses.replace(shape, rows=rows, columns=())):
        values_RT = np.asarray(measure(params, forest), np.float32)
        for r, row in enumerate(places):
            start = 0
            for t in row:
                start += len(trees[t].prefix)
                ends = start + np.cumsum([len(branch) for branch in trees[t].branches])
                found[t] = np.split(values_RT[r, start : ends[-1]], ends[:-1] - start)
                start = int(ends[-1])
    return found


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws rounds.

    Attributes:
      generator: parameters of all roles → what answers with the main model's.
      reward: of the answers.
      samples: answers to a prompt.
      measures: column → (what is recorded there, parameters of all roles → those that it takes).
      trees: a record → its trees, a branch for each answer in their order.
      shape, unit: as in `over_tokens`.
    """

    generator: Callable[[Any], Generator]
    reward: Reward
    samples: int
    measures: Mapping[str, TokenMeasure]
    trees: Callable[[Comparison], list[Tree]]
    shape: ForestShape
    unit: int = 1

    def __call__(self, params: Any, measured: Any, asked: Sequence[Comparison], seed: int) -> Round:
        """The answers to some prompts; `questions` are indices of `asked`.

        Args:
          params: of all roles.
          measured: the same for `measures`, which may have another reference.

        Raises:
          ValueError: no answer has a reward.
        """
        times = [time.perf_counter()]
        answered = self.generator(params)(asked, self.samples, seed)
        times.append(time.perf_counter())
        found = with_rewards(asked, answered, self.reward)
        if not found.records:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in found.dropped.most_common(5))
            raise ValueError(f"no answer of a round has a reward ({reasons}); look at config.reward and what it asks")
        if found.dropped:
            _log.warning("a round: dropped %s", dict(found.dropped))
        times.append(time.perf_counter())
        records = self._recorded(measured, found.records)
        times.append(time.perf_counter())
        spent = {f"seconds_{name}": float(s) for name, s in zip(SECONDS, np.diff(times), strict=True)}
        return Round(records, found.places, measures_of(records, found.dropped) | spent, found.failed)

    def _recorded(self, params: Any, records: Sequence[Comparison]) -> list[Comparison]:
        if not self.measures:
            return list(records)
        parts = [self.trees(c) for c in records]
        owner = [i for i, trees in enumerate(parts) for _ in trees]
        columns: list[dict[str, Any]] = [dict(c.columns) for c in records]
        for field, measure in self.measures.items():
            values = over_tokens(measure, params, [tree for trees in parts for tree in trees], self.shape, self.unit)
            lists: list[list[tuple[float, ...]]] = [[] for _ in records]
            for i, branches in zip(owner, values, strict=True):
                lists[i] += [tuple(map(float, branch)) for branch in branches]
            for own, each in zip(columns, lists, strict=True):
                own[field] = tuple(each)
        return [dataclasses.replace(c, columns=own) for c, own in zip(records, columns, strict=True)]


def measures_of(records: Sequence[Comparison], dropped: Mapping[str, int]) -> dict[str, float]:
    """What there is to log of a round's answers.

    `reward`, `reward_std` (over all answers), `equal_groups` (fraction of prompts whose answers have one reward), `truncated`,
    `empty` (fractions), `answer_tokens`, `answers`, `dropped` (answers), and where log-probabilities of both are recorded
    `kl`, of the policy that answered from the reference, in nats a token (mean of e⁻ˣ − 1 + x, x = log π / π_ref).
    """
    rewards = [np.asarray(c.columns["rewards"], np.float64) for c in records]
    every = np.concatenate(rewards)
    found = {
        "reward": float(every.mean()), "reward_std": float(every.std()), "answers": float(len(every)),
        "equal_groups": float(np.mean([each.max() == each.min() for each in rewards])),
        "empty": _mean([not output.strip() for c in records for output in c.outputs]),
        "dropped": float(sum(count for reason, count in dropped.items() if reason != "records without a reward")),
    }  # fmt: skip
    if all("token_ids" in c.columns for c in records):
        found["answer_tokens"] = _mean([len(ids) for c in records for ids in c.columns["token_ids"]])
    if all("truncated" in c.columns for c in records):
        found["truncated"] = _mean([cut for c in records for cut in c.columns["truncated"]])
    if all({"log_probs", "reference_log_probs"} <= c.columns.keys() for c in records):
        own, other = (_joined(records, field) for field in ("log_probs", "reference_log_probs"))
        found["kl"] = _mean(np.expm1(other - own) + own - other)
    return found


def _joined(records: Sequence[Comparison], field: str) -> np.ndarray:
    """What a column has over tokens, of all answers one after the other."""
    return np.concatenate([np.asarray(each, np.float64) for c in records for each in c.columns[field]])


def _mean(values: Any) -> float:
    return float(np.mean(np.asarray(values, np.float64)))
