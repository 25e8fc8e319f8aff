"""PEFT itself reads what is exported and gives the same rewards, where an environment with torch and PEFT is (`make bench`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments.trainers.exchange import write_model
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.hub.adapters import export_peft
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import first_layers, flat, nested
from rmjax.models.reward import RewardTransformer
from tests.models.adapting import EVERY, moved, small, started

PEER = Path(os.environ.get("RMJAX_PEER", Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"))
READS = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base, adapter, sequences = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    print(json.dumps([model(torch.tensor([ids])).logits.item() for ids in sequences]))
"""


def has_peft() -> bool:
    found = PEER.exists() and subprocess.run(
        [str(PEER), "-c", "import importlib.util as u; assert u.find_spec('peft')"]
    )
    return bool(found) and found.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_peft(), reason="no environment with torch and PEFT; `make bench` makes one")
@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "loramoe"])
def test_peft_gives_the_same_rewards(kind, frozen, tmp_path):
    adapter = AdapterConfig(kind, EVERY, rank=3, alpha=6.0)  # LoRAMoE with one expert is LoRA
    model, params = started(small(adapter=adapter, depth=3, frozen_layers=frozen))
    params = moved(params)
    bare = nested({path: leaf for path, leaf in flat(params).items() if "lora_" not in path})
    bare = {"backbone": first_layers(bare["backbone"], 3), "head": {"kernel": 0 * bare["head"]["kernel"]}}
    write_model(tmp_path / "base", small(depth=3), bare, "{}")
    export_peft(tmp_path / "adapter", model.config, params, str(tmp_path / "base"))
    sequences = [[5, 9, 2, 44, 17], [5, 9, 3], [7, 1, 8, 2]]
    command = [str(PEER), "-c", READS, str(tmp_path / "base"), str(tmp_path / "adapter"), json.dumps(sequences)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    trees = [Tree.from_sequences([ids], ranks=[0.0]) for ids in sequences]
    forest = fill(ForestShape(3, 8, 1, 1), [[tree] for tree in trees])
    ours = np.asarray(RewardTransformer(model.config).apply({"params": params}, forest))[:, 0, 0]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), ours, atol=1e-4)
    assert np.ptp(ours) > 0.1
