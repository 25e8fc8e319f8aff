"""What a reward is, and how it becomes a column of records."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from rmjax.data.record import Comparison, select


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an output has no reward. It is no number: it cannot be added up or averaged by accident."""

    reason: str


Value = float | Failure
Values = list[list[Value]]
"""[record][output]."""
Verifier = Callable[[str, str, Sequence[str]], float | Failure]
"""(prompt, output, references) → a value; the answers that it is checked against stand in `references`."""


class RewardError(ValueError):
    """A reward gave another number of values than there are outputs; the message names the record."""


class Reward(Protocol):
    """Records → a value for every output; higher is better."""

    @property
    def name(self) -> str:
        """For logs and files."""
        ...

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """One finite number or `Failure` per output, in order. No output is dropped here, none gets a default."""
        ...


def value_of(found: object) -> Value:
    """A finite number as a float; anything else, NaN, True and None among it, is a failure."""
    if isinstance(found, Failure):
        return found
    if isinstance(found, bool) or not isinstance(found, int | float):
        return Failure(f"not a number but {type(found).__name__}")
    try:
        value = float(found)
    except OverflowError:
        return Failure("not finite")
    return value if math.isfinite(value) else Failure("not finite")


def checked(records: Sequence[Comparison], values: Sequence[Sequence[object]], name: str) -> Values:
    """The values, each through `value_of`. RewardError where their number is wrong: which is whose would be a guess."""
    if len(values) != len(records):
        raise RewardError(f"{name}: {len(records)} records have {len(values)} lists of rewards; give one for each")
    for record, found in zip(records, values, strict=True):
        if len(found) != len(record.outputs):
            place = record.place or record.id or repr(record.prompt[:40])
            raise RewardError(
                f"{place}: {name} gave {len(found)} rewards for {len(record.outputs)} outputs; give one for each"
            )
    return [[value_of(each) for each in found] for found in values]


@dataclasses.dataclass(frozen=True)
class Verified:
    """A function of one output as a reward. What it raises is a failure of that output alone."""

    name: str
    verify: Verifier

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        found = [[self._one(c, output) for output in c.outputs] for c in records]
        return checked(records, found, self.name)

    def _one(self, c: Comparison, output: str) -> object:
        try:
            return self.verify(c.prompt, output, c.references)
        except Exception as error:  # a verifier may be anybody's code: one answer must not end the run
            return Failure(type(error).__name__)


def rewarded(records: Sequence[Comparison], reward: Reward) -> tuple[list[Comparison], Counter[str]]:
    """The records with their outputs' rewards in the column `rewards`, and what was dropped.

    An output without a reward is dropped with all that is known of it, and a record that this leaves without outputs. The counter
    has the reasons, and `records without a reward`.
    """
    kept, dropped = [], Counter[str]()
    for c, values in zip(records, checked(records, reward(records), reward.name), strict=True):
        good = [n for n, value in enumerate(values) if not isinstance(value, Failure)]
        dropped.update(value.reason for value in values if isinstance(value, Failure))
        if not good:
            dropped["records without a reward"] += 1
            continue
        c = c if len(good) == len(values) else select(c, good)
        kept.append(dataclasses.replace(c, columns={**c.columns, "rewards": tuple(values[n] for n in good)}))
    return kept, dropped
