"""Tiny models of each family against `transformers`: logits and rewards to 1e-5 in fp32, however texts are padded and packed."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rmjax.hub.hugging_face import HubModel, open_folder
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import Transformer, causal_mask
from tests.hub.goldens import FOLDER, NAMES, forest, golden, in_fp32, padded

TOLERANCE = 1e-5
DECODERS = [name for name in NAMES if "logits" in golden(name)]
REWARDS = [name for name in NAMES if "rewards" in golden(name)]


@functools.cache
def opened(name: str) -> HubModel:
    model = open_folder(FOLDER / name)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="float32", param_dtype="float32"))


def logits(model: Transformer, tokens_RT, positions_RT, valid_RT):
    return model.logits(model(tokens_RT, positions_RT, causal_mask(valid_RT)))


@pytest.mark.parametrize("name", DECODERS)
def test_logits(name):
    model, wanted = opened(name), golden(name)["logits"]
    run = jax.jit(functools.partial(Transformer(model.config).apply, method=logits))
    params = {"params": in_fp32(model)["backbone"]}
    for left in (False, True):
        tokens_RT, positions_RT, valid_RT = padded(left)
        found = np.asarray(run(params, tokens_RT, positions_RT, valid_RT))[valid_RT]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=f"left: {left}")


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name, attention):
    model, wanted = opened(name), golden(name)["rewards"]
    config = dataclasses.replace(model.config, attention=attention, attention_block=16)
    found = jax.jit(RewardTransformer(config).apply)({"params": in_fp32(model)}, forest())
    np.testing.assert_allclose(np.asarray(found)[..., 0].reshape(-1), wanted, rtol=0, atol=TOLERANCE)


def test_every_family_has_both():
    from rmjax.hub.families import KINDS

    families = {opened(name).described.model_type for name in DECODERS}
    assert families == set(KINDS)
    assert {opened(name).described.model_type for name in REWARDS} == set(KINDS) - {"internlm3"}  # has no such class
