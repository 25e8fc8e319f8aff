"""Bradley–Terry on conversations: a reward model for chat, from a language model's weights.

Give it ranked answers, prompts as messages or text: --config.data.path=FILE. References may be there and are not read.
"""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.format.kind = "chat"
    config.format.template = ""  # the language model's own; name a .jinja file for another one
    config.data.kind = "comparisons"
    config.data.reference = "optional"
    config.data.row_tokens = 1024
    config.optimizer.learning_rate = 1e-5
    return config
