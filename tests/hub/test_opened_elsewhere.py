"""`transformers` opens what is exported and gives the same rewards, where an environment with it is (`make parity`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments import export as command
from rmjax.reward_model import RewardModel
from tests.experiments.starting import save_start
from tests.hub.goldens import copied

PEER = Path(os.environ.get("RMJAX_PEER", Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"))
READS = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = []
for folder, conversations in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32").eval()
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        found.append(model(**batch).logits[:, 0].tolist())
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="no environment with torch and transformers: make parity")
def test_transformers_gives_the_same_rewards(tmp_path):
    """A run whose texts end with a reward token, and models of the hub with a chat template."""
    rows = [{"prompt": "say it", "output": text} for text in ("it is", "no", "it was a long one")]
    turns = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["output"]}] for r in rows]
    sources = [save_start(tmp_path / "run", head=1.0)]
    sources += [copied(name, tmp_path / name) for name in ("gemma2_reward", "phi3_reward", "llama_reward_pad_eos")]
    ours, asked = [], []
    for n, source in enumerate(sources):
        more = {} if n == 0 else {"dtype": "float32"}
        ours.append(RewardModel.load(source, **more).score(rows))
        command.export(source, "hugging_face", tmp_path / f"out{n}")
        asked.append((str(tmp_path / f"out{n}"), turns))
    done = subprocess.run([str(PEER), "-c", READS, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), ours, rtol=0, atol=1e-5)
