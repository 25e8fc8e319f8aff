"""A study: cells, how one is run, and what is measured of it. `run_cell` does one, wherever it is called."""

import dataclasses
import hashlib
import inspect
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from rmjax.evaluate.report import environment
from rmjax.evaluate.rows import Row
from rmjax.files import write_json, write_text
from rmjax.locks import locked
from rmjax.study.cells import Cell, placed
from rmjax.study.fingerprints import Fingerprint, difference, fingerprint

RESULT = "cell.json"
IDENTITY = "study.json"
SUPERSEDED = "superseded"
Status = Literal["new", "begun", "done", "stopped", "failed", "changed"]


def _nothing(workdir: Path) -> None:
    """A study without data of its own."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What is run and measured.

    Attributes:
      name: of the study; a folder holds one.
      cells: all runs.
      train: (config, folder) → makes what the folder holds, from wherever it stopped; nothing where it is whole.
      measure: (cell, the study's folder) → rows in long form, of a folder that `train` made.
      prepare: makes the data in the study's folder that configs name as `work:PATH`; called again, it changes nothing.
      discards: whether a cell's checkpoints are removed once it is measured.
    """

    name: str
    cells: tuple[Cell, ...]
    train: Callable[[ConfigDict, Path], object]
    measure: Callable[[Cell, Path], Iterable[Row]]
    prepare: Callable[[Path], None] = _nothing
    discards: bool = False

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"{self.name}: two cells are called {', '.join(sorted(twice))}; give each a name of its own"
            )
        for cell in self.cells:
            if unknown := set(cell.needs) - set(names):
                raise ValueError(f"{self.name}: cell {cell.name} needs {', '.join(sorted(unknown))}, which is no cell")

    @property
    def by_name(self) -> dict[str, Cell]:
        """Name → cell."""
        return {cell.name: cell for cell in self.cells}


@dataclasses.dataclass(frozen=True)
class Result:
    """What is on the disk of a cell.

    Attributes:
      status: "changed": of another config, data set or measure; `why` says which.
      rows: what was measured; none unless the status is "done" or "stopped".
      why: of a cell that was stopped, failed or changed.
      seconds: that its training and measuring took, all attempts together.
    """

    status: Status
    rows: tuple[Row, ...] = ()
    why: str = ""
    seconds: float = 0.0


def claim_folder(study: Study, workdir: Path) -> None:
    """Writes down which study a folder holds.

    Raises:
      ValueError: it holds another one, or something else.
    """
    path = workdir / IDENTITY
    found = _read(path) if path.exists() else None
    if found is not None and found.get("name") != study.name:
        raise ValueError(f"{workdir} holds the study {found.get('name')!r}, not {study.name!r}; use another workdir")
    if found is None and (workdir / "model.json").exists():
        raise ValueError(f"{workdir} holds a run, not a study; use another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    if found is None:
        write_json(path, {"name": study.name})


def made_by(study: Study, cell: Cell, workdir: Path) -> Fingerprint:
    """What the cell's result would depend on, made now."""
    return fingerprint(cell, study.by_name, workdir, code_digest(study.measure))


def code_digest(function: Callable[..., Any]) -> str:
    """Of the whole file that a function stands in: what it calls there counts too."""
    module = inspect.getmodule(function)
    try:
        text = inspect.getsource(module) if module is not None else repr(function)
    except OSError:  # made in an interpreter
        text = repr(function)
    return hashlib.sha256(text.encode()).hexdigest()


def result_of(study: Study, cell: Cell, workdir: Path) -> Result:
    """What is on the disk of a cell.

    Raises:
      ValueError: its file is no result; the message names it.
    """
    path = workdir / cell.name / RESULT
    if not path.exists():
        return Result("new")
    found = _read(path)
    try:
        changed = difference(found["made_by"], made_by(study, cell, workdir))
        if changed:
            return Result("changed", why=changed, seconds=found["seconds"])
        rows = tuple(Row(**row) for row in found.get("rows", ()))
        return Result(found["status"], rows, found.get("why", ""), found["seconds"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the result of a cell ({error}); remove it to run the cell again") from error


def result_rows(folder: Path) -> tuple[Row, ...]:
    """The rows of a cell that another one needs; ValueError where it has no result."""
    path = folder / RESULT
    found = _read(path) if path.exists() else {}
    if found.get("status") != "done":
        raise ValueError(f"{path} has no result; run that cell first")
    return tuple(Row(**row) for row in found["rows"])


def run_cell(study: Study, name: str, workdir: Path) -> Result:
    """Trains and measures one cell, from wherever it stopped; nothing where it is done.

    Raises:
      InUseError: another process is at the cell.
      KeyError: there is no such cell.
    """
    cell, folder = study.by_name[name], workdir / name
    found = result_of(study, cell, workdir)
    if found.status in ("done", "stopped"):
        return found
    if found.status == "changed":
        _set_aside(study, cell, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "cell"):  # the folder's own lock is that of the training run
        return _run(study, cell, workdir, 0.0 if found.status == "changed" else found.seconds)


def _run(study: Study, cell: Cell, workdir: Path, before: float) -> Result:
    start, folder = time.monotonic(), workdir / cell.name
    write_result(study, cell, workdir, Result("begun", seconds=before))
    study.train(placed(cell.config, workdir), folder)
    rows = tuple(study.measure(cell, workdir))
    found = Result("done", rows, seconds=before + time.monotonic() - start)
    write_result(study, cell, workdir, found)
    if study.discards:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return found


def write_result(study: Study, cell: Cell, workdir: Path, result: Result) -> None:
    """The cell's file."""
    about = {
        "status": result.status,
        "why": result.why,
        "seconds": round(result.seconds, 1),
        "values": _plain(cell.values),
    }
    rows = [dataclasses.asdict(row) for row in result.rows]
    where = (
        environment() if result.status == "done" else {}
    )  # else it is written by the process that waits, on no device
    known = about | {"made_by": made_by(study, cell, workdir), "rows": rows, **where}
    folder = workdir / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT, json.dumps(known, ensure_ascii=False) + "\n")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _set_aside(study: Study, cell: Cell, workdir: Path) -> None:
    """Keeps what was made by another config or from other data, under another name: only its owner may delete it. Where the
    measure alone is another one, the training stays."""
    folder = workdir / cell.name
    before, now = _read(folder / RESULT)["made_by"], made_by(study, cell, workdir)
    if difference(before, now | {"measure": before["measure"]}):
        number = 1
        while (target := workdir / SUPERSEDED / f"{cell.name}-{number}").exists():
            number += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        print(f"{cell.name}: what was there is in {target} now", file=sys.stderr)
    else:
        (folder / RESULT).unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not an object; remove it to make it again")
    return found


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Each after those that it needs, else as given.

    Raises:
      ValueError: cells that need each other.
    """
    left = list(cells)
    found: list[Cell] = []
    while left:
        done = {cell.name for cell in found}
        ready = [cell for cell in left if set(cell.needs) <= done]
        if not ready:
            raise ValueError(f"the cells {', '.join(cell.name for cell in left)} need each other")
        found += ready
        left = [cell for cell in left if cell not in ready]
    return found
