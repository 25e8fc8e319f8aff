"""`make demo` with runs of two steps: the whole path, and the shape of its report."""

import json
import os
import signal

import pytest

from experiments import demo
from experiments.start import guarded
from rmjax.data.pool import PolicyPool
from rmjax.data.sources import pool_rows, records
from rmjax.locks import InUseError, locked
from rmjax.parallel.mesh import make_mesh
from rmjax.train.loop import Preempted

LEAF = {"value", "low", "high", "n"}
SHORT = """
from configs import demo

def get_config(run):
    config = demo.get_config(run)
    config.model.layers, config.model.frozen_layers, config.run.steps = 2, 1, 2
    return config
"""


@pytest.fixture
def few(monkeypatch):
    """Of the tests that the demo evaluates on, so many that every number is there."""

    chosen = sorted({row.prompt_id for row in pool_rows(demo.POOL, "all", "unseen")})[:12]

    def some(*of):
        return PolicyPool([row for row in pool_rows(*of) if row.prompt_id in chosen])

    monkeypatch.setattr(demo, "pool", some)
    monkeypatch.setattr(demo, "records", lambda path: list(records(path))[:6])


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.py"
    path.write_text(SHORT)
    return str(path)


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"--config=absent.py: no such file"):
        demo.load_runs("absent.py")


def test_the_larger_runs_are_the_demos_with_other_sizes():
    small, large = (demo.load_runs(path) for path in ("configs/demo.py", "configs/polar/larger.py"))
    for one, other in zip(small, large, strict=True):
        assert one.data.path == other.data.path and one.model.layers < other.model.layers == 30


@pytest.mark.slow
def test_report_has_what_is_promised_and_a_second_run_only_reports(short, few, smollm2, tmp_path):
    demo.run(tmp_path, short, seed=0, per_prompt=1)
    report = json.loads((tmp_path / "report.json").read_text())
    paths = [("policy_accuracy", split) for split in ("seen", "unseen")]
    paths += [("preference_accuracy", arm) for arm in ("pretrained", "scratch")]
    tails = [*paths[:2], ("seen",), ("unseen",)]
    paths += [("baselines", name, *tail) for name in ("word_overlap", "length") for tail in tails]
    for path in paths:
        leaf = report
        for key in path:
            leaf = leaf[key]
        assert set(leaf) >= LEAF, path
        assert 0 <= leaf["low"] <= leaf["value"] <= leaf["high"] <= 1, path
    assert report["seconds"] > 0
    assert "<svg" in (tmp_path / "report.html").read_text()

    checkpoints = sorted(p for p in tmp_path.glob("*/checkpoints/*"))
    changed = [p.stat().st_mtime_ns for p in checkpoints]
    demo.run(tmp_path, short, seed=0, per_prompt=1)
    assert [p.stat().st_mtime_ns for p in checkpoints] == changed
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["policy_accuracy"] == report["policy_accuracy"]
    assert again["seconds"] > report["seconds"]


@pytest.mark.parametrize("part", ["train_all", "judge"])
def test_sigterm_says_how_to_go_on_and_leaves_no_report(part, monkeypatch, tmp_path, capsys):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr(demo, "train_all", lambda *_: None)
    monkeypatch.setattr(demo, part, stop)
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: demo.run(tmp_path, "configs/demo.py", 0, 1), resumes=True) == 0
    assert capsys.readouterr().err == "asked to stop; run the same command to go on (no report yet)\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "report.json").exists()


def test_a_workdir_that_is_a_file_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert guarded(lambda: demo.run(tmp_path / "file", "configs/demo.py", 0, 1)) == 1
    assert f"error: --workdir={tmp_path}/file cannot be written" in capsys.readouterr().err


def test_a_workdir_that_another_demo_holds(tmp_path, monkeypatch):
    """The runs below it have locks of their own, which do not clash with that of the whole."""
    monkeypatch.setattr(demo, "train_all", lambda *_: pytest.fail("two demos in one folder"))
    with locked(tmp_path), pytest.raises(InUseError, match="is in use by another run"):
        demo.run(tmp_path, "configs/demo.py", 0, 1)

    def train_all(workdir, *_):
        (workdir / "pretrain").mkdir()
        with locked(workdir / "pretrain"):
            raise Preempted("its own lock")

    monkeypatch.setattr(demo, "train_all", train_all)
    with pytest.raises(Preempted, match="its own lock"):
        demo.run(tmp_path, "configs/demo.py", 0, 1)


@pytest.mark.parametrize("path", ["configs/demo.py", "configs/polar/larger.py"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_mesh_takes_any_number_of_devices(path, devices, monkeypatch):
    """A batch of one row cannot be shared out by rows."""
    monkeypatch.setattr("jax.device_count", lambda: devices)
    monkeypatch.setattr("jax.make_mesh", lambda shape, axes, **_: dict(zip(axes, shape, strict=True)))
    for config in demo.load_runs(path):
        mesh = make_mesh(config.mesh.to_dict())
        assert config.data.rows % (mesh["data"] * mesh["fsdp"]) == 0
        assert config.data.row_tokens % mesh["context"] == 0
