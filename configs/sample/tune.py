"""Fine-tunes SmolLM2-135M on one small corpus, with an early and a late checkpoint: two more policies."""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective = "language_model"
    config.trainable = "/layers/|final_norm"
    config.format.kind = "chat"
    config.format.template = "chatml"
    config.data.kind = "texts"
    config.data.path = "runs/corpus/texts/verne.jsonl"  # lines of {"prompt", "output"}
    config.data.rows = 4
    config.data.row_tokens = 128
    config.data.candidates = 1
    config.optimizer.learning_rate = 2e-4
    config.run.steps = 30
    config.run.save_every = 15
    config.run.keep_every = 15  # both checkpoints are policies
    config.run.log_every = 1
    return config
