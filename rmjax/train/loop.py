"""The loop, for every method: dispatch step t, write the metrics of t − 1, save, then go on.

A checkpoint is saved before the iterator advances, so the parameters and the data position agree and a resumed run is the
uninterrupted one. By then all metrics up to its step are written, evaluations included: a kill can lose none for good.
"""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from rmjax.data.pipeline import Source
from rmjax.models.forest import Forest
from rmjax.parallel import hosts
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.metrics import CountedTraces, MetricWriter, Progress, Throughput
from rmjax.train.objective import Terms
from rmjax.train.state import State

_log = logging.getLogger(__name__)
Evaluate = Callable[[State], Mapping[str, float]]
Batch = Forest | Mapping[str, Forest]
"""One forest, or several by name."""
Identify = Callable[[int], str] | Mapping[str, Callable[[int], str]]


STILL = 3
"""Steps without a gradient at the start of a run that are worth a warning."""


class Diverged(RuntimeError):
    """The loss is not finite; the batch that gave it is written down."""


class Preempted(BaseException):
    """The command was asked to stop; what there was to save is saved."""


class Watch(Protocol):
    """What looks at evaluations and may end a run."""

    @property
    def stop(self) -> str:
        """Why the run ends, or nothing."""
        ...

    def seen(self, step: int, name: str, values: Mapping[str, float], state: State) -> None:
        """Takes in an evaluation of a state."""
        ...


def train(
    state: State,
    step: Callable[[State, Any], tuple[State, Terms]],
    source: Source,
    *,
    steps: int,
    place: Callable[[Any], Any],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    directory: Path,
    describe: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda rates: {},
    traces: CountedTraces | None = None,
    log_every: int = 10,
    save_every: int = 100,
    evaluations: Mapping[str, tuple[int, Evaluate]] | None = None,
    identify: Identify = str,
    since: Mapping[str, Sequence[float]] | None = None,
    watch: Watch | None = None,
) -> State:
    """Runs from `state.step` to `steps` and returns the last state, saved.

    Args:
      step: the compiled step.
      source: batches, positioned after `state.step` of them.
      place: host batch → device batch.
      describe: adds what depends on speed (MFU) or step (learning rate) to the logged metrics; gets them so far.
      log_every, save_every: steps. The loss is checked at every step whatever `log_every`.
      evaluations: name → (every so many steps, function); also run after the last step.
      identify: index of a record → its name in `diverged.json`; by the name of the forest where a batch has several.
      since: the `terms` of the checkpoint that the run goes on from: [sum, count] of every term since the last logged step.
      watch: looks at every evaluation; the run ends, saved, where it says so.

    A logged metric is the mean over all steps since the last logged one, each weighted by its count, as if they were one
    batch; what `describe` adds is of that step.

    Raises:
      Diverged: the loss or its gradient is NaN or infinite.
      Preempted: SIGTERM or a notice of preemption came; the state is saved.
      ValueError: the data ended before the last step (the state is saved), or a bad `log_every` or `save_every`.
    """
    if min(log_every, save_every) < 1:
        raise ValueError(f"log_every ({log_every}) and save_every ({save_every}) must be 1 or more")
    start = int(state.step)
    speed, progress = Throughput(), Progress(steps, initial=start, label=directory.name)
    log = _Log(steps, log_every, writer, directory, describe, traces, identify, speed, progress, since or {})
    asked = False

    def save(number: int, wait: bool = False) -> None:
        log.settle()
        checkpoints.save(number, _saved(state), {"iterator": source.get_state(), "terms": log.sums}, wait=wait)
        speed.pause()

    with hosts.stop_requests() as stopping, contextlib.closing(progress):
        if start == 0:
            _evaluate_all(state, 0, steps, evaluations, writer, watch)
        for number in range(start + 1, steps + 1):
            if watch is not None and watch.stop:
                _log.warning("stopped after step %d of %d: %s", number - 1, steps, watch.stop)
                break
            with speed.waiting():
                batch = source.next(state, number)
                placed = None if batch is None else place(batch)
            if batch is None:
                if number > 1:
                    save(number - 1, wait=True)
                raise ValueError(
                    f"the data ended after step {number - 1} of {steps}; raise data.epochs or lower run.steps"
                )
            state, terms = step(state, placed)
            log.add(number, terms, placed)
            if number == steps or any(number % every == 0 for every, _ in (evaluations or {}).values()):
                log.settle()
                _evaluate_all(state, number, steps, evaluations, writer, watch)
                speed.pause()
            asked = stopping(number)
            if asked and number < steps:
                save(number, wait=True)
                raise Preempted(f"asked to stop: saved step {number} of {steps}; run the same command to go on")
            if number % save_every == 0 or number == steps or (watch is not None and watch.stop):
                save(number)
        checkpoints.wait()  # a request to stop must not cut off the last save
        if start < steps and (asked or (jax.process_count() == 1 and stopping(steps))):
            raise Preempted(
                f"asked to stop: all {steps} steps are saved; run the same command to go on with what follows"
            )
    return state


