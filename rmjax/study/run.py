"""Runs a study's cells on an engine: in their order, some at a time, again where one failed, stopped where a rule says so."""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from rmjax.locks import locked
from rmjax.study.cells import Cell
from rmjax.study.engines import Engine, Handle
from rmjax.study.stopping import History, Rule
from rmjax.study.study import Result, Study, claim_folder, in_order, result_of, write_result
from rmjax.terminal import printable
from rmjax.train.metrics import read_metrics

LOG = "log.txt"
_SAVING = 120.0  # seconds that a cell may take to save when it is asked to end
_EVERY = 30.0  # seconds between lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """When running cells are stopped.

    Attributes:
      rule: of `rmjax.study.stopping`.
      metric: of metrics.jsonl, say "eval/unseen/accuracy".
      smallest: whether smaller is better.
    """

    rule: Rule
    metric: str
    smallest: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a run.

    Attributes:
      command: cell's name → the command that runs it in a process of its own.
      retries: further attempts for a cell that failed.
      early_stop: None: every cell runs to its end.
      every: seconds between two looks at what runs.
    """

    command: Callable[[str], Sequence[str]]
    retries: int = 1
    early_stop: EarlyStop | None = None
    every: float = 1.0


def run(study: Study, workdir: Path, engine: Engine, options: Options) -> dict[str, Result]:
    """Runs what is not done; name → result of all cells, in the study's order.

    Raises:
      ValueError: `workdir` holds another study, or a file that is no result.
      InUseError: another process runs the study there.
    """
    claim_folder(study, workdir)
    with locked(workdir):
        study.prepare(workdir)
        _say_what_changed(study, workdir)
        with _Running(study, workdir, engine, options) as running:
            running.all()
    return results(study, workdir)


def results(study: Study, workdir: Path) -> dict[str, Result]:
    """Name → result of all cells, in the study's order."""
    return {cell.name: result_of(study, cell, workdir) for cell in study.cells}


def _say_what_changed(study: Study, workdir: Path) -> None:
    for cell in study.cells:
        found = result_of(study, cell, workdir)
        if found.status == "changed":
            print(f"{cell.name} is run again: {printable(found.why)}", file=sys.stderr)


class _Running(contextlib.AbstractContextManager):
    """What is waiting and what runs. On leaving, whatever still runs is asked to save and end."""

    def __init__(self, study: Study, workdir: Path, engine: Engine, options: Options):
        self.study, self.workdir, self.engine, self.options = study, workdir, engine, options
        found = results(study, workdir)
        self.ended = {name for name, result in found.items() if result.status in ("done", "stopped")}
        self.failed: set[str] = set()
        self.waiting = [cell for cell in in_order(study.cells) if cell.name not in self.ended]
        self.handles: dict[str, Handle] = {}
        self.attempts: dict[str, int] = {}
        self.stopping: dict[str, str] = {}
        self.bar = _Bar(study, workdir, self)

    def all(self) -> None:
        """Returns when every cell is done, stopped, failed, or needs one that failed."""
        while self.waiting or self.handles:
            self._start()
            for name, handle in list(self.handles.items()):
                code = handle.poll()
                if code is not None:
                    del self.handles[name]
                    self._after(name, code)
            self._stop_early()
            self.bar.show()
            if self.handles:
                time.sleep(self.options.every)
        self.bar.close()

    def _start(self) -> None:
        for cell in list(self.waiting):
            if bad := [name for name in cell.needs if name in self.failed]:
                self.waiting.remove(cell)
                self._fail(cell, f"it needs {', '.join(bad)}, which failed")
            elif set(cell.needs) <= self.ended and self.engine.free():
                self.waiting.remove(cell)
                folder = self.workdir / cell.name
                folder.mkdir(parents=True, exist_ok=True)
                self.attempts[cell.name] = self.attempts.get(cell.name, 0) + 1
                self.handles[cell.name] = self.engine.start(cell.name, self.options.command(cell.name), _log_of(folder))

    def _after(self, name: str, code: int) -> None:
        cell = self.study.by_name[name]
        found = result_of(self.study, cell, self.workdir)
        if found.status in ("done", "stopped"):
            self.ended.add(name)
        elif name in self.stopping:
            rows = tuple(self.study.measure(cell, self.workdir))
            stopped = Result("stopped", rows, self.stopping[name], found.seconds)
            write_result(self.study, cell, self.workdir, stopped)
            self.ended.add(name)
        elif self.attempts[name] <= self.options.retries and not self.engine.retries:
            self.bar.say(f"{name} failed ({last_error(self.workdir / name)}); it is tried again")
            self.waiting.append(cell)
        else:
            self._fail(cell, f"exit code {code}: {last_error(self.workdir / name)}")

    def _fail(self, cell: Cell, why: str) -> None:
        self.failed.add(cell.name)
        write_result(self.study, cell, self.workdir, Result("failed", why=why))
        self.bar.say(f"{cell.name} failed: {why}")

    def _stop_early(self) -> None:
        early = self.options.early_stop
        if early is None:
            return
        found = histories(self.study, self.workdir, early)
        for name, handle in self.handles.items():
            if name not in self.stopping and (reason := early.rule(name, found)):
                self.stopping[name] = reason
                self.bar.say(f"{name} is stopped: {reason}")
                handle.stop()

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        for handle in self.handles.values():
            handle.stop()
        end = time.monotonic() + _SAVING
        while any(handle.poll() is None for handle in self.handles.values()) and time.monotonic() < end:
            time.sleep(0.1)


