"""A study: cells, how one is run, and what is measured of it. `run_cell` does one, wherever it is called.

A cell's folder has `cell.json`, which `run_cell` alone writes, under the cell's lock: the fingerprint under which it began, and
its rows when it is done. Why there are none is in `failed.json`, by `run_cell` where it can still say so and by the process that
waits for cells where there is one, or in `stopped.json`, by the latter.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ml_collections import ConfigDict

from rmjax.evaluate.report import environment
from rmjax.evaluate.rows import Row
from rmjax.files import write_json, write_text
from rmjax.locks import InUseError, locked
from rmjax.study.cells import Cell, placed
from rmjax.study.fingerprints import Fingerprint, absent, difference, fingerprint, lacking
from rmjax.study.moved import follow, places
from rmjax.terminal import printable

RESULT, FAILED, STOPPED = "cell.json", "failed.json", "stopped.json"
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
      discards: whether a cell's checkpoints are removed once it is measured. Those of a cell that another one needs stay.
      code: further modules that training and measuring depend on, beside the one of `measure`.
    """

    name: str
    cells: tuple[Cell, ...]
    train: Callable[[ConfigDict, Path], object]
    measure: Callable[[Cell, Path], Iterable[Row]]
    prepare: Callable[[Path], None] = _nothing
    discards: bool = False
    code: tuple[ModuleType, ...] = ()

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
      status: "changed": made by another config, data set or measure; `why` says which.
      rows: what was measured; none unless the status is "done".
      why: of a cell that was stopped, failed or changed.
      seconds: that its training and measuring took, all finished attempts together.
      where: device and versions, of a cell that is done.
    """

    status: Status
    rows: tuple[Row, ...] = ()
    why: str = ""
    seconds: float = 0.0
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def holds(study: Study, workdir: Path) -> bool:
    """Whether a folder is this study's; False where it may become so.

    Raises:
      ValueError: it holds another study, or a run.
    """
    path = workdir / IDENTITY
    found = _read(path) if path.exists() else None
    if found is not None and found.get("name") != study.name:
        raise ValueError(f"{workdir} holds the study {found.get('name')!r}, not {study.name!r}; use another workdir")
    if found is None and (workdir / "model.json").exists():
        raise ValueError(f"{workdir} holds a run, not a study; use another workdir")
    return found is not None


def claim_folder(study: Study, workdir: Path) -> None:
    """Writes down which study a folder holds; errors as `holds`."""
    if not holds(study, workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / IDENTITY, {"name": study.name})


def check_data(study: Study, workdir: Path) -> None:
    """ValueError that names the cells whose data are not there, before anything is started. Cells that are done need none."""
    for cell in study.cells:
        if result_of(study, cell, workdir).status != "done" and (missing := absent(cell, workdir)):
            raise ValueError(f"{cell.name}: {missing[0]}")


def made_by(study: Study, cell: Cell, workdir: Path) -> Fingerprint:
    """What the cell's result would depend on, made now."""
    return fingerprint(cell, study.by_name, workdir, code_digest(study.measure, study.code))


def code_digest(measure: Callable[..., Any], modules: Sequence[ModuleType] = ()) -> str:
    """Of the whole files that a function and some modules stand in: what they call there counts too. As they are when this is
    first asked for; a process runs what it has imported."""
    while isinstance(measure, functools.partial):
        measure = measure.func
    own = inspect.getmodule(measure)
    return hashlib.sha256("".join(map(_source, ([own] if own else [measure]) + list(modules))).encode()).hexdigest()


@functools.cache
def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # made in an interpreter
        return repr(thing)


