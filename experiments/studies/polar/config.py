"""The sizes of POLAR's studies: `python -m experiments.study polar:NAME`.

demo: `make demo`, one seed and all triples. regimes: 8 to 512 ranked triples, three seeds. real: 512, on answers of public
models, with a judge's preferences (docs/data.md says where they lie).
"""

from ml_collections import ConfigDict


def get_config(name: str = "regimes") -> ConfigDict:
    """Raises ValueError for an unknown name."""
    sizes = {"demo": demo, "regimes": regimes, "real": real}
    if name not in sizes:
        raise ValueError(f"polar:{name} is unknown; choose {', '.join(sizes)}")
    return sizes[name]()


def regimes() -> ConfigDict:
    """Of the shipped corpus."""
    config = ConfigDict()
    config.name = "regimes"  # of the study and its results
    config.runs = "configs/demo.py"  # file with the runs `pretrain` and `finetune`
    config.pool = "shipped:policy_pool"  # samples of policies, as data.path in configs/base.py; or alpaca_eval
    config.train = "shipped:triples_train"  # ranked answers with references; alpaca_eval brings its own
    config.test = "shipped:triples_test"  # held-out ones
    config.root = "../shared/data"  # where alpaca_eval lies
    config.seeds = (0, 1, 2)  # of the choice of triples, the order, the draws
    config.triples = (8, 32, 128, 512)  # ranked triples to fine-tune on; 0 = all
    config.steps = (6, 12, 24, 48)  # of fine-tuning, for each number of triples
    config.without_reference = (512,)  # numbers of triples for which the arm without references is run
    config.longer = (512,)  # and that without pre-training for as many FLOPs as both stages take
    config.longer_steps = 150  # its steps
    config.per_prompt = 1  # groups of each held-out prompt: who wrote what
    return config


def demo() -> ConfigDict:
    """One seed, minutes on two cores."""
    config = regimes()
    config.name = "demo"
    config.seeds = (0,)
    config.triples = (0,)
    config.steps = (40,)
    config.without_reference = (0,)
    config.longer = ()
    return config


def real() -> ConfigDict:
    """Public models' answers; one size, since their texts are long."""
    config = regimes()
    config.name = "real"
    config.pool = config.train = config.test = "alpaca_eval"
    config.triples = (512,)
    config.steps = (48,)
    config.without_reference = ()
    config.longer = ()
    return config
