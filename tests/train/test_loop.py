"""The loop, with a step small enough to know every number."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.pipeline import FileSource
from rmjax.train import loop
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.loop import Diverged, Preempted, restored, saved_part, train
from rmjax.train.metrics import MetricWriter, Throughput, count_traces, read_metrics
from rmjax.train.state import State

SHAPE = ForestShape(2, 16, 2, 2)


def make_state() -> State:
    return State(jnp.int32(0), {"w": jnp.zeros(3)}, {}, {"sum": jnp.zeros(3)}, jnp.zeros(2, jnp.uint32))


class Batches:
    """Batch number n has n + 3 tokens in its one tree of record n and one pair; ends after `length` batches."""

    def __init__(self, length: int = 1000):
        self.position, self.length = 0, length

    def __next__(self):
        if self.position == self.length:
            raise StopIteration
        n = self.position
        self.position += 1
        leaves = (np.full(1, 1), np.full(1, 2))
        return fill(SHAPE, [[Tree(np.full(n % 8 + 1, 3), leaves, np.array([0.0, 1.0]), record=n)], []])

    def get_state(self):
        return {"position": self.position}


def plain_step(state: State, forest) -> tuple[State, dict]:
    """Order matters: w ← 2 w + record, so that a batch left out or given twice shows."""
    record = jnp.max(forest.record_RG).astype(jnp.float32)
    moved = jax.tree.map(lambda w: (2 * w + record) % 1021, state.trainable)
    one = jnp.float32(1)
    terms = {"loss": (record, one), "reward_mean": (3 * one, one), "reward_square": (25 * one, one)}
    terms |= {"gradient_norm": (one, one), "nothing": (0 * one, 0 * one), "share": (record, record + 1)}
    terms |= {"pad_fraction": padding(forest), "accuracy": (one, one)}
    return state.replace(step=state.step + 1, trainable=moved), terms


def padding(forest):
    cells = jnp.float32(forest.group_RT.size)
    return cells - jnp.sum(forest.group_RT > 0), cells


def run(directory, steps, step=plain_step, batches=None, place=lambda forest: forest, compiled=jax.jit, **options):
    """One process's life: restores, trains, gives (state, what `Checkpoints` has)."""
    batches, counted = batches or Batches(), count_traces(step)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        state, first, since = make_state(), -1, None
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved_part(state))
        found = checkpoints.restore(shapes)
        if found is not None:
            first, parts, data = found
            state, batches.position, since = restored(state, parts), data["iterator"]["position"], data["terms"]
        writer = MetricWriter(directory, resume_step=first)
        try:
            options = {"save_every": 3, "log_every": 1, **options}
            return train(
                state, compiled(counted), FileSource(batches), steps=steps, place=place, checkpoints=checkpoints, writer=writer,
                directory=directory, traces=counted, since=since, **options,
            )  # fmt: skip
        finally:
            writer.close()


def lines(directory, prefix=""):
    """(step, names) of the metric lines."""
    found = [(line["step"], sorted(n for n in line if "/" in n)) for line in read_metrics(directory / "metrics.jsonl")]
    return [(step, names) for step, names in found if any(name.startswith(prefix) for name in names)]


def expected(steps: int) -> float:
    w = 0
    for record in range(steps):
        w = (2 * w + record) % 1021
    return w


def test_every_batch_once_and_every_metric(tmp_path):
    state = run(tmp_path, 8, describe=lambda scalars: {"doubled": 2 * scalars["step"]}, log_every=3)
    assert int(state.step) == 8 and state.trainable["w"][0] == expected(8)
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in logged] == [3, 6, 8]
    for line, first in zip(logged, (1, 4, 7), strict=True):
        records = range(first - 1, line["step"])
        assert line["train/loss"] == np.mean(records)  # of all steps since the line before
        assert line["train/share"] == sum(records) / sum(record + 1 for record in records)  # weighted by count
        assert line["train/reward_std"] == 4.0 and "train/reward_square" not in line
        assert line["train/doubled"] == 2 * line["step"]
        assert "train/nothing" not in line  # of which no step counted any
        assert line["train/retraces"] == 1.0
        assert {"train/tokens_per_second", "train/pairs_per_second", "train/step_seconds"} <= line.keys()
        assert 0 <= line["train/data_wait_fraction"] <= 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6", "8"]
    saved = json.loads((tmp_path / "checkpoints" / "8" / "data_0.json").read_text())
    assert saved == {"iterator": {"position": 8}, "terms": {}}


