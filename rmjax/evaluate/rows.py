"""Rows in long form: one measured value a row, with what it is of. Every evaluator gives them, every summary is made of them."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

from rmjax.evaluate.statistics import Interval, difference, interval


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One measured value.

    Attributes:
      item: what was measured, say a record's id.
      cluster: rows that share it are resampled together, say the prompt.
      metric: what the value is: `credit`, `gap`, …
      value: in the metric's unit.
      groups: column → value by which rows may be grouped, such as category or policy.
    """

    item: str
    cluster: Hashable
    metric: str
    value: float
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)


def of_metric(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows with this metric, in their order."""
    return [row for row in rows if row.metric == metric]


def values(rows: Sequence[Row]) -> list[float]:
    """Their values, in their order."""
    return [row.value for row in rows]


def clusters(rows: Sequence[Row]) -> list[Hashable]:
    """Their clusters, in their order."""
    return [row.cluster for row in rows]


def grouped(rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    """Value of a group column → its rows, sorted by that value; rows without the column are in no group."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if column in row.groups:
            found.setdefault(row.groups[column], []).append(row)
    return dict(sorted(found.items()))


def mean(rows: Sequence[Row], seed: int = 0) -> Interval:
    """Mean of the values with its 95 % interval, clusters resampled."""
    return interval(values(rows), clusters(rows), seed)


def gain(first: Sequence[Row], second: Sequence[Row], seed: int = 0) -> Interval:
    """Mean of first minus second with its 95 % interval, paired row by row; of one metric, and of the same items in one order.

    Raises:
      ValueError: the items are not the same.
    """
    if [row.item for row in first] != [row.item for row in second]:
        raise ValueError("a paired difference of rows of different items; evaluate both scorers on the same records")
    return difference(values(first), values(second), clusters(first), seed)
