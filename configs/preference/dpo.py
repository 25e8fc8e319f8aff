"""DPO on ranked answers: `--config=configs/preference/dpo.py --config.data.path=FILE`; `…dpo.py:ipo` is IPO.

The records are those of reward modeling. The result is a language model: `--config.model.init` takes it, and so does the sampler.
"""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config(loss: str = "sigmoid") -> ConfigDict:
    if loss not in ("sigmoid", "ipo"):
        raise ValueError(f"configs/preference/dpo.py:{loss} is unknown; choose sigmoid or ipo")
    config = base.get_config()
    config.objective = "dpo"
    config.dpo.loss = loss
    config.trainable = "/layers/|final_norm"
    config.data.kind = "comparisons"
    config.data.path = "shipped:ranked_train"
    config.data.reference = "optional"  # references are not read
    config.format.kind = "chat"
    config.format.template = ""  # the language model's own
    config.optimizer.learning_rate = 1e-6  # DPO's own is 5e-7 to 1e-6 for a few billion parameters (paper, appendix B)
    config.optimizer.warmup = 0.1
    config.run.steps = 200
    config.run.save_every = 100
    config.evals.preferences = base.comparisons_eval("shipped:ranked_test", every=100)
    return config
