"""Runs a study's cells on an engine: in their order, some at a time, again where one failed, stopped where a rule says so."""

import contextlib
import dataclasses
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from rmjax.locks import locked
from rmjax.study.cells import Cell
from rmjax.study.engines import BUSY, Engine, Handle
from rmjax.study.stopping import History, Rule
from rmjax.study.study import (
    FAILED,
    STOPPED,
    Result,
    Study,
    check_data,
    claim_folder,
    holds,
    in_order,
    leave_word,
    result_of,
)
from rmjax.terminal import printable

_SAVING = 120.0  # seconds that a cell may take to save when it is asked to end; then it is killed
_LINE_EVERY = 30.0  # seconds between lines where there is no terminal
_LOOK_EVERY = 5.0  # seconds between two looks at the metrics of what runs


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """When running cells are stopped.

    Attributes:
      rule: of `rmjax.study.stopping`.
      metric: of metrics.jsonl, say "eval/unseen/accuracy".
      smallest: whether smaller is better.
      name: of the rule with its numbers. A cell that it stopped goes on where another one is asked for, or none.
    """

    rule: Rule
    metric: str
    smallest: bool = False
    name: str = ""


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
      ValueError: `workdir` holds another study or a file that is no result, or a cell's data are not there; nothing is started.
      InUseError: another process runs the study there.
    """
    holds(study, workdir)
    check_data(study, workdir)
    claim_folder(study, workdir)  # what was refused leaves nothing there
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
        self.ended = {name for name, result in results(study, workdir).items() if self._is_over(name, result)}
        self.failed: set[str] = set()
        self.waiting = [cell for cell in in_order(study.cells) if cell.name not in self.ended]
        self.handles: dict[str, Handle] = {}
        self.logs: dict[str, int] = {}  # cell → where in its log this attempt begins
        self.attempts: dict[str, int] = {}
        self.stopping: dict[str, tuple[str, float]] = {}  # cell → why, and since when
        self.looked = 0.0
        self.bar = _Bar(study, workdir, self)

    def _is_over(self, name: str, result: Result) -> bool:
        early = self.options.early_stop
        return result.status == "done" or (
            result.status == "stopped" and early is not None and stopped_by(self.workdir / name) == early.name
        )

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
            if self.handles or self.waiting:
                time.sleep(self.options.every)

    def _start(self) -> None:
        for cell in list(self.waiting):
            if bad := [name for name in cell.needs if name in self.failed]:
                self.waiting.remove(cell)
                self._fail(cell, f"it needs {', '.join(bad)}, which failed")
            elif set(cell.needs) <= self.ended and self.engine.free():
                self.waiting.remove(cell)
                log = log_of(self.workdir, cell.name)
                log.parent.mkdir(parents=True, exist_ok=True)
                self.logs[cell.name] = log.stat().st_size if log.exists() else 0
                self.attempts[cell.name] = self.attempts.get(cell.name, 0) + 1
                self.handles[cell.name] = self.engine.start(cell.name, self.options.command(cell.name), log)

    def _after(self, name: str, code: int) -> None:
        cell = self.study.by_name[name]
        why, _ = self.stopping.pop(name, ("", 0.0))
        if result_of(self.study, cell, self.workdir).status == "done":
            self.ended.add(name)
            self._say_unlogged(name)
        elif why:
            assert self.options.early_stop is not None
            leave_word(self.workdir / name, STOPPED, why, rule=self.options.early_stop.name)
            self.ended.add(name)
        elif code == BUSY:
            self.attempts[name] -= 1
            self.waiting.append(cell)
        elif self.attempts[name] <= self.options.retries and not self.engine.retries:
            self.bar.say(f"{name} failed ({self._said(name, code)}); it is tried again")
            self.waiting.append(cell)
        else:
            self._fail(cell, self._said(name, code))

    def _say_unlogged(self, name: str) -> None:
        """Once a cell has logged all that it does, rather than after the last one."""
        early = self.options.early_stop
        if early and not histories([name], self.workdir, early)[name]:
            self.bar.say(f"{name} is done and has logged no {early.metric}, by which cells are to be stopped early")

    def _said(self, name: str, code: int) -> str:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {last_error(log_of(self.workdir, name), self.logs.get(name, 0))}"

    def _fail(self, cell: Cell, why: str) -> None:
        self.failed.add(cell.name)
        leave_word(self.workdir / cell.name, FAILED, why)
        self.bar.say(f"{cell.name} failed: {why}")

    def _stop_early(self) -> None:
        early, now = self.options.early_stop, time.monotonic()
        for name, (_, since) in self.stopping.items():
            if name in self.handles and now - since > _SAVING:
                self.handles[name].kill()
        if early is None or now - self.looked < min(_LOOK_EVERY, 10 * self.options.every):
            return
        self.looked = now
        found = histories([*self.ended, *self.handles], self.workdir, early)
        for name, handle in self.handles.items():
            if name not in self.stopping and (reason := early.rule(name, found)):
                self.stopping[name] = reason, now
                self.bar.say(f"{name} is stopped: {reason}")
                handle.stop()

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        early = self.options.early_stop
        if early and self.ended and not any(histories(list(self.ended), self.workdir, early).values()):
            self.bar.say(f"no cell was stopped early: none logs {early.metric}; name a metric of metrics.jsonl")
        for handle in self.handles.values():
            handle.stop()
        end = time.monotonic() + _SAVING
        while any(handle.poll() is None for handle in self.handles.values()) and time.monotonic() < end:
            time.sleep(0.1)
        for handle in self.handles.values():
            handle.kill()


def log_of(workdir: Path, name: str) -> Path:
    """What a cell's processes said, all attempts after each other; not in its folder, which may be set aside."""
    return workdir / "logs" / f"{name}.txt"


