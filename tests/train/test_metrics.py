import io
import json
import logging
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.train.metrics import MetricWriter, Progress, Throughput, count_traces, read_metrics


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def write_steps(directory, steps, **settings):
    writer = MetricWriter(directory, **settings)
    for step in steps:
        writer.write(step, {"loss": 1.0 / step})
    writer.close()


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path / "new" / "run")
    writer.write(3, {"loss": jnp.float32(0.5), "ties": np.int64(4), "lr": jnp.ones((1,)), "n": 2})
    (line,) = lines(tmp_path / "new" / "run")
    assert line.pop("time") > 1e9
    assert line == {"step": 3, "loss": 0.5, "ties": 4, "lr": 1.0, "n": 2}
    assert isinstance(line["ties"], int)
    writer.close()


@settings(deadline=None)  # files, on machines that may be busy
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_comes_back_and_every_line_is_strict_json(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("run")
    writer = MetricWriter(directory)
    writer.write(1, {"value": value})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((directory / "metrics.jsonl").read_text(), parse_constant=refuse)
    read = read_metrics(directory / "metrics.jsonl")[0]["value"]
    assert read == value or (math.isnan(read) and math.isnan(value))


@pytest.mark.parametrize("value", [np.ones(2), "0.5", None, {"a": 1}])
def test_what_is_not_one_number_is_refused_by_name(tmp_path, value):
    writer = MetricWriter(tmp_path)
    with pytest.raises(ValueError, match="`margin` must be one number"):
        writer.write(1, {"margin": value})
    with pytest.raises(ValueError, match="cannot be named `step`"):
        writer.write(1, {"step": 1})
    writer.close()


def test_resuming_cuts_off_the_later_steps_and_keeps_the_rest_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_steps(tmp_path, [1, 2, 2, 3, 4])
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    write_steps(tmp_path, [3, 4, 5], resume_step=2)
    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert after[:3] == before[:3]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 2, 3, 4, 5]
    assert "cut off 2 lines after step 2" in caplog.text


@pytest.mark.parametrize("broken", [b'{"step": 3, "lo', b'{"step": 3, "loss": 1.0}', b"\xff\n", b"[]\n"])
def test_a_line_broken_by_a_kill_is_cut_off_or_completed(tmp_path, broken):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(broken)
    write_steps(tmp_path, [4], resume_step=3)
    whole = [3] if broken.endswith(b"}") else []
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, *whole, 4]


