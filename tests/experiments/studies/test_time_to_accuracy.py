"""Time to accuracy: its cells, what it makes of measured rows, and a tiny run of both sides. Nothing is timed here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.time_to_accuracy import config as grids
from experiments.studies.time_to_accuracy import measure
from experiments.trainers.learning import timed_points
from rmjax.evaluate.rows import Row
from rmjax.study import engines
from rmjax.study.page import filled
from rmjax.study.run import Options, run
from rmjax.study.study import Result, run_cell
from tests.experiments.starting import save_start

ROOT = Path(__file__).parents[3]


def tiny(**changes):
    config = grids.get_config()
    config.update({"pairs": 12, "tested": 4, "batch": 4, "points": 2, "seeds": (0, 1), **changes})
    return config


def test_the_sides_take_turns_and_read_the_same():
    cells = list(measure.cells(tiny()))
    assert [cell.name for cell in cells] == ["rmjax-seed0", "trl-seed0", "rmjax-seed1", "trl-seed1"]
    ours, theirs = (cell.config for cell in cells[:2])
    assert all(ours[name] == theirs[name] for name in ("pairs", "held_out", "model", "training"))
    assert ours.training.run.seed == 0 and cells[2].config.training.run.seed == 1


def rows(side: str, gaps, seconds, seed: int) -> tuple[Row, ...]:
    """Of two held-out pairs, whose gaps are those of a point and their opposite less one."""
    found = []
    for point, (gap, when) in enumerate(zip(gaps, seconds, strict=True)):
        groups = {"point": str(point)}
        found += [Row(str(i), i, measure.GAP, value, groups) for i, value in enumerate((gap, 2 * gap))]
        found += [Row("run", "run", name, f * when, groups) for name, f in (("cpu_seconds", 1.0), ("seconds", 2.0))]
        found.append(Row("run", "run", "step", float(point), groups))
    found += [Row("run", "run", name, 3.0) for name in ("startup_cpu_seconds", "startup_seconds")]
    found += [Row("run", "run", name, 10.0 + seed) for name in measure.FACTS]
    versions = {"rmjax": {"jax": "1", "processor": "Some CPU"}, "trl": {"trl": "2", "processor": "Some CPU"}}[side]
    return (*found, *(Row("run", "run", "versions", 1.0, {"name": n, "said": v}) for n, v in versions.items()))


def results(theirs=(-0.1, 0.0, 0.2)):
    gaps = {"rmjax": (-0.1, 0.1, 0.3), "trl": theirs}
    seconds = {"rmjax": (0.0, 1.0, 2.0), "trl": (0.0, 5.0, 10.0)}

    def done(side, seed):
        return Result("done", rows(side, gaps[side], seconds[side], seed))

    return {cell.name: done(**cell.values) for cell in measure.cells(tiny())}


def found_of(lines, **axes):
    (line,) = [line for line in lines if axes.items() <= line.items()]
    return line


def test_times_are_those_to_what_both_reach():
    lines = measure.summarize(tiny(), results())
    assert found_of(lines, side="rmjax", metric="accuracy", point="2")["value"] == 1.0
    assert found_of(lines, side="trl", metric="accuracy", point="1")["value"] == 0.5  # a tie is half a credit
    assert found_of(lines, side=measure.DIFFERENCE, metric="loss")["value"] < 0
    times = {"metric": "time_to", "clock": "cpu_seconds", "startup": False}
    whole = found_of(lines, side=measure.RATIO, of="pass", **times)
    assert whole["value"] == 5.0 and whole["seeds"] == [5.0, 5.0]
    accuracy = [found_of(lines, side=side, of="accuracy", **times)["value"] for side in measure.SIDES]
    assert accuracy == [1.0, 10.0]
    loss = found_of(lines, side="rmjax", of="loss", **times)
    assert 1.0 < loss["value"] < 2.0 and loss["level"] == found_of(lines, side="trl", metric="loss", point="2")["value"]
    with_startup = found_of(lines, side=measure.RATIO, of="pass", **times | {"startup": True})
    assert with_startup["value"] == pytest.approx(13 / 5)
    parts = measure.parts(lines)
    assert "| the whole pass | 2 (4) | 10 (20) | 5.00 (5.00); 5.0 5.0 |" in parts["times"]
    assert "One core of Some CPU; jax 1, trl 2. 10 pairs a seed, 1 tokens" in parts["measured"].replace("\n", " ")
    page = "\n".join(f"<!-- made: time_to_accuracy/{name} --><!-- end: time_to_accuracy/{name} -->" for name in parts)
    assert filled(page, {f"time_to_accuracy/{k}": v for k, v in parts.items()}, Path("page"), "time_to_accuracy")
    assert list(measure.figures(lines)) == ["time_to_accuracy"]


def test_sides_that_do_not_start_from_one_model_are_refused():
    with pytest.raises(ValueError, match="before training the sides differ by 0.2 in a gap, more than 0.001"):
        measure.summarize(tiny(), results(theirs=(0.0, 0.0, 0.2)))


@pytest.mark.parametrize(
    ("found", "level", "wanted"),
    [
        ((3.0, 2.0, 1.0), 1.5, 15.0),
        ((3.0, 3.0, 1.0), 1.0, 20.0),
        ((1.0, 0.5, 2.0), 1.0, None),
        ((3.0, 2.5, 2.0), 1.0, None),
    ],
)
def test_a_level_is_crossed_between_points(found, level, wanted):
    assert measure.crossing(found, (0.0, 10.0, 20.0), level) == wanted


def test_scoring_and_the_first_step_do_not_count(monkeypatch):
    now = [np.array([100.0, 0.0])]

    def passes(seconds):
        now[0] = now[0] + np.array([seconds, seconds / 2])

    monkeypatch.setattr("experiments.trainers.learning._now", lambda: now[0].copy())
    found = timed_points(lambda n: passes(7.0 if n == 1 else 2.0), lambda n: passes(50.0) or [[1.0, 0.0]], 4, [0, 2, 4])
    assert [point["seconds"] for point in found["points"]] == [0.0, 2.0, 6.0]
    assert [point["cpu_seconds"] for point in found["points"]] == [0.0, 1.0, 3.0]
    assert found["first_step_ended"] == 107.0 and found["startup_cpu_seconds"] == 3.5


@pytest.mark.slow
def test_a_tiny_study_with_another_interpreter_in_place_of_torchs(tmp_path):
    save_start(tmp_path / "start")
    peer = tmp_path / "peer"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/experiments/numpy_llama.py"} "$3"\n')
    peer.chmod(0o755)
    config = tiny(peer=str(peer), seeds=(0,), root=str(tmp_path))
    config.training.model.init, config.training.model.layers = str(tmp_path / "start"), 0
    config.training.format.max_length = config.training.data.row_tokens = 64
    claim = measure.get_claim(config)
    work = tmp_path / "work"
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, work))
    found = run(claim.study, work, engine, Options(lambda name: []))
    lines = claim.summarize(found)
    assert found_of(lines, metric="apart")["value"] < 1e-4
    assert json.loads((work / "rmjax-seed0" / "found.json").read_text())["points"][2]["step"] >= 3
