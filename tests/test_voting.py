"""Vote models from end to end: one run, each in its own order; then their strengths on the records, which are trained on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rmjax import config as base
from rmjax.data.readers import open_records
from rmjax.trainer import Trainer
from rmjax.voting import summary, voted
from tests.experiments.running import ranked_rows
from tests.experiments.starting import save_start

ROOT = Path(__file__).parents[1]


def config_of(home: Path, **changes):
    config = base.get_config()
    values = {
        "model.init": str(home / "start"), "data.kind": "comparisons", "data.path": str(home / "pairs.jsonl"), "data.rows": 2,
        "data.row_tokens": 128, "data.groups": 4, "data.prefetch": 0, "optimizer.learning_rate": 1e-2, "run.steps": 4,
        "run.save_every": 4,
    }  # fmt: skip
    config.update_from_flattened_dict(values | {name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.mark.slow
def test_strengths_of_a_run(tmp_path):
    save_start(tmp_path / "start", head=0.2)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows()))
    votes = {"ensemble__members": 3, "ensemble__over": "trainable", "ensemble__order": "own", "ensemble__seen": 0.5}
    trainer = Trainer(config_of(tmp_path, **votes), tmp_path / "run")
    batch = trainer.source.next(None, 1)
    assert set(batch) == {"preference", "member1", "member2"}
    orders = {name: np.ravel(forest.record_RG).tolist() for name, forest in batch.items()}
    assert len(set(map(tuple, orders.values()))) == 3
    trainer.run()
    found = voted(tmp_path / "run")
    said = summary(found)
    assert said["records"] == len(ranked_rows()) and said["in_sample"]["records"] > 0
    assert said["cross_fitted"]["records"] > 0 and 0 <= said["cross_fitted"]["below 0"] <= 1

    output = tmp_path / "voted.jsonl"
    command = [sys.executable, "-m", "experiments.strength", f"--run={tmp_path / 'run'}", f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    read = list(open_records(output))
    for c, wanted in zip(read, found, strict=True):
        assert {n: np.allclose(v, wanted.columns[n]) for n, v in c.columns.items()} == dict.fromkeys(c.columns, True)

    further = {"data__path": str(output), "data__on_error": "skip", "loss__order": "strength", "strength__margin": 1.0}
    metrics = Trainer(config_of(tmp_path, **further, strength__flip=0.3, strength__of="cross_fitted")).step()
    assert np.isfinite(metrics["loss"])

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows()[:-1]))
    with pytest.raises(ValueError, match="learned from other data than its config names now"):
        voted(tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_one_model_has_no_votes(tmp_path):
    save_start(tmp_path / "start", head=0.2)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows()))
    Trainer(config_of(tmp_path, run__steps=1, run__save_every=1), tmp_path / "run").run()
    with pytest.raises(ValueError, match="the model has no members; train one with ensemble.members above 1"):
        voted(tmp_path / "run")
