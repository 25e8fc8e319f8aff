"""POLAR pre-training (eq. 7): tell a policy's own sample from another policy's."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.path = "shipped:policy_pool"
    config.data.negatives = 3  # the paper has 1; further ones cost a leaf each, not a prompt
    config.data.leaves = 4
    config.model.layers = 6  # of SmolLM2-135M's 30: 21.2 M parameters, trained; and 28.3 M of the embedding, frozen
    config.optimizer.learning_rate = 3e-4
    config.run.steps = 400
    config.run.save_every = 100
    config.evals.seen = base.pool_eval("seen", every=100)
    config.evals.unseen = base.pool_eval("unseen", every=100)
    return config
