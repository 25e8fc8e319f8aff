"""What is committed of a study: lines in long form, each a mean over seeds and items, or a paired difference of two such.

A line is a dict: its axes (`arm`, `domain`, …), `metric`, `value`, `low`, `high`, `n`, and `seeds`, each seed's own mean. What is
timed gives ratios (with their `median`) and spreads (with the `runs`); what is counted once gives facts, of a value alone.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.evaluate.rows import Row, clusters, of_metric, values
from rmjax.evaluate.statistics import OverSeeds, over_seeds, paired, ratio
from rmjax.files import write_text
from rmjax.study.table import Table, interval_cell, seeds_cell

Line = dict[str, Any]
Runs = Sequence[Sequence[Row]]
"""One list of rows for each seed."""


def selected(runs: Runs, metric: str, groups: Mapping[str, str]) -> list[list[Row]]:
    """Of each seed the rows of a metric whose groups have these values."""
    return [[row for row in of_metric(rows, metric) if groups.items() <= row.groups.items()] for rows in runs]


def mean_line(axes: Mapping[str, Any], metric: str, runs: Runs, *, own_items: bool = False) -> Line:
    """The mean over seeds and items, clusters resampled, each with its values of all seeds.

    Args:
      axes: of the line.
      metric: of the line.
      runs: seed → its rows.
      own_items: whether each seed is tested on items of its own, say on answers that its own policy gave to the same prompts.
        Without it every seed has to have the same items.

    Raises:
      ValueError: a seed without rows, or with other items than it should have.
    """
    _require_items(axes, metric, [runs], own_items)
    return _line(axes, metric, over_seeds([values(rows) for rows in runs], [clusters(rows) for rows in runs]))


def difference_line(
    axes: Mapping[str, Any], metric: str, first: Runs, second: Runs, *, own_items: bool = False
) -> Line:
    """The mean of first minus second, paired by item and seed, clusters resampled; as `mean_line`. Of one seed both always have
    the same items."""
    _require_items(axes, metric, [first, second], own_items)
    pairs = [values(rows) for rows in first], [values(rows) for rows in second]
    return _line(axes, metric, paired(*pairs, [clusters(rows) for rows in first]))


def ratio_line(axes: Mapping[str, Any], metric: str, first: Sequence[Row], second: Sequence[Row]) -> Line:
    """The geometric mean of first over second, formed within each item, say a round; errors as `mean_line`."""
    _require_items(axes, metric, [[first], [second]], own_items=False)
    each = values(first), values(second)
    median = statistics.median(one / other for one, other in zip(*each, strict=True))
    return {**axes, "metric": metric, **ratio(*each, clusters(first)), "median": median}


def spread_line(axes: Mapping[str, Any], metric: str, runs: Sequence[float]) -> Line:
    """The median of some runs as the value, between the lowest and the highest; and each of them."""
    sides = {"value": statistics.median(runs), "low": min(runs), "high": max(runs)}
    return {**axes, "metric": metric, **sides, "n": len(runs), "runs": list(runs)}


def fact_lines(rows: Iterable[Row], axes: Mapping[str, Any] | None = None) -> list[Line]:
    """A line for each row as it is, with the row's groups among the axes."""
    return [{**(axes or {}), **row.groups, "metric": row.metric, "value": row.value} for row in rows]


def _require_items(axes: Mapping[str, Any], metric: str, arms: Sequence[Runs], own_items: bool) -> None:
    first, *others = [[[row.item for row in rows] for rows in runs] for runs in arms]
    alike = all(items == first for items in others) and (own_items or all(items == first[0] for items in first))
    if not first or not all(first) or not alike:
        raise ValueError(f"{metric} of {dict(axes)}: the runs have no rows, or rows of different items")


def _line(axes: Mapping[str, Any], metric: str, found: OverSeeds) -> Line:
    return {**axes, "metric": metric, **found["mean"], "seeds": list(found["seeds"])}


