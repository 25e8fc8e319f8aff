"""LoRAMoE: six experts of rank 4 on the three MLP matrices of every layer, with the balancing constraint.

`--config=configs/loramoe.py` fine-tunes a reward model on ranked answers with type labels;
`--config=configs/loramoe.py:language_model` a language model on texts with type labels.
Both need `--config.data.path=FILE`, each line of it with a `type`: 0 or 1.
"""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config(objective: str = "preference") -> ConfigDict:
    if objective not in ("preference", "language_model"):
        raise ValueError(f"configs/loramoe.py:{objective} is unknown; choose preference or language_model")
    config = base.get_config()
    config.objective = objective
    config.adapter.kind = "loramoe"
    config.adapter.dropout = 0.05
    config.adapter.beta = 0.1
    config.data.kind = "comparisons" if objective == "preference" else "texts"
    if objective == "language_model":
        config.format.kind = "chat"
        config.format.template = "chatml"
    config.data.reference = "optional"
    config.data.candidates = 2 if objective == "preference" else 1
    config.optimizer.learning_rate = 2e-4  # official script, as the next two
    config.optimizer.warmup = 0.03
    config.optimizer.final = 0.0
    return config
