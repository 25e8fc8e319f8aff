"""The files and commands of the first hour, as the page has them, with a tiny model."""

import json
import os
import subprocess
import sys

import pytest

from tests.experiments.starting import save_start
from tools.docs.pages import ROOT, blocks

SMALL = (
    "model.init=start model.layers=0 model.frozen_layers=0 format.template=chatml data.row_tokens=128 run.steps=3 "
    "run.save_every=3"
)


@pytest.mark.slow
def test_from_two_files_to_scores_and_a_report(tmp_path):
    save_start(tmp_path / "start", objective="language_model")
    mine = tmp_path / "runs/mine"
    mine.mkdir(parents=True)
    preferences, answers = (block.text for block in blocks(ROOT / "docs/first-hour.md") if block.language == "json")
    (mine / "preferences.jsonl").write_text(preferences)
    (mine / "answers.jsonl").write_text(answers)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for block in blocks(ROOT / "docs/first-hour.md"):
        if block.language not in ("bash", "python"):
            continue
        if block.language == "python":
            command = [sys.executable, "-c", block.text]
        else:
            small = SMALL if "rmjax train" in block.text else ""
            words = f"{block.text.strip()} {small}".replace("rmjax ", f"{sys.executable} -m rmjax.command ", 1)
            command = ["bash", "-ec", words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (block.place, done.stderr)
    scored = [json.loads(line) for line in (mine / "scored.jsonl").read_text().splitlines()]
    assert len(scored) == len(answers.splitlines()) and all(isinstance(row["reward"], float) for row in scored)
    assert (mine / "report/report.html").is_file() and (mine / "report/scores.jsonl").is_file()
