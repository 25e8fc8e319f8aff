"""What the studies `trainers` and `time_to_accuracy` run on both sides: SmolLM2-135M, all of it trained, on real preferences.

Rows a batch are not set here: they are chosen so that a batch holds as many pairs as the other side's. On a GPU the activations
are bf16.
"""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.trainable = "."  # everything, as there
    config.model.attention = "blockwise"  # as TRL's, torch's fused one, it keeps no scores
    config.model.attention_block = 128
    config.model.remat = "dots"  # no slower here: what is computed again costs as much as keeping it
    config.format.max_length = 512  # tokens; so no pair is left out there
    config.data.kind = "comparisons"
    config.data.path = "hh_harmless"
    config.data.reference = "optional"
    config.data.row_tokens = 512
    config.optimizer.warmup = 0.0
    config.optimizer.final = 1.0  # a constant rate after the first step
    config.run.log_every = 1  # step
    return config