def stopped_by(folder: Path) -> str:
    """The name of the rule that stopped a cell."""
    path = folder / STOPPED
    return str(json.loads(path.read_text(encoding="utf-8")).get("rule", "")) if path.exists() else ""


def histories(names: Sequence[str], workdir: Path, early: EarlyStop) -> dict[str, History]:
    """Cell → what it has logged of the metric, larger being better; a cell that has logged nothing has an empty history."""
    sign = -1.0 if early.smallest else 1.0
    found: dict[str, History] = {}
    for name in names:
        path = workdir / name / "metrics.jsonl"
        lines = _lines(path, path.stat().st_size) if path.exists() else []
        found[name] = [(int(line["step"]), sign * line[early.metric]) for line in lines if early.metric in line]
    return found


@functools.lru_cache(maxsize=4096)
def _lines(path: Path, size: int) -> list[dict[str, float]]:
    """Of a metrics file, whose last line may be half written; read again only when it grew."""
    del size
    return [line for line in map(_parsed, path.read_bytes().splitlines()) if line]


def _parsed(line: bytes) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def last_error(log: Path, start: int = 0) -> str:
    """The last line that begins with "error:", or the last line of all, of what a cell said from `start` on, in bytes."""
    text = log.read_bytes()[start:].decode("utf-8", "replace") if log.exists() else ""
    said = [line.strip() for line in text.splitlines() if line.strip()]
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
        elif time.monotonic() - self.said >= _LINE_EVERY:
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
    steps = cell.config.get("training", cell.config).get("run", {}).get("steps", 0)
    path = workdir / cell.name / "metrics.jsonl"
    if not steps or not path.exists():
        return 0.0
    lines = _lines(path, path.stat().st_size)
    return min(1.0, int(lines[-1].get("step", 0)) / steps) if lines else 0.0


def unfinished(found: Mapping[str, Result]) -> list[str]:
    """Names of the cells without a result; one that was stopped early is none of them."""
    return [name for name, result in found.items() if result.status not in ("done", "stopped")]
