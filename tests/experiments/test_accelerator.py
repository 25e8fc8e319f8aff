"""The accelerator's benchmark: which stages run, what a file keeps, the tables; all of it once at toy size."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from experiments import accelerator, accelerator_stages
from rmjax.study.page import differing
from rmjax.study.summary import read_summary

ROOT = Path(__file__).parents[2]
ABOUT = {
    "device": "1 x Fast (gpu)",
    "versions": {"jax": "1", "flax": "2"},
    "command": "python -m experiments.accelerator",
}


def given(tmp_path: Path, **changes) -> accelerator.Given:
    told = accelerator.Given(10.0, tmp_path / "out.json", tmp_path / "work", True, "", "smollm2", str(tmp_path), "")
    return dataclasses.replace(told, **changes)


def opened(tmp_path: Path) -> accelerator.Results:
    return accelerator.Results.open(tmp_path / "out.json", ABOUT)


def line(name: str, status: str, told: accelerator.Given, **more) -> dict:
    stage = next(stage for stage in accelerator.STAGES if stage.name == name)
    return {"status": status, "seconds": 3.0, "sizes": accelerator.sizes_of(stage, told), **more}


def test_what_is_done_is_not_done_again_and_what_failed_comes_last(tmp_path):
    told, results = given(tmp_path), opened(tmp_path)
    names = [stage.name for stage in accelerator.missing(results, told)]
    assert names == ["kernels", "utilization", "forests", "scoring", "sampling", "polar"]
    results.keep("kernels", line("kernels", "failed", told, error="all of it"), {"dense": {"error": "Out of memory"}})
    results.keep("utilization", line("utilization", "done", given(tmp_path, toy=False)), {"a": {"mfu": 0.5}})
    for name in ("forests", "scoring", "sampling", "polar"):
        results.keep(name, line(name, "done", told), {})
    again = opened(tmp_path)
    assert [stage.name for stage in accelerator.missing(again, told)] == ["utilization", "kernels"]
    assert (
        again.cases("kernels") == {"dense": {"error": "Out of memory"}}
        and again.stage("kernels")["error"] == "all of it"
    )
    with_peer = given(tmp_path, peer="/home/me/bin/python", init="big.gguf")
    assert [stage.name for stage in accelerator.missing(again, with_peer)] == [
        "utilization",
        "forests",
        "polar",
        "kernels",
    ]
    assert accelerator.sizes_of(accelerator.STAGES[2], with_peer)["peer"] == "python"


def test_a_file_of_another_device_is_refused(tmp_path):
    opened(tmp_path).keep("kernels", line("kernels", "done", given(tmp_path)), {})
    with pytest.raises(
        ValueError, match="out.json has results of 1 x Fast .gpu., and this is another; use another --out"
    ):
        accelerator.Results.open(tmp_path / "out.json", ABOUT | {"device": "another"})


def test_a_stage_starts_only_where_there_is_time_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "_said", lambda *_: (0, json.dumps(ABOUT)))
    started = []
    monkeypatch.setattr(
        accelerator, "run_stage", lambda given, results, stage, seconds: started.append((stage.name, seconds))
    )
    accelerator.run(given(tmp_path, toy=False, minutes=1.0))
    assert [name for name, _ in started] == ["kernels", "scoring", "sampling"] and all(s <= 60 for _, s in started)
    assert "utilization: not started, 60 s are left of the 75 that it needs" in capsys.readouterr().out


STAGE = """
import json, pathlib, sys, time
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
pathlib.Path(job["file"]).write_text(json.dumps(job["cases"] | {"first": {"tokens_per_second": 5.0}}))
print("it said so", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("", "done", ""),
        ("sys.exit('no memory')", "failed", "it said so\nno memory\n"),
        ("time.sleep(60)", "stopped", ""),
    ],
)
def test_a_stage_that_fails_or_hangs_keeps_what_it_found(tmp_path, monkeypatch, ending, status, said):
    script = tmp_path / "stage.py"
    script.write_text(STAGE + ending)
    real = accelerator.subprocess.Popen
    monkeypatch.setattr(
        accelerator.subprocess,
        "Popen",
        lambda command, **more: real([sys.executable, str(script), command[-1][6:]], **more),
    )
    monkeypatch.setattr(accelerator, "GRACE", 1)
    stage = next(stage for stage in accelerator.STAGES if stage.name == "sampling")
    began = time.monotonic()
    results = opened(tmp_path)
    accelerator.run_stage(given(tmp_path), results, stage, 3.0)
    assert time.monotonic() - began < 30
    about, lines = read_summary(tmp_path / "out.json", accelerator.NAME)
    assert about["device"] == ABOUT["device"] and lines[1] == {
        "stage": "sampling",
        "case": "first",
        "tokens_per_second": 5,
    }
    assert lines[0]["status"] == status and lines[0].get("error", "") == said
    table = accelerator.table(results.lines)
    assert ["sampling", "first", "5 tokens/s"] in table and (len(table) == 2) == (status == "done")