@dataclasses.dataclass
class _Log:
    """Writes a step's metrics when the next one is under way; of the steps since the last logged one it keeps the sums."""

    steps: int
    log_every: int
    writer: MetricWriter
    directory: Path
    describe: Callable[[Mapping[str, float]], Mapping[str, float]]
    traces: CountedTraces | None
    identify: Identify
    speed: Throughput
    progress: Progress
    sums: Mapping[str, Sequence[float]]
    traced: int = 0
    still: int = 0  # first steps of the run, one after the other, whose gradient was 0
    pending: tuple[int, Terms, Any] | None = None  # step, its terms, its batch

    def add(self, number: int, terms: Terms, batch: Any) -> None:
        """A step that was dispatched; the one before it is settled."""
        self.settle()
        self.pending = number, terms, batch

    def settle(self) -> None:
        """Writes the metrics of the step before; it is done by now, so this waits for nothing that is still to run."""
        if self.pending is None:
            return
        (number, terms, batch), self.pending = self.pending, None
        terms = jax.device_get(terms)
        scalars = means(terms)
        before, self.traced = self.traced, self.traces.traces if self.traces else 0
        self.speed.step(*_processed(terms), compiled=self.traced != before)
        _check_finite(scalars, number, batch, self.directory, self.identify)
        self._watch(number, scalars.get("gradient_norm", 1.0))
        self.sums = _added(self.sums, terms)
        if number % self.log_every == 0 or number == self.steps:
            scalars |= self._write(number)
        self.progress.update(number, scalars)

    def _watch(self, number: int, norm: float) -> None:
        """Says once that nothing is learned, where the gradient is 0 in the first steps of all."""
        self.still = self.still + 1 if norm == 0 and self.still == number - 1 else 0
        if self.still == min(STILL, self.steps):
            _log.warning(
                "gradient_norm is 0 in the first %d steps: nothing is learned. Most often config.trainable leaves out the reward "
                "head while that is still zero, all records have weight 0, or no answers of a group differ",
                self.still,
            )

    def _write(self, number: int) -> Mapping[str, float]:
        logged, self.sums = means(self.sums) | self.speed.rates(), {}
        logged |= dict(self.describe(logged | {"step": number}))
        logged |= {"retraces": float(self.traces.traces)} if self.traces else {}
        self.writer.write(number, {f"train/{name}": value for name, value in logged.items()})
        return logged


def _saved(state: State) -> dict[str, Any]:
    return {name: part for name, part in vars(state).items() if jax.tree.leaves(part)}


def restored(state: State, saved: Mapping[str, Any]) -> State:
    """`state` with the parts of a checkpoint."""
    return dataclasses.replace(state, **saved)


def saved_part(state: State) -> dict[str, Any]:
    """What a checkpoint of this state holds (orbax refuses empty parts)."""
    return _saved(state)


def _evaluate_all(
    state: State, number: int, steps: int, evaluations: Any, writer: MetricWriter, watch: Watch | None = None
) -> None:
    for name, (every, evaluate) in (evaluations or {}).items():
        if number == steps or number % every == 0:
            values = evaluate(state)
            writer.write(number, {f"eval/{name}/{key}": value for key, value in values.items()})
            if watch is not None:
                watch.seen(number, name, values, state)


def _processed(terms: Mapping[str, tuple[Any, Any]]) -> tuple[int, int]:
    """Tokens (shared ones once, no padding) and ordered pairs of the global batch; a process has only a part of it."""
    padding = [term for name, term in terms.items() if name.endswith("pad_fraction")]
    return int(sum(cells - padded for padded, cells in padding)), int(terms.get("accuracy", (0, 0))[1])


def _added(sums: Mapping[str, Sequence[float]], terms: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """The [sum, count] of every term with those of one step more; on the host and in double precision."""
    return {
        name: [float(before) + float(more) for before, more in zip(sums.get(name, (0.0, 0.0)), term, strict=True)]
        for name, term in terms.items()
    }


def means(terms: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """The means of terms on the host, `reward_std` among them: on the device they would queue behind the step that is running.
    What nothing was counted of is left out."""
    return _with_deviation({name: float(total) / float(count) for name, (total, count) in terms.items() if count > 0})


def _with_deviation(scalars: dict[str, float]) -> dict[str, float]:
    if "reward_square" not in scalars:
        return scalars
    square = scalars.pop("reward_square")
    return scalars | {"reward_std": math.sqrt(max(0.0, square - scalars["reward_mean"] ** 2))}


def _check_finite(scalars: Mapping[str, float], number: int, batch: Batch, directory: Path, identify: Identify) -> None:
    """A gradient can be NaN where the loss is not; the parameters would be lost and saved."""
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(scalars.get(name, 0.0))]
    if not bad:
        return
    path, value = directory / "diverged.json", scalars[bad[0]]
    found, count = _named_records(batch, identify)
    if jax.process_index() == 0:
        path.write_text(json.dumps({"step": number, bad[0]: str(value)} | found, ensure_ascii=False) + "\n")
    raise Diverged(
        f"{bad[0]} is {value} at step {number}; the ids of the batch's {count} records are in {path}; "
        "lower optimizer.learning_rate (and any other rate of the method) or look at those records; "
        "the last checkpoint is from before this step"
    )


def _named_records(batch: Any, identify: Any) -> tuple[dict[str, Any], int]:
    """{"records", "ids"} of a forest, or that by the forest's name; and how many records there are."""
    if isinstance(batch, Forest):
        records = sorted({int(i) for i in np.ravel(hosts.whole(batch.record_RG)) if i >= 0})
        return {"records": records, "ids": [identify(i) for i in records]}, len(records)
    parts = {name: _named_records(forest, identify[name]) for name, forest in batch.items()}
    return {name: found for name, (found, _) in parts.items()}, sum(count for _, count in parts.values())
