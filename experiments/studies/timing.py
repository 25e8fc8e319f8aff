"""What studies of cost share: arms whose steps are timed in turn, in one process, as rows and as lines."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.benchmarks import Arm, timed
from rmjax.evaluate.rows import Row, values
from rmjax.study.summary import Line, fact_lines, ratio_line
from rmjax.study.table import markdown

SECONDS, RATIO = "seconds", "time_ratio"
ALONE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""A cell's environment: a process of its own that compiles everything anew, so that its peak can be compared."""


def no_training(config: ConfigDict, folder: Path) -> None:
    """Of studies that take steps only to time them."""


def timing_rows(built: Mapping[str, Arm], rounds: int) -> Iterator[Row]:
    """The seconds of each arm in each round, which is the item, and the bytes that the compiler plans for its step."""
    for arm, found in timed(built, rounds).items():
        for number, seconds in enumerate(found):
            yield Row(f"round {number}", number, SECONDS, seconds, {"arm": arm})
    for arm, each in built.items():
        for kind, planned in each.planned_bytes().items():
            yield Row("step", "step", f"planned_{kind}", planned, {"arm": arm})


def timing_lines(rows: Sequence[Row], over: Mapping[str, Sequence[str]]) -> list[Line]:
    """The medians of all arms, and the ratios of some; then what was counted once.

    Args:
      rows: of `timing_rows`, and others.
      over: arm → arms by whose times, added up, its own is divided within each round.
    """
    seconds: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == SECONDS:
            seconds.setdefault(row.groups["arm"], []).append(row)
    lines = [ratio_line({"arm": arm, "over": " + ".join(others)}, RATIO, seconds[arm], _sum([seconds[x] for x in others]))
             for arm, others in over.items()]  # fmt: skip
    medians = [Row("step", "step", "median_seconds", statistics.median(values(found)), {"arm": arm})
               for arm, found in seconds.items()]  # fmt: skip
    return lines + fact_lines([*medians, *(row for row in rows if row.metric != SECONDS)])


def _sum(arms: Sequence[Sequence[Row]]) -> list[Row]:
    return [dataclasses.replace(rows[0], value=sum(values(rows))) for rows in zip(*arms, strict=True)]


def of_arms(lines: Sequence[Line], metric: str) -> dict[str, Line]:
    """Arm → its line of a metric."""
    return {line["arm"]: line for line in lines if line["metric"] == metric}


def rate_lines(rows: Sequence[Row], metric: str, sides: Sequence[str], kinds: Iterable[str]) -> list[Line]:
    """Of each kind both sides' median rates, and the first one's over the second's within each round."""
    lines: list[Line] = []
    for kind in kinds:
        each = [[r for r in rows if r.metric == metric and r.groups == {"side": s, "kind": kind}] for s in sides]
        lines += [
            {"kind": kind, "side": side, "metric": metric, "value": statistics.median(values(found))}
            for side, found in zip(sides, each, strict=True)
        ]
        lines.append(ratio_line({"kind": kind}, "ratio", *each))
    return lines


def rate_table(lines: Sequence[Line], metric: str, sides: Sequence[str], kinds: Mapping[str, str], what: str) -> str:
    """The same as a table of what is said of each kind."""
    table = [[what, *sides, "ratio, median (interval of the mean)"]]
    for kind, said in kinds.items():
        of_kind = [line for line in lines if line.get("kind") == kind]
        rates = {line["side"]: f"{line['value']:,.0f}" for line in of_kind if line["metric"] == metric}
        ratio = next(line for line in of_kind if line["metric"] == "ratio")
        shown = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        table.append([said, *(rates[side] for side in sides), shown])
    return markdown(table)