def test_reading_counts_broken_lines(tmp_path, caplog):
    write_steps(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert "1 broken lines" in caplog.text


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(tmp_path / "run", tensorboard=True, wandb={})
    writer.write(1, {"loss": 1.0})
    writer.histogram(1, "rewards", np.ones(3))
    writer.close()
    assert not (tmp_path / "run").exists()
    file = io.StringIO()
    Progress(1, file=file).update(1, {})
    assert file.getvalue() == ""


def test_tensorboard_gets_scalars_and_finite_histograms(tmp_path, caplog):
    writer = MetricWriter(tmp_path, tensorboard=True)
    writer.write(1, {"loss": 0.25})
    writer.histogram(1, "rewards", jnp.array([[1.0, np.nan, 3.0]]))
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content and b"rewards" in content
    assert "leaves out 1 non-finite" in caplog.text


@pytest.mark.parametrize(
    ("module", "settings", "package"),
    [
        ("tensorboardX", {"tensorboard": True}, "tensorboardX"),
        ("wandb", {"wandb": {"project": "p"}}, "wandb"),
    ],
)
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, module, settings, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        MetricWriter(tmp_path, **settings)


def test_wandb_gets_its_settings_and_the_steps(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        id="a1", log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )

    def init(**settings):
        calls.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    writer = MetricWriter(tmp_path, wandb={"project": "polar", "id": "a1"})
    writer.write(2, {"loss": 0.5})
    writer.close()
    writer.close()
    settings = {"dir": str(tmp_path), "resume": "allow", "project": "polar", "id": "a1"}
    assert calls == [settings, (2, {"loss": 0.5}), "end"]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, monkeypatch):
    asked = []

    def init(**settings):
        asked.append(settings.get("id"))
        name = settings.get("id", f"new{len(asked)}")
        return types.SimpleNamespace(id=name, log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for resume_step in (-1, 20, 40, -1, 0):  # the fourth starts again without a checkpoint
        MetricWriter(tmp_path, resume_step=resume_step, wandb={"project": "polar"}).close()
    assert asked == [None, "new1", "new1", None, "new4"]
    assert (tmp_path / "wandb_id").read_text() == "new4\n"


def test_progress_without_a_terminal_is_a_line_now_and_then():
    clock, file = Clock(), io.StringIO()
    progress = Progress(1000, initial=200, label="pre\x1b[1mtrain", every=10, file=file, clock=clock)
    metrics = {"loss": jnp.float32(0.6931), "accuracy": 0.5, "other": 3.0}
    for step in range(201, 241):
        clock.now += 0.5
        progress.update(step, {**metrics, "tokens_per_second": 12345.0} if step < 230 else {})
    progress.close()
    first, second = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    assert first == (r"pre\x1b[1mtrain 220/1000 22%  2 step/s  loss 0.693  accuracy 0.5  tokens/s 12.3k  left 06:30")
    assert second.startswith(r"pre\x1b[1mtrain 240/1000 24%") and "tokens/s 12.3k" in second


def test_progress_says_the_last_step_whenever_it_comes():
    file = io.StringIO()
    Progress(2, file=file, clock=Clock()).update(2, {"loss": float("nan")})
    assert file.getvalue().startswith("train 2/2 100%") and "loss nan" in file.getvalue()


def test_progress_on_a_terminal_is_a_bar():
    file = Terminal()
    progress = Progress(10, initial=4, label="finetune", file=file)
    for step in range(5, 11):
        progress.update(step, {"loss": 0.25, "pairs_per_second": 31.0})
    progress.close()
    last = file.getvalue().rstrip().split("\r")[-1]
    assert "finetune: 100%" in last and "10/10" in last
    assert "loss=0.25" in last and "pairs/s=31" in last


@pytest.mark.parametrize(
    ("shell", "bars"), [(None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)]
)
def test_progress_below_a_cell_is_a_bar(shell, bars, monkeypatch):
    """IPython alone has no kernel."""
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    for file in (None, io.StringIO()):
        progress = Progress(2, file=file)
        progress.update(2, {})
        progress.close()
    assert ("\r" in errors.getvalue()) == bars
    assert file and "\r" not in file.getvalue()


def test_throughput_leaves_out_steps_that_compile_and_pauses():
    clock = Clock()
    throughput = Throughput(clock)
    for seconds_waiting, seconds_working, compiled in [(5, 60, True), (1, 3, False), (0, 4, False)]:
        with throughput.waiting():
            clock.now += seconds_waiting
        clock.now += seconds_working
        throughput.step(tokens=400, pairs=8, compiled=compiled)
    clock.now += 1000
    throughput.pause()
    assert throughput.rates() == {
        "tokens_per_second": 100.0,
        "pairs_per_second": 2.0,
        "step_seconds": 4.0,
        "data_wait_fraction": 0.125,
    }
    assert throughput.rates() == {}
    clock.now += 2
    throughput.step(tokens=10, pairs=1)
    assert throughput.rates()["tokens_per_second"] == 5.0


def test_traces_are_counted_once_per_shape():
    def scale(x, *, by: int = 1):
        "Doubles."
        return x * by

    counted = count_traces(scale)
    jitted = jax.jit(counted, static_argnames="by")
    for length in (3, 4, 3, 4, 3):
        jitted(jnp.ones(length), by=2)
    assert counted.traces == 2
    jitted(jnp.ones(3), by=5)
    assert counted.traces == 3
    assert (jitted(jnp.ones(3), by=5) == 5).all()
    assert counted.__name__ == "scale"
