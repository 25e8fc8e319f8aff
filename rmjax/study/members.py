"""What is measured of a sweep's member: the last value of everything that its training logged."""

from collections.abc import Iterator
from pathlib import Path

from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.train.metrics import read_metrics

_OF_TIME = ("time", "step")


def last_metrics(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Rows of metrics.jsonl: each metric's last value, and `steps`; none where the experiment logs no metrics."""
    path = workdir / cell.name / "metrics.jsonl"
    last: dict[str, float] = {}
    for line in read_metrics(path) if path.exists() else []:
        last |= {name: value for name, value in line.items() if name not in _OF_TIME} | {"steps": line["step"]}
    for name, value in last.items():
        yield Row(cell.name, cell.name, name, float(value))
