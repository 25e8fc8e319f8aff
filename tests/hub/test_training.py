"""A run that starts from a folder of the hub, and goes out again as one of the same family."""

import json

import numpy as np
import pytest

from experiments import export as command
from rmjax import RewardModel, Trainer
from rmjax import config as base
from tests.hub.goldens import copied


@pytest.mark.slow
def test_a_run_starts_from_a_folder_and_goes_out_again(tmp_path, capsys):
    rows = [{"prompt": f"say {word}", "chosen": f"it is {word}", "rejected": "no"} for word in ("a", "b", "c", "d")]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "model.init": str(copied("qwen3", tmp_path / "qwen3")), "data.kind": "comparisons", "data.rows": 2,
            "data.path": str(tmp_path / "ranked.jsonl"), "data.reference": "optional", "data.row_tokens": 64,
            "format.kind": "plain", "format.reward_token": "</s>", "format.max_length": 60, "run.steps": 2,
            "run.save_every": 2, "run.log_every": 1, "optimizer.learning_rate": 1e-2,
        }
    )  # fmt: skip
    Trainer(config, tmp_path / "run").run()
    command.export(tmp_path / "run", "hugging_face", tmp_path / "out")
    assert "Qwen3ForSequenceClassification" in capsys.readouterr().out
    asked = [{"prompt": "say a", "output": text} for text in ("it is a", "no")]
    ours, theirs = RewardModel.load(tmp_path / "run"), RewardModel.load(tmp_path / "out")
    assert ours.config.windowed == (False, True) and np.any(ours.params["head"]["kernel"])
    np.testing.assert_allclose(theirs.score(asked), ours.score(asked), atol=1e-5)  # dense attention, and in tiles