def pivot(
    lines: Iterable[Line],
    rows: Sequence[str],
    columns: Sequence[tuple[str, str]] | str,
    cell: Callable[[Line], str] = lambda line: line_cell(line),
) -> Table:
    """Lines as a table.

    Args:
      lines: each combination of `rows` and column once.
      rows: axes, whose values begin each line of the table.
      columns: [(metric, head), …], in this order, or the axis whose values are the heads.
      cell: of a line.

    Raises:
      ValueError: two lines for one cell.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    heads = {} if isinstance(columns, str) else dict(columns)
    for line in lines:
        head = str(line[columns]) if isinstance(columns, str) else heads.get(line["metric"])
        if head is None:
            continue
        if isinstance(columns, str):
            heads[head] = head
        place = found.setdefault(tuple(str(line[axis]) for axis in rows), {})
        if head in place:
            raise ValueError(f"two lines for {head} of {dict(zip(rows, (line[axis] for axis in rows), strict=True))}")
        place[head] = cell(line)
    shown = list(dict.fromkeys(heads.values()))
    return [[*rows, *shown], *([*key, *(place.get(head, "–") for head in shown)] for key, place in found.items())]


def line_cell(line: Line, sign: str = "") -> str:
    """`0.912 (0.880 to 0.940); 0.9 0.92`: mean, interval, each seed's own."""
    return seeds_cell({"mean": line, "seeds": line["seeds"]}, sign)


def mean_cell(line: Line) -> str:
    """`0.912 (0.880 to 0.940)`: mean and interval."""
    return interval_cell({"value": line["value"], "low": line["low"], "high": line["high"], "n": line["n"]})


def span_cell(line: Line, digits: int = 3) -> str:
    """`9.49 (9.23–9.73)`: of a `spread_line`, median, lowest and highest; whole numbers have all their digits."""
    low, value, high = (_digits(line[side], digits) for side in ("low", "value", "high"))
    return f"{value} ({low}–{high})"


def _digits(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def factor_cell(line: Line, middle: str = "value") -> str:
    """`1.08 (1.03 to 1.13)`: of a `ratio_line`, its mean (or `median`) and the mean's interval."""
    return f"{line[middle]:.2f} ({line['low']:.2f} to {line['high']:.2f})"


def signed_cell(line: Line) -> str:
    """As `line_cell`, of a difference: every number has its sign."""
    return line_cell(line, "+")


def spread_cell(line: Line) -> str:
    """Each seed's own mean."""
    return " ".join("–" if value is None else f"{value:.3f}" for value in line["seeds"])


# --- the file that is committed ----------------------------------------------------------------------------------------


def write_summary(path: Path, study: str, about: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """A line of the file for each measure of an arm: lines that follow each other with the same first axis and metric share one.

    Args:
      path: of the file.
      study: its name.
      about: config, device, versions, command: what makes the numbers again.
      lines: of the summary.
    """
    head = json.dumps({"study": study, "about": about}, ensure_ascii=False)[:-1]
    together = itertools.groupby(lines, lambda line: (next(iter(line.values())), line.get("metric")))
    body = ",\n".join(
        ", ".join(json.dumps(_rounded(line), ensure_ascii=False) for line in found) for _, found in together
    )
    write_text(path, f'{head}, "lines": [\n{body}\n]}}\n')


def _rounded(line: Line) -> Line:
    """Six digits: more than any table shows and any interval means."""
    return {key: _six(value) for key, value in line.items()}


def _six(value: Any) -> Any:
    if isinstance(value, list):
        return [_six(each) for each in value]
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() and abs(value) >= 1 else float(f"{value:.6g}")  # counts stay whole


def read_summary(path: Path, study: str) -> tuple[dict[str, Any], list[Line]]:
    """(about, lines) of a file that `write_summary` wrote.

    Raises:
      ValueError: it is of another study, or no summary.
      FileNotFoundError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        name, about, lines = found["study"], found["about"], found["lines"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the results of a study ({error}); bring it back, or run the study again"
        ) from error
    if name != study:
        raise ValueError(f"{path} has the results of the study {name!r}, not of {study!r}; name another file")
    return about, lines
