"""POLAR from the installed package: train, score. Run again, it goes on from where it was stopped."""

from rmjax import RewardModel, Trainer
from rmjax.config import get_config

config = get_config()
config.data.update(path="shipped:policy_pool", rows=1, row_tokens=256)
config.format.update(max_length=128, max_response_length=32)
config.model.update(layers=2, frozen_layers=1)
config.run.update(steps=6, save_every=1, log_every=1)
Trainer(config, "polar").run()
rows = [{"prompt": "3 + 4?", "reference": "It is 7.", "output": output} for output in ("That is 7.", "No idea.")]
print(RewardModel.load("polar").score(rows))
