"""What the runs at the paper's size share: POLAR's lengths and precision, and how a batch is laid over the chips.

Weights are random until InternLM2.5's own can be read; of its vocabulary SmolLM2's tokenizer uses the first 49,152 ids.
"""

from ml_collections import ConfigDict

from configs.polar import finetune, pretrain

FINETUNING_ROWS = 64


def pretraining(preset: str, rows: int, chips: str) -> ConfigDict:
    """Rows of 16,384 tokens. A triple has 7,059 trajectory tokens in the mean (3.6T over 510M triples) and its prompt, of 1
    to 1024 tokens, twice: two fit a row, and the longest, of 14,336, fits too."""
    config = _at_size(pretrain.get_config(), preset, rows, _number(chips, rows), 1)
    config.data.row_tokens = 16384
    config.data.negatives = 1
    config.data.wrapper = "pretrain"
    config.run.save_every = 1000
    return config


def finetuning(preset: str, chips: str) -> ConfigDict:
    """Rows of 20,480 tokens take a group of the longest kind whole: 16,384 tokens and a second answer of 4096. 64 rows are
    more than the paper's 320 triples need, so on more than 64 chips several share a row's heads."""
    most = FINETUNING_ROWS
    sharing = max(_number(chips, 0) // most, 1)
    if _number(chips, 0) % most and most % _number(chips, 0):
        raise ValueError(f"{chips} chips: give a number that divides {most}, or a multiple of it")
    config = _at_size(finetune.get_config(), preset, most, _number(chips, 0) // sharing, sharing)
    config.data.row_tokens = 20480
    config.run.steps = 469  # one epoch of 150,000 triples at 320
    config.run.save_every = 100
    return config


def _number(chips: str, rows: int) -> int:
    """Chips as a number; it must divide `rows`, unless that is 0."""
    if not chips.isdecimal() or int(chips) < 1 or rows % int(chips):
        raise ValueError(
            f"{chips!r} chips: give a number" + (f" that divides {rows}, the rows of a batch" if rows else "")
        )
    return int(chips)


def _at_size(config: ConfigDict, preset: str, rows: int, ways: int, sharing: int) -> ConfigDict:
    """A row at a time for each of `ways` groups of `sharing` chips; parameters and moments over all of them."""
    config.model.init = "random"
    config.model.preset = preset
    config.model.layers = 0
    config.model.frozen_layers = 0
    config.model.dtype = "bfloat16"
    config.model.remat = "attention"
    config.model.attention = "pallas"
    config.trainable = "."  # everything
    config.format.max_length = 16384  # tokens
    config.format.max_response_length = 4096  # tokens
    config.data.rows = rows
    config.data.streams = ways  # so a host reads its own chips' share
    config.data.groups = 16
    config.data.candidates = 2
    config.optimizer.microbatches = rows // ways
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = sharing
    config.run.compiler_options = ("xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)  # see docs/pods.md
    config.evals = ConfigDict()
    return config
