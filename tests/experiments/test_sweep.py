"""`python -m experiments.sweep` on a tiny model: what it refuses before anything starts, what it writes, and that it resumes."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from experiments import engines
from experiments import sweep as command
from rmjax.recipe import read_config
from rmjax.study import study, sweeps
from rmjax.study.study import RESULT
from tests.experiments.running import ROOT, configured, lines_written

SWEEP = "from rmjax.study.sweeps import product, seeds, sweep\ndef get_sweep():\n    return {}\n"


def write_sweep(home, name, text):
    path = home / f"{name}.py"
    path.write_text(SWEEP.format(text))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sweep('optimizer.learning_rat', (1e-3,))",
            "member 0: the config has no key optimizer.learning_rat; did you mean",
        ),
        ("sweep('optimizer.learning_rate', ('high',))", "optimizer.learning_rate is 'high'; it must be of type float"),
        (
            "sweep('optimizer.learning_rate', (1e-3, -1.0))",
            r"member 1 \(learning_rate=-1\): config.optimizer.learning_rate",
        ),
        ("sweep('objective', ('preference', 'x'))", r"member 1 \(objective=x\): config.objective is 'x'"),
        ("seeds(2) + seeds(1)", r"member 2 is the same as an earlier one \(seed=0\)"),
        ("[]", "the sweep has no members"),
        ("{'run.seed': 1}", "get_sweep gives dict; it must give a list of dicts"),
    ],
)
def test_what_is_refused_before_anything_starts(home, text, message):
    with pytest.raises(ValueError, match=message):
        command.study_of(configured(home), command.load_sweep(write_sweep(home, "bad", text)), "s", "train")


def test_the_page_s_example_of_a_random_search_can_be_run():
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^\| `(sample\(.*\))` \|", text, re.MULTILINE)
    members = eval(example, vars(sweeps))
    made = command.study_of(read_config("configs/polar/pretrain.py"), members, "s", "train")
    assert len(made.cells) == 16


@pytest.mark.parametrize(
    ("metrics", "stop", "message"),
    [
        (
            ["train/loss", "eval/sen/accuracy"],
            "",
            "--metric=eval/sen/accuracy: no member logs that; there are steps, train/…, eval",
        ),
        (["loss"], "", "--metric=loss: no member logs that"),
        ([], "median", "--stop_metric=tran/loss: no member logs that"),
        (["steps", "eval/seen/accuracy"], "", "nothing is run"),
    ],
)
def test_a_metric_that_no_member_can_log_is_refused_before_anything_starts(home, monkeypatch, metrics, stop, message):
    def execute(*_):
        raise ValueError("nothing is run")

    monkeypatch.setattr(engines, "execute", execute)
    monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(stop=stop, stop_metric="tran/loss"))
    with pytest.raises(ValueError, match=message):
        command.run(configured(home), "c.py", write_sweep(home, "two", "seeds(2)"), home / "m", "train", metrics)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "there is no experiments/nothing.py"), ("start", "has no run"), ("study", "has no run")],
)
def test_an_experiment_that_is_none(home, name, message):
    with pytest.raises(ValueError, match=message):
        command.study_of(configured(home), [{"run.seed": 1}], "s", name)


def test_a_sweep_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="--sweep=.*absent.py: no such file"):
        command.load_sweep(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match="not a Python file"):
        command.load_sweep(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="has no function get_sweep"):
        command.load_sweep(tmp_path / "empty.py")


@pytest.mark.parametrize(
    "spelling", ["configs/polar/pretrain.py", "./configs/polar/pretrain.py", ROOT / "configs/polar/pretrain.py"]
)
def test_however_a_path_is_spelled_it_is_the_same_study(spelling, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command._spelled(f"{spelling}:x") == "configs/polar/pretrain.py:x"
    assert command._spelled("/elsewhere/../rates.py") == "/rates.py"


@pytest.fixture(scope="module")
def config_file(home):
    values = json.loads(configured(home, run__steps=12, run__save_every=2).to_json())
    path = home / "swept.py"
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n")
    return path


def start(config_file, sweep, workdir, *flags):
    arguments = [f"--config={config_file}", f"--sweep={sweep}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_the_commands_are_printed_and_nothing_starts(home, config_file, tmp_path):
    said, _ = start(config_file, write_sweep(home, "two", "seeds(2)"), tmp_path / "s", "--engine=print").communicate()
    assert [line.split()[-1] for line in said.splitlines()] == ["--cell=seed=0", "--cell=seed=1"]
    assert "--engine" not in said and not list((tmp_path / "s").glob("*/"))


def test_the_tables_of_a_folder_that_holds_no_study(tmp_path, monkeypatch):
    given = SimpleNamespace(cell="", engine="none", stop="")
    monkeypatch.setattr(engines.flags, "FLAGS", given)
    (tmp_path / "thesis.txt").touch()
    made = study.Study("s", (), lambda *_: None, lambda *_: [])
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"--workdir={folder} is not there, or holds no study; give the folder"):
            engines.execute(made, folder, "experiments.sweep")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_killed_it_goes_on_and_reports_what_failed(home, config_file, tmp_path):
    """Two seeds, and a member whose file is broken."""
    (home / "broken.jsonl").write_text("{")
    sweep = write_sweep(home, "some", f"seeds(2) + sweep('data.path', ('{home}/broken.jsonl',))")
    workdir = tmp_path / "sweep"
    process = start(config_file, sweep, workdir)
    while not (found := [p for p in workdir.glob("*/metrics.jsonl") if lines_written(p.parent) > 3]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = found[0].parent
    stopped = lines_written(first)
    out, err = (process := start(config_file, sweep, workdir)).communicate(timeout=600)
    assert process.returncode == 1 and err.splitlines()[-1].startswith("error: 1 of 3 cells have no result (")
    assert "broken.jsonl" in err.splitlines()[-1] and "Traceback" not in err
    found = json.loads((workdir / "sweep.json").read_text())["members"]
    assert sorted(member["status"] for member in found.values()) == ["done", "done", "failed"]
    assert lines_written(first) > stopped
    rows = list(csv.DictReader((workdir / "sweep.csv").open()))
    assert len(rows) == 3 and {row["status"] for row in rows} == {"done", "failed"}
    long = [json.loads(line) for line in (workdir / "rows.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in long} >= {"train/loss", "eval/seen/accuracy", "steps"} and "train/loss" in out
    assert "<svg" in (workdir / "data.path.svg").read_text()
    before = {path: path.stat().st_mtime_ns for path in workdir.glob(f"*/{RESULT}") if "failed" not in path.read_text()}
    out, _ = start(config_file, sweep, workdir, "--engine=none", "--metric=train/loss").communicate(timeout=600)
    assert out.splitlines()[0].split()[-2:] == ["status", "train/loss"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
