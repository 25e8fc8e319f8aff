"""What a run says about itself: metric files, a progress line, speeds, retraces."""

import contextlib
import functools
import json
import logging
import math
import numbers
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, ParamSpec, TextIO, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from rmjax.terminal import printable, shows_bars

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_RESERVED = {"step", "time"}
_SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "tokens_per_second": "tokens/s",
    "pairs_per_second": "pairs/s",
}
_log = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars to `<directory>/metrics.jsonl`, and to TensorBoard and W&B when asked.

    Each line is an object {"step": int, "time": seconds since 1970, NAME: number, ...}. JSON has
    no NaN and no infinities: they are written as the strings "NaN", "Infinity" and "-Infinity",
    which `float` and `read_metrics` understand. Only process 0 writes.

    directory:    made if need be; TensorBoard's files go to `<directory>/tensorboard`.
    resume_step:  step of the checkpoint that the run goes on from. Lines of later steps, which
                  will be written again, are cut off first, and so is a line broken by a kill;
                  the log has their number. -1, a fresh run, cuts off everything.
    tensorboard:  needs tensorboardX.
    wandb:        keyword arguments for `wandb.init` (project, name, config ...); needs wandb. The
                  run's id is kept in `<directory>/wandb_id`: a run that goes on from a checkpoint
                  goes on in the same W&B run, a fresh one starts another.

    Raises ImportError, saying what to install, where a package that was asked for is missing.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume_step: int = -1,
        tensorboard: bool = False,
        wandb: Mapping[str, Any] | None = None,
    ):
        self._file: TextIO | None = None
        self._tensorboard = self._wandb = None
        if jax.process_index() != 0:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._tensorboard = _open_tensorboard(directory / "tensorboard", resume_step)
        if wandb is not None:
            self._wandb = _open_wandb(directory, wandb, resume_step)
        path = directory / "metrics.jsonl"
        _cut_after(path, resume_step)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers and arrays of one number, under one step; waits for jax arrays.

        Raises ValueError for the names "step" and "time", and for what isn't one number.
        """
        if self._file is None:
            return
        values = {name: _as_number(name, value) for name, value in scalars.items()}
        line: dict[str, int | float | str] = {"step": int(step), "time": round(time.time(), 3)}
        line |= {name: _json_safe(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write the metrics ({error.strerror})", self._file.name) from error
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def histogram(self, step: int, name: str, values: Any) -> None:
        """The distribution of an array of any shape, finite values only; to TensorBoard only."""
        if self._tensorboard is None:
            return
        flat = np.asarray(values, np.float32).ravel()
        finite = flat[np.isfinite(flat)]
        if len(finite) < len(flat):
            left_out = len(flat) - len(finite)
            _log.warning("step %d: histogram %s leaves out %d non-finite", step, name, left_out)
        if len(finite):
            self._tensorboard.add_histogram(name, finite, step)

    def close(self) -> None:
        """Flushes and closes everything; calling it again does nothing."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl` as dicts, NaN and infinities as floats again.

    Lines that a kill left broken are left out; the log has their number.
    """
    parsed = [_parse_line(line) for line in Path(path).read_bytes().splitlines()]
    whole = [line for line in parsed if line is not None]
    if len(whole) < len(parsed):
        _log.warning("%s: %d broken lines left out", path, len(parsed) - len(whole))
    return whole


def _parse_line(line: bytes) -> dict[str, float] | None:
    try:
        scalars = json.loads(line)
        scalars["step"] = int(scalars["step"])
    except (ValueError, TypeError, KeyError):
        return None
    return {k: float(v) if isinstance(v, str) else v for k, v in scalars.items()}


def _cut_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    parsed = [(line, _parse_line(line)) for line in lines]
    kept = [line for line, scalars in parsed if scalars is not None and scalars["step"] <= step]
    if len(kept) == len(lines) and (not lines or lines[-1].endswith(b"\n")):
        return
    _log.info("%s: cut off %d lines after step %d", path, len(lines) - len(kept), step)
    shorter = path.with_name(path.name + ".unfinished")
    shorter.write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept))
    os.replace(shorter, path)


def _as_number(name: str, value: Any) -> int | float:
    if name in _RESERVED:
        raise ValueError(f"a metric cannot be named `{name}`: every line has one already")
    if isinstance(value, numbers.Integral):
        return int(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OUSM":
        raise ValueError(f"metric `{name}` must be one number, not {value!r:.80}")
    return int(array.item()) if array.dtype.kind in "iub" else float(array.item())


def _json_safe(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _open_tensorboard(directory: Path, resume_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard was asked for: pip install tensorboardX") from error
    # purge_step hides what TensorBoard has of the steps that will be written again.
    return SummaryWriter(str(directory), purge_step=resume_step + 1)


def _open_wandb(directory: Path, settings: Mapping[str, Any], resume_step: int) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("Weights & Biases was asked for: pip install wandb") from error
    kept = directory / "wandb_id"
    known = {"id": kept.read_text().strip()} if resume_step >= 0 and kept.is_file() else {}
    run = wandb.init(**{"dir": str(directory), "resume": "allow", **known, **settings})
    kept.write_text(f"{run.id}\n")
    return run


class Progress:
    """A bar with speed, metrics and time left, on a terminal and in a notebook; on a file or pipe, a line now and then instead.

    total:       the last step.
    initial:     the step that the run goes on from; speed and time left count from there.
    label:       said at the start of the line.
    every:       seconds between lines where `file` is no terminal (the last step always has one).
    file:        standard error if None.
    Only process 0 shows anything.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        label: str = "train",
        every: float = 10.0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._initial, self._label, self._every = total, initial, printable(label), every
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._started = self._said = clock()
        self._shown: dict[str, str] = {}
        self._bar = None
        self._quiet = jax.process_index() != 0
        if not self._quiet and shows_bars(self._file):
            self._bar = tqdm(
                desc=self._label,
                total=total,
                initial=initial,
                unit="step",
                file=self._file,
                dynamic_ncols=True,
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` is done; of `metrics`, loss, accuracy, tokens_per_second and
        pairs_per_second. A value stays until the next one."""
        if self._quiet:
            return
        for name, shown in _SHOWN.items():
            if name in metrics:
                self._shown[shown] = _short(float(metrics[name]))
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._clock() - self._said >= self._every or step == self._total:
            self._said = self._clock()
            print(self._line(step), file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands and ends its line."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, step: int) -> str:
        speed = (step - self._initial) / max(self._clock() - self._started, 1e-9)
        left = tqdm.format_interval((self._total - step) / speed) if speed > 0 else "?"
        share = 100 * step / max(self._total, 1)
        metrics = "".join(f"  {name} {value}" for name, value in self._shown.items())
        head = f"{self._label} {step}/{self._total} {share:.0f}%"
        return f"{head}  {_short(speed)} step/s{metrics}  left {left}"


def _short(value: float) -> str:
    if not math.isfinite(value) or abs(value) < 1000:
        return f"{value:.3g}"
    return str(tqdm.format_sizeof(value))


class Throughput:
    """Speeds between two calls of `rates`, without the steps that compiled.

    In the loop: take the batch under `with waiting():`, and call `step` when the step is done,
    that is, when a result of it (or, with asynchronous dispatch, of the step before) has been
    waited for. Counts are global, over all processes.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._last = clock()
        self._waiting_now = 0.0
        self._reset()

    def _reset(self) -> None:
        self._steps = self._tokens = self._pairs = 0
        self._seconds = self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waiting_now += self._clock() - start

    def step(self, tokens: int, pairs: int, compiled: bool = False) -> None:
        """Counts the time since the last call as a step; `compiled` leaves it out altogether."""
        now = self._clock()
        if not compiled:
            self._steps += 1
            self._tokens += tokens
            self._pairs += pairs
            self._seconds += now - self._last
            self._waited += self._waiting_now
        self._last, self._waiting_now = now, 0.0

    def pause(self) -> None:
        """Leaves out the time since the last step: evaluation, a checkpoint that is waited for."""
        self._last, self._waiting_now = self._clock(), 0.0

    def rates(self) -> dict[str, float]:
        """Metrics since the last call; empty where every step compiled.

        tokens_per_second, pairs_per_second; step_seconds, the mean; data_wait_fraction, the share
        of that time in which the loop waited for a batch (the step before may have been running).
        """
        steps, seconds = self._steps, max(self._seconds, 1e-9)
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "pairs_per_second": self._pairs / seconds,
            "step_seconds": seconds / max(steps, 1),
            "data_wait_fraction": self._waited / seconds,
        }
        self._reset()
        return rates if steps else {}


class CountedTraces(Generic[Parameters, Result]):
    """What `count_traces` returns: calls the function, and has counted its traces in `traces`."""

    def __init__(self, function: Callable[Parameters, Result]):
        functools.update_wrapper(self, function)
        self._function = function
        self.traces = 0

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        self.traces += 1
        return self._function(*args, **kwargs)


def count_traces(
    function: Callable[Parameters, Result],
) -> CountedTraces[Parameters, Result]:
    """Wraps a function that is about to be jitted: `step = count_traces(f); jax.jit(step)`.

    A jitted function runs as Python only when jax traces it, so `step.traces` is the number of
    compilations: one per shape of batch. More means that something else changes between calls.
    """
    return CountedTraces(function)