def _log_of(folder: Path) -> Path:
    """Below the folder that is set aside when the cell is run again from its start, so beside the training's files."""
    return folder / LOG


def histories(study: Study, workdir: Path, early: EarlyStop) -> dict[str, History]:
    """Cell → what it has logged of the metric, larger being better; a cell that has logged nothing has an empty history."""
    sign = -1.0 if early.smallest else 1.0
    found: dict[str, History] = {}
    for cell in study.cells:
        path = workdir / cell.name / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        found[cell.name] = [(int(line["step"]), sign * line[early.metric]) for line in lines if early.metric in line]
    return found


def last_error(folder: Path) -> str:
    """The last line that begins with "error:", or the last line of all, of what a cell said."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error:")]
    return printable((errors or said or ["it said nothing"])[-1])[:500]


# --- the bar over all cells --------------------------------------------------------------------------------------------


class _Bar:
    """`3 of 12 done, 2 running, 1 failed` with a bar over all steps and the time left; on a file or pipe, a line now and then."""

    def __init__(self, study: Study, workdir: Path, running: "_Running"):
        self.study, self.workdir, self.running = study, workdir, running
        self.start = self.said = time.monotonic()
        self.first: float | None = None
        form = "{desc} |{bar}| {percentage:.0f}% [{elapsed}, left {remaining}]"
        self.bar = tqdm(total=100.0, bar_format=form, dynamic_ncols=True) if sys.stderr.isatty() else None

    def show(self) -> None:
        """How far all of it is."""
        running = self.running
        ended = running.ended | running.failed
        done = [1.0 if cell.name in ended else progress(cell, self.workdir) for cell in self.study.cells]
        failed = f", {len(running.failed)} failed" if running.failed else ""
        text = f"{len(running.ended)} of {len(done)} done, {len(running.handles)} running{failed}"
        percent = 100.0 * sum(done) / len(done)
        self.first = percent if self.first is None else self.first
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(percent - self.bar.n)
        elif time.monotonic() - self.said >= _EVERY:
            self.said = time.monotonic()
            gained = percent - self.first
            left = (100.0 - percent) * (self.said - self.start) / gained if gained > 0 else None
            print(
                f"{text}, {percent:.0f} %, left {tqdm.format_interval(left) if left else '?'}",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line of its own."""
        tqdm.write(printable(text), file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def progress(cell: Cell, workdir: Path) -> float:
    """The fraction of its steps that a cell has logged."""
    steps = cell.config.get("run", {}).get("steps", 0)
    return min(1.0, _newest_step(workdir / cell.name / "metrics.jsonl") / steps) if steps else 0.0


def _newest_step(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0
    return _step_at(path, found.st_size)


@functools.lru_cache(maxsize=4096)
def _step_at(path: Path, size: int) -> int:
    """Of the last whole line; a file is read again only when it grew."""
    with path.open("rb") as file:
        file.seek(max(0, size - 65536))
        tail = file.read().splitlines()
    for line in reversed(list(_steps(tail))):
        return line
    return 0


def _steps(lines: Sequence[bytes]) -> Iterator[int]:
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield int(json.loads(line)["step"])


def unfinished(found: Mapping[str, Result]) -> list[str]:
    """Names of the cells without a result."""
    return [name for name, result in found.items() if result.status not in ("done", "stopped")]
