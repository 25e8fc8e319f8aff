"""POLAR pre-training (eq. 7): tell a policy's own sample from another policy's."""

from ml_collections import ConfigDict

from rmjax import config as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.path = "shipped:policy_pool"
    config.data.negatives = 3  # the paper has 1; further ones cost a branch each, not a prompt
    config.data.candidates = 4
    config.model.layers = (
        18  # of SmolLM2-135M's 30; the first dozen do not compare texts yet (docs/claims/polar/details.md)
    )
    config.model.frozen_layers = 16  # the other 2 are trained, 7.1 M parameters
    config.data.rows = 2  # some 8 groups a step: a head that starts at zero needs steps more than quiet gradients
    config.optimizer.learning_rate = 5e-4
    config.run.steps = 400
    config.run.save_every = 100
    config.evals.seen = base.pool_eval("seen", every=100)
    config.evals.unseen = base.pool_eval("unseen", every=100)
    return config
