"""`make demo` with runs of two steps: the whole path, and the shape of its report."""

import json
import os
import signal

import pytest

from configs import demo as demo_config
from experiments import demo
from experiments.train import guarded
from rmjax.parallel.mesh import make_mesh

LEAF = {"value", "low", "high", "n"}


@pytest.fixture
def short(monkeypatch):
    for name in ("pretrain", "finetune"):
        config = getattr(demo_config, name)()
        config.model.layers, config.model.frozen_layers, config.run.steps = 2, 1, 2
        monkeypatch.setattr(demo_config, name, lambda config=config: config.copy_and_resolve_references())
    monkeypatch.setattr(demo, "GROUPS_PER_PROMPT", 1)


@pytest.mark.slow
def test_report_has_what_is_promised_and_a_second_run_only_reports(short, smollm2, tmp_path):
    demo.run(tmp_path, seed=0)
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
    demo.run(tmp_path, seed=0)
    assert [p.stat().st_mtime_ns for p in checkpoints] == changed
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["policy_accuracy"] == report["policy_accuracy"]
    assert again["seconds"] > report["seconds"]


@pytest.mark.parametrize("part", ["train_all", "judge"])
def test_sigterm_says_how_to_go_on_and_leaves_no_report(part, monkeypatch, tmp_path, capsys):
    def stop(workdir, seed):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr(demo, "train_all", lambda workdir, seed: None)
    monkeypatch.setattr(demo, part, stop)
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: demo.run(tmp_path, seed=0)) == 0
    assert capsys.readouterr().err == "asked to stop; run the same command to go on (no report yet)\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "report.json").exists()


def test_a_workdir_that_is_a_file_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert guarded(lambda: demo.run(tmp_path / "file", seed=0)) == 1
    assert f"error: --workdir={tmp_path}/file cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_mesh_takes_any_number_of_devices(name, devices, monkeypatch):
    """A batch of one row must not be shared out by rows."""
    config = getattr(demo_config, name)()
    monkeypatch.setattr("jax.device_count", lambda: devices)
    monkeypatch.setattr("jax.make_mesh", lambda shape, axes, **_: dict(zip(axes, shape, strict=True)))
    mesh = make_mesh(config.mesh.to_dict())
    assert config.data.rows % (mesh["data"] * mesh["fsdp"]) == 0
    assert config.data.row_tokens % mesh["context"] == 0