@pytest.mark.parametrize("log_every", [4, 5])
def test_a_stopped_run_logs_the_same_means(tmp_path, log_every):
    """Checkpoints at 3 and 6 lie between the lines: what the next line averages over is saved with them."""

    def stop(forest):
        if int(forest.record_RG.max()) == 7:
            raise KeyboardInterrupt
        return forest

    run(tmp_path / "whole", 10, log_every=log_every)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 10, log_every=log_every, place=stop)
    run(tmp_path / "stopped", 10, log_every=log_every)
    told = [
        [
            (line["step"], line["train/loss"], line["train/share"])
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "stopped")
    ]
    assert told[0] == told[1]


def test_a_finished_run_is_left_alone(tmp_path):
    run(tmp_path, 4)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert int(run(tmp_path, 4).step) == 4
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


class Device:
    """One that takes a second a step, on a clock of its own: the clock moves on when a result is waited for."""

    def __init__(self):
        self.now = self.done = 0.0

    def step(self, state, forest):
        self.done = max(self.done, self.now) + 1.0
        state, terms = plain_step(state, forest)
        total, count = terms["loss"]
        return state, terms | {"loss": (Result(self, self.done, total), count)}


class Result:
    """What `jax.device_get` waits for."""

    def __init__(self, device, done, value):
        self.device, self.done, self.value = device, done, value

    def __array__(self):
        self.device.now = max(self.device.now, self.done)
        return np.asarray(self.value)


def test_speed_is_that_of_the_settled_step(tmp_path, monkeypatch):
    """Dispatch is asynchronous: the time of a step is that between results, also where a save waits for the step."""
    device = Device()
    monkeypatch.setattr(loop, "Throughput", lambda: Throughput(lambda: device.now))
    run(tmp_path, 9, device.step, compiled=lambda _: device.step, save_every=2)
    measured = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/step_seconds" in line]
    assert [line["train/step_seconds"] for line in measured] == [1.0] * 9
    assert [line["train/tokens_per_second"] for line in measured] == [(n - 1) % 8 + 3 for n in range(1, 10)]
    assert [line["train/pairs_per_second"] for line in measured] == [1.0] * 9


def evaluations(calls, every=2, stop_at=None):
    def evaluate(name, state):
        calls.append((name, int(state.step)))
        if int(state.step) == stop_at:
            raise KeyboardInterrupt
        return {"accuracy": float(state.trainable["w"][0])}

    return {name: (every, lambda state, name=name: evaluate(name, state)) for name in ("a", "b")}


def test_evaluations_at_the_start_on_time_and_at_the_end(tmp_path):
    calls = []
    run(tmp_path, 5, evaluations=evaluations(calls))
    assert calls == [(name, step) for step in (0, 2, 4, 5) for name in ("a", "b")]
    found = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "eval/a/accuracy" in line]
    assert [(line["step"], line["eval/a/accuracy"]) for line in found] == [(s, expected(s)) for s in (0, 2, 4, 5)]


@pytest.mark.parametrize("stop_at", [6, 7])
def test_a_run_stopped_in_an_evaluation_has_all_of_them_in_the_end(tmp_path, stop_at):
    """Step 6 has a checkpoint as well; step 7 is the last."""
    run(tmp_path / "whole", 7, evaluations=evaluations([]))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 7, evaluations=evaluations([], stop_at=stop_at))
    run(tmp_path / "stopped", 7, evaluations=evaluations([]))
    steps = [[step for step, _ in lines(tmp_path / name)] for name in ("whole", "stopped")]
    assert steps[0] == steps[1]
    assert lines(tmp_path / "whole", "eval/") == lines(tmp_path / "stopped", "eval/")


@pytest.mark.parametrize("when", [1, 3, 4])
def test_sigterm_saves_and_the_run_goes_on(tmp_path, when):
    def place(forest):
        if int(forest.record_RG.max()) == when - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return forest

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=f"asked to stop: saved step {when} of 7; run the same command to go on"):
        run(tmp_path, 7, place=place, evaluations=evaluations([]))
    assert signal.getsignal(signal.SIGTERM) == before
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == when
    state = run(tmp_path, 7, evaluations=evaluations([]))
    assert int(state.step) == 7 and state.trainable["w"][0] == expected(7)
    assert [step for step, _ in lines(tmp_path, "train/")] == list(range(1, 8))
    assert [step for step, _ in lines(tmp_path, "eval/a/")] == [0, 2, 4, 6, 7]


