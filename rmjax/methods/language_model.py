"""Next-token training on texts: for tuning the policies that a corpus is sampled from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.data.formats import Encoder
from rmjax.data.packing import Tree
from rmjax.data.sources import Records, texts
from rmjax.losses.language_model import next_token
from rmjax.losses.reduction import total
from rmjax.methods.method import Method
from rmjax.models.forest import Forest
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms, batch_terms


def language_model(model: Any) -> Objective:
    """Next-token loss on the tokens with a target weight, times the record's; the reward head takes no part."""

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        logits_RTV: Any = model.apply({"params": params}, forest, rngs={"dropout": rng}, method="logits")
        weight_RT = jnp.take_along_axis(jnp.pad(forest.weight_RG, ((0, 0), (1, 0))), forest.group_RT, axis=1)
        loss = total(next_token(logits_RTV, forest.target_RT), weight_RT * forest.target_weight_RT)
        return {"loss": loss, **batch_terms(forest)}

    return objective


def _texts(config: Config) -> Records:
    return texts(config.data)


def _encode(config: Config, encoder: Encoder) -> Callable[[Any, int], list[Tree]]:
    del config
    if encoder.form.kind == "polar":
        raise ValueError("config.format.kind is 'polar', which lays out comparisons; choose chat or plain for texts")
    return encoder.language_model_trees


METHOD = Method(
    "language_model",
    active=lambda config: config.objective == "language_model",
    kinds={"texts": _texts},
    data=("texts",),
    language_model=True,
    encode=_encode,
    objective=lambda config, model: language_model(model),
    example={"objective": "language_model", "format.kind": "plain"},
)
