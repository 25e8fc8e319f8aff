"""The loop, for every method: dispatch step t, write the metrics of t − 1, save, then go on.

A checkpoint is saved before the iterator advances, so the parameters and the data position agree and a resumed run is the
uninterrupted one.
"""

import contextlib
import json
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmjax.data.forest import Forest
from rmjax.losses.reduction import mean
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.metrics import CountedTraces, MetricWriter, Progress, Throughput
from rmjax.train.objective import Terms
from rmjax.train.state import State

_log = logging.getLogger(__name__)
Evaluate = Callable[[State], Mapping[str, float]]


class Diverged(RuntimeError):
    """The loss is not finite; the batch that gave it is written down."""


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


def train(
    state: State,
    step: Callable[[State, Any], tuple[State, Terms]],
    batches: Any,
    *,
    steps: int,
    place: Callable[[Forest], Any],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    directory: Path,
    describe: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda rates: {},
    traces: CountedTraces | None = None,
    log_every: int = 10,
    save_every: int = 100,
    evaluations: Mapping[str, tuple[int, Evaluate]] | None = None,
) -> State:
    """Runs from `state.step` to `steps` and returns the last state, saved.

    Args:
      step: the compiled step.
      batches: an iterator with `get_state`, positioned after `state.step` batches.
      place: host batch → device batch.
      describe: adds what depends on speed (MFU) or step (learning rate) to the logged metrics; gets them so far.
      log_every, save_every: steps. The loss is checked at every step whatever `log_every`.
      evaluations: name → (every so many steps, function); also run after the last step.

    Raises:
      Diverged: the loss is NaN or infinite.
      Preempted: SIGTERM came; the state is saved.
    """
    start = int(state.step)
    speed, progress = Throughput(), Progress(steps, initial=start, label=directory.name)
    pending: tuple[int, Terms, np.ndarray] | None = None

    def settle() -> None:
        """Writes the metrics of the step before; it is done by now, so this waits for nothing that is still to run."""
        nonlocal pending
        if pending is None:
            return
        number, terms, records = pending
        pending = None
        scalars = {name: float(value) for name, value in jax.device_get({n: mean(t) for n, t in terms.items()}).items()}
        _check_finite(scalars["loss"], number, records, directory)
        scalars = _with_deviation(scalars) | speed.rates()
        scalars |= describe(scalars | {"step": number}) | ({"retraces": float(traces.traces)} if traces else {})
        if number % log_every == 0 or number == steps:
            writer.write(number, {f"train/{name}": value for name, value in scalars.items()})
        progress.update(number, scalars)

    def save(number: int, position: Any, wait: bool = False) -> None:
        settle()
        checkpoints.save(number, _saved(state), {"iterator": position}, wait=wait)

    with _stop_requests() as stopping:
        if start == 0:
            _evaluate_all(state, 0, steps, evaluations, writer)
        for number in range(start + 1, steps + 1):
            with speed.waiting():
                forest = next(batches)
                batch = place(forest)
            before = traces.traces if traces else 0
            state, terms = step(state, batch)
            settle()
            pending = (number, terms, np.asarray(forest.record_RG))
            speed.step(
                int(np.sum(forest.group_RT > 0)), _pairs(forest), compiled=bool(traces and traces.traces != before)
            )
            if stopping.is_set():
                save(number, batches.get_state(), wait=True)
                progress.close()
                raise Preempted(f"asked to stop: saved step {number} of {steps}; run the same command to go on")
            if number % save_every == 0 or number == steps:
                save(number, batches.get_state())
            if number == steps or any(number % every == 0 for every, _ in (evaluations or {}).values()):
                settle()
                _evaluate_all(state, number, steps, evaluations, writer)
                speed.pause()
    settle()
    progress.close()
    checkpoints.wait()
    return state


def _saved(state: State) -> dict[str, Any]:
    return {name: part for name, part in vars(state).items() if jax.tree.leaves(part)}


def restored(state: State, saved: Mapping[str, Any]) -> State:
    """`state` with the parts of a checkpoint."""
    return state.replace(**saved)


def saved_part(state: State) -> dict[str, Any]:
    """What a checkpoint of this state holds (orbax refuses empty parts)."""
    return _saved(state)


def _evaluate_all(state: State, number: int, steps: int, evaluations: Any, writer: MetricWriter) -> None:
    for name, (every, evaluate) in (evaluations or {}).items():
        if number == steps or number % every == 0:
            writer.write(number, {f"eval/{name}/{key}": value for key, value in evaluate(state).items()})


def _pairs(forest: Forest) -> int:
    ranks = np.asarray(forest.ranks_RGN)
    better = (ranks[..., :, None] < ranks[..., None, :]) & np.isfinite(ranks)[..., None, :]
    return int(better.sum())


def _with_deviation(scalars: dict[str, float]) -> dict[str, float]:
    if "reward_square" not in scalars:
        return scalars
    square = scalars.pop("reward_square")
    return scalars | {"reward_std": math.sqrt(max(0.0, square - scalars["reward_mean"] ** 2))}


def _check_finite(loss: float, number: int, records: np.ndarray, directory: Path) -> None:
    if math.isfinite(loss):
        return
    path = directory / "diverged.json"
    ids = sorted({int(i) for i in records.ravel() if i >= 0})
    path.write_text(json.dumps({"step": number, "loss": str(loss), "records": ids}) + "\n")
    raise Diverged(
        f"the loss is {loss} at step {number}; the indices of the batch's {len(ids)} records are in {path}. "
        "Lower optimizer.learning_rate or look at those records; the last checkpoint is from before this step"
    )


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the handler before it comes back afterwards."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
