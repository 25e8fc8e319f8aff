"""`make demo` with runs of two steps: the whole path, and the shape of its report."""

import json

import pytest

from configs import demo as demo_config
from experiments import demo

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
