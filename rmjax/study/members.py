"""What is measured of a sweep's member: the last value of everything that its training logged."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.train.metrics import read_metrics

_OF_TIME = ("time", "step")


def refuse_unlogged(flag: str, names: Sequence[str], cells: Sequence[Cell]) -> None:
    """ValueError where no member of a sweep of trainings can log a metric: it has another form, or is of an evaluation that none
    has. What a method calls its terms is known only when it runs."""
    evals = dict.fromkeys(f"eval/{name}/" for cell in cells for name in cell.config.get("evals", {}))
    for name in names:
        if name != "steps" and not name.startswith(("train/", *evals)):
            known = ", ".join(f"{each}…" for each in ("train/", *evals))
            raise ValueError(f"{flag}={name}: no member logs that; there are steps, {known}")


def last_metrics(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Rows of metrics.jsonl: each metric's last value, and `steps`; none where the experiment logs no metrics."""
    path = workdir / cell.name / "metrics.jsonl"
    last: dict[str, float] = {}
    for line in read_metrics(path) if path.exists() else []:
        last |= {name: value for name, value in line.items() if name not in _OF_TIME} | {"steps": line["step"]}
    for name, value in last.items():
        yield Row(cell.name, cell.name, name, float(value))
