"""The run of the model that ships with the package, `shipped:polar-smollm2`: an adapter on SmolLM2-135M-Instruct.

`python -m experiments.train --config=configs/polar/shipped.py --workdir=runs/shipped`. There is no pre-training: of as many FLOPs
more steps on ranked triples are worth more (docs/claims/polar.md).
"""

from ml_collections import ConfigDict

from configs import demo

LAYERS, FROZEN = 12, 4  # of SmolLM2's 30; those above the frozen ones carry the adapter
RANK = 32  # 2.6 M parameters in all


def get_config() -> ConfigDict:
    config = demo.get_config("finetune")
    config.model.init = "smollm2"
    config.model.layers, config.model.frozen_layers = LAYERS, FROZEN
    config.adapter.kind = "lora"
    config.adapter.rank = RANK
    config.adapter.alpha = 64.0
    config.adapter.pattern = "(attention|mlp)/(query|key|value|output|gate|up|down)$"  # every matrix of a layer
    config.data.path = "shipped:triples_train"
    config.format.max_length = 768  # nothing that it learns from is as long, but what it is asked may be
    config.format.max_response_length = 256
    # As many tokens as 165 steps of pre-training and 120 of these have.
    config.run.steps = config.run.save_every = 223
    return config