def result_of(study: Study, cell: Cell, workdir: Path) -> Result:
    """What is on the disk of a cell.

    Raises:
      ValueError: its file is no result; the message names it.
    """
    folder = workdir / cell.name
    if not (folder / RESULT).exists():
        return _without_result(folder, Result("new"))
    found = _read(folder / RESULT)
    try:
        changed = difference(found["made_by"], made_by(study, cell, workdir))
        if changed:
            return Result("changed", why=changed, seconds=found["seconds"])
        if found["status"] == "done":
            rows = tuple(Row(**{**row, "value": float(row["value"])}) for row in found["rows"])
            return Result("done", rows, seconds=found["seconds"], where=found["where"])
        return _without_result(folder, Result("begun", seconds=found["seconds"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / RESULT}: not the result of a cell ({error}); remove it to run the cell again"
        ) from error


def _without_result(folder: Path, found: Result) -> Result:
    status: Status
    for name, status in ((FAILED, "failed"), (STOPPED, "stopped")):
        if (folder / name).exists():
            return dataclasses.replace(found, status=status, why=str(_read(folder / name).get("why", "")))
    return found


def leave_word(folder: Path, name: str, why: str, **more: str) -> None:
    """Says beside a cell's file why it has no result: `name` is FAILED or STOPPED."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, {"why": why, **more})


def result_rows(folder: Path) -> tuple[Row, ...]:
    """The rows of a cell that another one needs; ValueError where it has no result."""
    path = folder / RESULT
    found = _read(path) if path.exists() else {}
    if found.get("status") != "done":
        raise ValueError(f"{path} has no result; run that cell first")
    return tuple(Row(**{**row, "value": float(row["value"])}) for row in found["rows"])


def run_cell(study: Study, name: str, workdir: Path) -> Result:
    """Trains and measures one cell, from wherever it stopped; nothing where it is done. An error is written down in its folder.

    Raises:
      InUseError: another process is at the cell.
      KeyError: there is no such cell.
      ValueError: a cell that it needs has no result yet, data are not there, or this process lacks the cell's environment.
    """
    cell, folder = study.by_name[name], workdir / name
    _require_environment(cell)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir / f"{name}.cell"):  # beside the folder, which may be set aside; its own lock is the training's
        try:
            return _locked(study, cell, workdir)
        except InUseError:  # another process is at its data
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk is what the error says
                leave_word(folder, FAILED, printable(f"{type(error).__name__}: {error}"))
            raise


def _locked(study: Study, cell: Cell, workdir: Path) -> Result:
    found, folder = result_of(study, cell, workdir), workdir / cell.name
    if found.status == "done":
        return found
    for needed in cell.needs:
        if (status := result_of(study, study.by_name[needed], workdir).status) != "done":
            raise ValueError(f"{cell.name} needs {needed}, which is {status}; run that first")
    _require_data(study, cell, workdir)
    if found.status == "changed":
        _set_aside(study, cell, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    for word in (FAILED, STOPPED):
        (folder / word).unlink(missing_ok=True)
    return _run(study, cell, workdir, 0.0 if found.status == "changed" else found.seconds)


def _require_data(study: Study, cell: Cell, workdir: Path) -> None:
    """Makes the study's data where the cell lacks some, as it does where it is the first to run in its folder.

    Raises:
      InUseError: another process makes them.
      ValueError: data that are not there, and that the study does not make.
    """
    if lacking(cell, workdir):
        with locked(workdir / "prepare"):
            study.prepare(workdir)
    if missing := absent(cell, workdir):
        raise ValueError(f"{cell.name}: {missing[0]}")
    if missing := lacking(cell, workdir):
        raise ValueError(
            f"{cell.name}: {missing[0]} is not in {workdir}, whose data were made for another config; use a new workdir"
        )


def _require_environment(cell: Cell) -> None:
    lacking = [
        f"{name}={value}"
        for name, value in cell.environment.items()
        if not set(value.split()) <= set(os.environ.get(name, "").split())
    ]
    if lacking:
        raise ValueError(
            f"{cell.name} needs a process that started with {' '.join(lacking)}; use an engine that starts processes"
        )


def _run(study: Study, cell: Cell, workdir: Path, before: float) -> Result:
    start, folder, now = time.monotonic(), workdir / cell.name, made_by(study, cell, workdir)
    there, lie = folder / RESULT, places(cell, workdir)
    if there.exists() and follow(folder, _read(there).get("places", {}), lie):
        print(f"{cell.name}: goes on with the same data in another place", file=sys.stderr)
    write = functools.partial(_write, study, cell, folder, {"made_by": now, "places": lie})
    write(Result("begun", seconds=before))
    study.train(placed(cell.config, workdir.resolve()), folder)
    rows = tuple(study.measure(cell, workdir))
    found = Result("done", rows, seconds=before + time.monotonic() - start, where=environment())
    write(found)
    if changed := difference(now, made_by(study, cell, workdir)):
        print(f"{cell.name}: while it ran there came {changed}; it will be run again", file=sys.stderr)
    if study.discards and not any(name == cell.name for other in study.cells for name in other.needs):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return found


def _write(study: Study, cell: Cell, folder: Path, begun: Mapping[str, Any], result: Result) -> None:
    """The cell's file, under the fingerprint with which it began, and where its data lay then."""
    rows = [dataclasses.asdict(row) | {"value": plain(row.value)} for row in result.rows]
    known = {"study": study.name, "status": result.status, "seconds": round(result.seconds, 1), "values": cell.values}
    text = json.dumps({**known, **begun, "where": result.where, "rows": rows}, ensure_ascii=False, allow_nan=False)
    write_text(folder / RESULT, text + "\n")


def plain(value: float) -> float | str:
    """What JSON can hold: "nan" and "inf" for what it lacks."""
    return value if math.isfinite(value) else str(value)


def _set_aside(study: Study, cell: Cell, workdir: Path) -> None:
    """Keeps what was made by another config or from other data, under another name: only its owner may delete it. Where the
    code that measures alone is another one, the training stays."""
    folder = workdir / cell.name
    before, now = _read(folder / RESULT)["made_by"], made_by(study, cell, workdir)
    if not difference(before, now | {"code": before["code"]}):
        return
    number = 1
    while (target := workdir / SUPERSEDED / f"{cell.name}-{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    print(f"{cell.name}: what was there is in {target} now", file=sys.stderr)


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
    found: dict[str, Cell] = {}
    while left:
        ready = next((cell for cell in left if set(cell.needs) <= found.keys()), None)
        if ready is None:
            raise ValueError(f"the cells {', '.join(cell.name for cell in left)} need each other")
        found[ready.name] = ready
        left.remove(ready)
    return list(found.values())