def test_polar_that_has_not_come_to_its_end_goes_on(tmp_path, monkeypatch):
    def said(given, name, job, seconds):
        Path(job["file"]).parent.mkdir(exist_ok=True)
        Path(job["file"]).write_text(
            json.dumps(job["cases"] | {f"after {len(job['cases'])}": {"finished": bool(job["cases"])}})
        )
        return 0, ""

    monkeypatch.setattr(accelerator, "_said", said)
    results, stage = opened(tmp_path), accelerator.STAGES[-1]
    for status in ("stopped", "done"):
        accelerator.run_stage(given(tmp_path), results, stage, 60.0)
        assert results.stage("polar")["status"] == status
    assert len(results.cases("polar")) == 2


@pytest.mark.parametrize(
    ("step_seconds", "left", "layers"),
    [
        ({2: 0.3, 6: 0.5}, 100.0, 16),  # 0.2 s and 0.05 s a layer: 0.2 + 16 × 0.05 = 1 s a step
        ({6: 0.5, 2: 0.3}, 99.9, 15),
        ({2: 0.3, 6: 0.5}, 1e6, 30),  # all that there are
        ({2: 0.3, 6: 0.5}, 10.0, 1),  # none fits
        ({2: 0.3, 6: 0.5}, -5.0, 1),
        ({2: 0.6, 6: 0.6}, 100.0, 10),  # noise: 0.1 s a layer
        ({2: 0.1, 6: 0.5}, 100.0, 10),  # 0.1 s a layer, and a beginning below zero, which counts as zero
        ({4: 0.4}, 100.0, 10),
    ],
)
def test_the_largest_backbone_that_fits_the_time(step_seconds, left, layers):
    assert accelerator_stages.most_layers(step_seconds, available=30, steps=100, left=left) == layers


def test_polar_goes_on_with_the_backbone_that_it_chose_and_says_what_chose_it(tmp_path, monkeypatch):
    probed, trained = [], []
    monkeypatch.setattr(
        accelerator_stages, "_step_seconds", lambda run, layers, rounds: probed.append(layers) or 0.1 * layers
    )
    monkeypatch.setattr(
        accelerator_stages, "_train", lambda run, folder, seconds: trained.append((run.model.layers, folder.name))
    )
    sizes = accelerator.sizes_of(accelerator.STAGES[-1], given(tmp_path, toy=False))
    sizes["config"]["run.steps"] = 100
    kept = {}
    for seconds in (110.0, 1000.0):  # less the reserve: 50 s, 0.5 s a step
        notes = accelerator_stages.Notes(dict(kept), kept.update, tmp_path, seconds, init="smollm2")
        accelerator_stages.polar(notes, sizes)
    assert probed == [2, 6] and trained == [(4, "run-4"), (4, "run-4")]
    shown = accelerator.shown("polar", kept["backbone"])
    assert "4 of 30 layers, the most whose 100 steps fit in 0.8 minutes; a step took 0.2 s at 2, 0.6 s at 6" in shown


@pytest.mark.parametrize("python", ["/opt/env", "/home/me/here/.venv", "/home/me/env"])
def test_errors_hold_no_path_of_the_machine(monkeypatch, python):
    monkeypatch.setattr(accelerator.Path, "cwd", lambda: Path("/home/me/here"))
    monkeypatch.setattr(accelerator.Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(accelerator.sys, "prefix", python)
    monkeypatch.setattr(accelerator.sys, "base_prefix", "/usr")
    text = f'File "/home/me/here/rmjax/x.py"; File "{python}/lib/y.py"; File "/usr/lib/z.py"; File "/home/me/w.py"'
    said = 'File "./rmjax/x.py"; File "PYTHON/lib/y.py"; File "PYTHON/lib/z.py"; File "~/w.py"'
    assert accelerator.without_paths(text) == said


def test_the_section_says_what_the_files_say(tmp_path):
    part = {"accelerator/devices": accelerator.section(ROOT)}
    assert differing((ROOT / accelerator.PAGE).read_text(), part, accelerator.PAGE, accelerator.NAME) == []
    folder = tmp_path / accelerator.RESULTS
    folder.mkdir(parents=True)
    results = accelerator.Results.open(folder / "fast.json", ABOUT)
    step = {"seconds": 1.0, "low": 0.9, "high": 1.1, "mfu": 0.475, "planned_gb": 70.2}
    results.keep(
        "utilization",
        line("utilization", "done", given(tmp_path)),
        {"pallas dots": step, "dense full": {"error": "x\nOut of memory"}},
    )
    section = accelerator.section(tmp_path)
    assert (
        "### fast" in section
        and "| utilization | pallas dots | 1.000 s (0.900–1.100), MFU 47.5 %, planned 70 GB |" in section
    )
    assert "| utilization | dense full | failed: Out of memory |" in section


@pytest.mark.slow
def test_everything_runs_at_toy_size(tmp_path):
    accelerator.run(given(tmp_path, minutes=30.0))
    _, lines = read_summary(tmp_path / "out.json", accelerator.NAME)
    failed = [line for line in lines if "error" in line or line.get("status", "done") != "done"]
    assert not failed and {line["stage"] for line in lines} == {stage.name for stage in accelerator.STAGES}
    assert len(accelerator.table(lines)) > 10