def test_sigterm_in_the_last_step_lets_nothing_follow(tmp_path):
    """All is saved, but a command that would judge the model now, or train the next one, is to stop here."""

    def stop(state):
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Preempted, match="asked to stop: all 3 steps are saved; run the same command to go on"):
        run(tmp_path, 3, evaluations={"stops": (3, stop)})
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == 3
    assert int(run(tmp_path, 3).step) == 3


def diverging(at, term):
    def step(state, forest):
        state, terms = plain_step(state, forest)
        bad = jnp.where(state.step == at, jnp.nan, terms[term][0])
        return state, terms | {term: (bad, jnp.float32(1))}

    return step


@pytest.mark.parametrize("term", ["loss", "gradient_norm"])
@pytest.mark.parametrize("at", [5, 6, 8])
def test_nan_stops_with_the_ids_of_its_batch(tmp_path, term, at):
    """Step 6 is saved, step 8 is the last; the checkpoint must be one from before the bad step."""
    with pytest.raises(Diverged, match=rf"{term} is nan at step {at}; .* 1 records are in {tmp_path}/diverged.json"):
        run(tmp_path, 8, diverging(at, term), identify=lambda i: f"prompt {i}", log_every=10)
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert found == {"step": at, term: "nan", "records": [at - 1], "ids": [f"prompt {at - 1}"]}
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) < at


class TwoForests(Batches):
    """A batch of two forests; the second's record is 100 more."""

    def __next__(self):
        forest = super().__next__()
        other = forest.replace(record_RG=np.where(forest.record_RG < 0, -1, forest.record_RG + 100))
        return {"preference": forest, "meta": other.replace(ranks_RGN=np.full_like(other.ranks_RGN, np.inf))}


def test_a_batch_may_have_several_forests(tmp_path):
    def on_first(step):
        def both(state, batch):
            state, terms = step(state, batch["preference"])
            return state, terms | {"meta_pad_fraction": padding(batch["meta"])}

        return both

    state = run(tmp_path, 8, on_first(plain_step), TwoForests())
    assert state.trainable["w"][0] == expected(8)
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line["train/tokens_per_second"] * line["train/step_seconds"] == pytest.approx(2 * (7 % 8 + 3))
    assert line["train/pairs_per_second"] * line["train/step_seconds"] == pytest.approx(1)  # the other has no order
    identify = {"preference": lambda i: f"prompt {i}", "meta": lambda i: f"sample {i}"}
    with pytest.raises(Diverged, match="loss is nan at step 5; .* 2 records are in"):
        run(tmp_path / "nan", 8, on_first(diverging(5, "loss")), TwoForests(), identify=identify)
    assert json.loads((tmp_path / "nan" / "diverged.json").read_text()) == {
        "step": 5, "loss": "nan", "preference": {"records": [4], "ids": ["prompt 4"]},
        "meta": {"records": [104], "ids": ["sample 104"]},
    }  # fmt: skip


def test_data_that_ends_too_early(tmp_path):
    with pytest.raises(ValueError, match="the data ended after step 5 of 8; raise data.epochs or lower run.steps"):
        run(tmp_path, 8, batches=Batches(5))
    state = run(tmp_path, 5, batches=Batches(5))
    assert int(state.step) == 5 and state.trainable["w"][0] == expected(5)
    with pytest.raises(ValueError, match="the data ended after step 0 of 8"):
        run(tmp_path / "none", 8, batches=Batches(0))


@pytest.mark.parametrize("field", ["log_every", "save_every"])
def test_periods_are_positive(tmp_path, field):
    with pytest.raises(ValueError, match=rf"{field} \(0\)"):
        run(tmp_path, 2, **{field: 0})


def test_a_full_disk_names_the_metrics_file(tmp_path):
    writer = MetricWriter(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file.fileno())
    with pytest.raises(
        OSError, match=rf"cannot write the metrics \(No space left on device\): '{tmp_path}/metrics.jsonl'"
    ):
        writer.write(1, {"loss": 1.0})
    os.close(full)
    writer._file = None  # closing would flush once more
