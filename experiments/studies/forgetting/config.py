"""What a language model loses while it learns new tasks, by method and amount of data.

All arms change the same layers, start from the same weights and see the same texts in the same order. The studies
`forgetting:loramoe_tiny` and `forgetting:gsm8k_train` take real sets as the new tasks (docs/data.md).
"""

from typing import Any

from ml_collections import ConfigDict

from rmjax import config as base


def get_config(tasks: str = "shipped") -> ConfigDict:
    """With `shipped`, `loramoe_tiny` or `gsm8k_train` as the new tasks."""
    config = ConfigDict()
    config.init = "smollm2"  # as model.init in configs/base.py; it must know something
    config.layers = 0  # first k layers only; 0 = all. Questions that the first layers alone cannot answer are not asked
    config.frozen_layers = 24  # of them, from the bottom; the rest is what an arm trains, or adapts
    config.tasks = tasks  # shipped (reasoning-gym) | loramoe_tiny | gsm8k_train; the last two from root
    config.root = "../shared/data"  # where the real sets lie
    config.sizes = (24, 96, 384)  # tasks in the training data
    config.knowledge_share = 0.2  # of the training texts: closed-book questions (type 1)
    config.passes = 1  # over the training texts
    config.seeds = (0, 1, 2)  # of the choice of texts, their order and the random weights
    config.rows = 1  # rows a batch
    config.row_tokens = 256  # tokens a row; longer texts are left out
    config.groups = 16  # texts a row at most
    config.tested_tasks = 72  # held-out tasks
    config.tested_texts = 24  # general texts of each kind
    config.answer_tokens = 16  # tokens that an answer to a question may have
    config.keep_checkpoints = False  # True: some 600 MB a run

    config.arms = arms = ConfigDict()
    arms.full = arm(learning_rate=2e-4)
    arms.full_slow = arm(learning_rate=5e-5, swept=True)  # who learns less forgets less: a second point to compare with
    arms.lora = arm("lora", rank=27)  # as many parameters as the six experts and their routers, + 2 %
    arms.loramoe = arm("loramoe")
    arms.balanced = arm("loramoe", beta=0.1)
    arms.beta_strong = arm("loramoe", beta=1.0, swept=True)
    arms.delta_none = arm("loramoe", beta=0.1, delta=0.0, swept=True)
    arms.delta_strong = arm("loramoe", beta=0.1, delta=0.5, swept=True)
    config.chosen = ".*"  # regular expression: arms whose whole name matches are run; a later command may add others
    config.compared = (  # first − second
        ("lora", "full"),
        ("loramoe", "lora"),
        ("balanced", "loramoe"),
        ("balanced", "lora"),
    )
    if tasks != "shipped":
        config.row_tokens, config.chosen = 384, "full|lora|loramoe|balanced"
        config.sizes = (96,) if tasks == "gsm8k_train" else (96, 384)
    return config


def arm(
    kind: str = "",
    learning_rate: float = 1e-3,
    rank: int = 4,
    beta: float = 0.0,
    delta: float = 0.1,
    swept: bool = False,
) -> ConfigDict:
    """An arm: full fine-tuning where `kind` is empty."""
    entry = ConfigDict()
    entry.kind = kind  # as adapter.kind in configs/base.py
    entry.learning_rate = learning_rate  # peak
    entry.rank = rank  # of each expert
    entry.beta = beta  # factor of the balancing constraint
    entry.delta = delta  # its tilt
    entry.swept = swept  # True: at the largest size only
    return entry


def training(grid: Any, name: str, seed: int, path: str) -> ConfigDict:
    """The run of an arm on a file of texts; its number of steps is left open."""
    chosen, config = grid.arms[name], base.get_config()
    config.objective = "language_model"
    config.model.init = grid.init
    config.model.layers = grid.layers
    config.model.frozen_layers = grid.frozen_layers
    config.trainable = "/layers/"
    config.adapter.kind = chosen.kind
    config.adapter.rank = chosen.rank
    config.adapter.beta = chosen.beta
    config.adapter.delta = chosen.delta
    config.format.kind = "chat"
    config.format.template = "chatml"
    config.data.kind = "texts"
    config.data.path = path
    config.data.rows = grid.rows
    config.data.row_tokens = grid.row_tokens
    config.data.groups = grid.groups
    config.data.candidates = 1
    config.data.epochs = grid.passes
    config.optimizer.learning_rate = chosen.learning_rate
    config.optimizer.warmup = 0.1
    config.run.seed = seed
    config.run.keep = 1
    return config
