"""The arms, domains and sizes of the study. `interference:harmless` takes the human choices of hh_harmless (docs/data.md) as the
second kind of preference."""

from typing import Any

from ml_collections import ConfigDict

from rmjax import config as base

VARIED = {  # arm → where it differs from `balanced`
    "beta_strong": {"beta": 1.0},
    "delta_none": {"delta": 0.0},
    "delta_strong": {"delta": 0.5},
    "paper_form": {"balance": "paper"},
    "top_2": {"top_k": 2},
    "router_per_block": {"router": "block"},
}


def get_config(second: str = "ladder") -> ConfigDict:
    """With `ladder` or `harmless` as the second kind."""
    domains = {"correct": correct(), "ladder": ladder(), "harmless": harmless()}
    if second not in domains or second == "correct":
        raise ValueError(f"interference:{second} is unknown; choose ladder or harmless")
    config = ConfigDict()
    config.init = "smollm2"  # as model.init in configs/base.py
    config.layers = 18  # first k layers
    config.frozen_layers = 16  # of them, from the bottom; the rest is what an arm trains, or adapts
    config.root = "../shared/data"  # where the real sets lie
    config.domains = ConfigDict({name: domains[name] for name in ("correct", second)})  # type 0 and type 1
    config.trained = 100  # comparisons of a domain to train on, at most
    config.tested = 120  # held-out ones, at most
    config.passes = 2  # over the training data
    config.seeds = (0, 1, 2)  # of the choice of comparisons, their order and the random weights
    config.rows = 1  # rows a batch
    config.row_tokens = 512  # tokens a row; longer groups are cut
    config.keep_checkpoints = False  # True: some 300 MB a run

    config.chosen = "full|lora|loramoe|balanced"  # regular expression: arms whose whole name matches are run; .* = all
    if second == "harmless":
        config.chosen += "|beta_strong|delta_none|delta_strong|paper_form"

    config.arms = arms = ConfigDict()  # each is trained on both domains together
    arms.full = arm(learning_rate=3e-4)
    arms.lora = arm("lora", rank=27, alone="lora")
    arms.loramoe = arm("loramoe", alone="lora")
    arms.balanced = balanced = arm("loramoe", beta=0.1, alone="lora")
    for name, changes in VARIED.items():
        arms[name] = ConfigDict(balanced.to_dict() | changes)
    config.compared = (  # joint models, first − second
        ("loramoe", "lora"),
        ("balanced", "loramoe"),
        ("balanced", "lora"),
    )
    return config


def arm(
    kind: str = "",
    learning_rate: float = 1e-3,
    rank: int = 4,
    beta: float = 0.0,
    delta: float = 0.1,
    alone: str = "full",
) -> ConfigDict:
    """An arm: full fine-tuning where `kind` is empty."""
    entry = ConfigDict()
    entry.kind = kind  # as adapter.kind in configs/base.py
    entry.learning_rate = learning_rate  # peak
    entry.rank = rank  # of each expert
    entry.beta = beta  # factor of the balancing constraint
    entry.delta = delta  # its tilt
    entry.balance = "code"  # its form, as adapter.balance in configs/base.py
    entry.top_k = 0  # experts that a token keeps; 0 = all
    entry.router = "linear"  # as adapter.router in configs/base.py
    entry.alone = alone  # the arm whose models for one domain each it is compared with
    return entry


def correct() -> ConfigDict:
    """Verified answers of the shipped triples."""
    return _domain("shipped:ranked_train", "shipped:ranked_test", "(?!ladder$).*")


def ladder() -> ConfigDict:
    """Answers of a model and of its damaged copy, of the shipped triples."""
    return _domain("shipped:ranked_train", "shipped:ranked_test", "ladder")


def harmless() -> ConfigDict:
    """Human choices of the less harmful answer."""
    return _domain("hh_harmless", "hh_harmless", ".*", "train", "test")


def _domain(train: str, test: str, category: str, train_split: str = "all", test_split: str = "all") -> ConfigDict:
    entry = ConfigDict()
    entry.train = train  # as data.path in configs/base.py
    entry.test = test  # held-out comparisons
    entry.category = category  # regular expression that a record's whole category must match; none counts as empty
    entry.train_split = train_split  # real sets: all | train | test
    entry.test_split = test_split  # likewise
    return entry


def training(grid: Any, name: str, seed: int, path: str) -> ConfigDict:
    """The run of an arm on a file of comparisons; its number of steps is left open."""
    chosen, config = grid.arms[name], base.get_config()
    config.model.init = grid.init
    config.model.layers = grid.layers
    config.model.frozen_layers = grid.frozen_layers
    config.trainable = "/layers/|head"
    for field in ("kind", "rank", "beta", "delta", "balance", "top_k", "router"):
        config.adapter[field] = chosen[field]
    config.data.kind = "comparisons"
    config.data.path = path
    config.data.reference = "optional"
    config.data.rows = grid.rows
    config.data.row_tokens = grid.row_tokens
    config.data.epochs = grid.passes
    config.format.max_length = grid.row_tokens
    config.format.max_response_length = 48
    config.optimizer.learning_rate = chosen.learning_rate
    config.optimizer.warmup = 0.1
    config.run.seed = seed
    config.run.keep = 1
    return config
