"""Ensembles: members are what they would be alone, differ from the start, and say how far they disagree."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax.data.formats import Encoder, Format
from rmjax.data.record import parse
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.scorers import OfMembers, RewardScorer
from rmjax.losses.balance import Balance
from rmjax.losses.reduction import mean
from rmjax.methods.adapters import balanced
from rmjax.methods.ensemble import METHOD, together
from rmjax.methods.method import MAIN
from rmjax.methods.preference import preference
from rmjax.models.lora import AdapterConfig
from rmjax.models.members import Ensemble, centered, combined, learned, member_pattern, spread
from rmjax.models.parameters import flat
from rmjax.models.reward import RewardTransformer
from rmjax.train.state import initial_params

KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=["head", "adapter", pytest.param("trainable", marks=pytest.mark.slow)])
def ensemble(request, tiny_config):
    """(ensemble of three, its parameters)."""
    adapter = AdapterConfig("lora", rank=2) if request.param == "adapter" else None
    frozen = int(request.param == "trainable")
    model = RewardTransformer(dataclasses.replace(tiny_config, adapter=adapter, frozen_layers=frozen))
    made = Ensemble(model, 3, member_pattern(request.param, "/layers/|head"), 1.0)
    boxed = jax.jit(lambda: initial_params(made, 0))()
    assert all(
        len(x.names) == x.value.ndim for x in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    )
    return made, nn.meta.unbox(boxed)


def member(ensemble, params, k):
    axes = ensemble.axes(params)
    return jax.tree.map(lambda x, axis: x if axis is None else x[k], params, axes, is_leaf=lambda x: x is None)


def test_members_start_apart_and_share_the_rest(ensemble):
    made, params = ensemble
    own = {path: leaf for path, leaf in flat(params).items() if made.is_own(path)}
    assert own["head/kernel"].shape == (3, 32, 1)
    assert not np.array_equal(own["head/kernel"][0], own["head/kernel"][1])
    if made.pattern == "/layers/|head":
        assert "backbone/layers/mlp/up/kernel" in own and not any("frozen_layers" in path for path in own)
        return
    assert all("/lora_" in path or path == "head/kernel" for path in own)
    assert ("backbone/layers/mlp/up/lora_a" in own) == (made.pattern != "^head/")


def test_rewards_are_those_of_the_members_alone(ensemble, forest):
    made, params = ensemble
    batch = forest([2, 1], branches=3)
    found = np.asarray(jax.jit(made.rewards)(params, batch))
    of_one = jax.jit(lambda own: made.bare.apply({"params": own}, batch))
    for k in range(3):
        alone = of_one(member(made, params, k))
        np.testing.assert_allclose(found[..., k], alone, atol=1e-5)
    assert np.std(found, axis=-1).max() > 1e-3


def test_the_loss_is_the_mean_of_the_members_and_each_gets_its_own_gradient(ensemble, forest):
    made, params = ensemble
    batch = forest([2, 1], branches=2)
    objective = together(preference, made, seen=1.0)
    terms = jax.device_get(jax.jit(objective)(params, batch, KEY))
    of_one = jax.jit(
        jax.grad(lambda own: (lambda t: (t["loss"][0], t))(preference(made.bare)(own, batch, KEY)), has_aux=True)
    )
    found = [of_one(member(made, params, k)) for k in range(3)]
    alone = [terms for _, terms in found]
    assert float(mean(terms["loss"])) == pytest.approx(np.mean([float(mean(t["loss"])) for t in alone]), rel=1e-5)
    assert mean(terms["disagreement"]) > 0
    gradient = jax.jit(jax.grad(lambda p: objective(p, batch, KEY)["loss"][0]))(params)
    np.testing.assert_allclose(gradient["head"]["kernel"][1], found[1][0]["head"]["kernel"] / 3, atol=1e-6)


@pytest.mark.slow
def test_members_with_batches_of_their_own_learn_from_these(ensemble, forest):
    made, params = ensemble
    batches = {MAIN: forest([2, 1], seed=1), "member1": forest([1, 2], seed=2), "member2": forest([1, 1], seed=3)}
    objective = together(preference, made, seen=1.0)
    gradient = jax.jit(jax.grad(lambda p: objective(p, batches, KEY)["loss"][0]))(params)
    for k, batch in enumerate(batches.values()):
        own = jax.jit(jax.grad(lambda p, f: preference(made.bare)(p, f, KEY)["loss"][0]))(
            member(made, params, k), batch
        )
        np.testing.assert_allclose(gradient["head"]["kernel"][k], own["head"]["kernel"] / 3, atol=1e-6)


def test_each_member_sees_its_part_of_the_records_again_and_again():
    records = jnp.arange(400).reshape(20, 20)
    kept = np.array([learned(records, jnp.int32(k), 0.6) for k in range(3)])
    assert np.array_equal(kept[1], learned(records, jnp.int32(1), 0.6))
    assert np.all(np.abs(kept.mean(axis=(1, 2)) - 0.6) < 0.1)
    assert not np.array_equal(kept[0], kept[1])
    assert np.all(np.asarray(learned(records, jnp.int32(0), 1)) == 1)


def test_scores_by_hand():
    rewards = jnp.array([[[[2.0, 0.0, 9.0]]], [[[5.0, 1.0, 9.0]]]])
    present = jnp.array([[[True, True, False]]])
    apart = centered(rewards, present)
    assert apart.tolist() == [[[[1.0, -1.0, 0.0]]], [[[2.0, -2.0, 0.0]]]]
    assert spread(rewards, present).tolist() == [[[0.5, 0.5, 0.0]]]
    of_record = np.array([[2.0, 5.0], [0.0, 1.0]])
    assert combined(of_record, "mean").tolist() == [3.5, 0.5]
    assert combined(of_record, "minimum").tolist() == [1.0, -2.0]
    assert combined(of_record, "disagreement").tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="give two or more of each prompt"):
        combined(of_record[:1], "minimum")


@pytest.mark.parametrize("score", ["mean", "minimum", "disagreement"])
def test_a_record_that_is_scored_in_parts_is_one_record(score):
    """Longer than a row, or of many candidates, a record is scored in several trees."""
    tokenizer = Tokenizer.from_bpe(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], ["<end>"])
    record = parse({"prompt": "p", "outputs": [c * (1 + n) for n, c in enumerate("abcdef")]}, "f:1")

    def rewards(params, forest):
        """Member k likes the last letter k times, and has a zero of its own."""
        ends = np.maximum(np.asarray(forest.readout_RGN) - 1, 0)
        letters = np.take_along_axis(np.asarray(forest.tokens_RT)[:, None], ends, axis=-1).astype(float)
        return np.stack([letters % 7, 10 + letters % 5], axis=-1)

    def scored(row_tokens):
        encoder = Encoder(tokenizer, Format("<end>", "<end>", end_token="<end>", kind="plain"), row_tokens)
        of_members = OfMembers(rewards, functools.partial(combined, score=score))
        return len(encoder.scoring_trees(record)), RewardScorer(of_members, {}, encoder).score([record])

    (parts, found), (one, whole) = scored(12), scored(64)
    assert parts > one == 1 and len(set(whole[0])) > 1
    np.testing.assert_allclose(found, whole, atol=1e-12)


def test_members_of_a_mixture_and_of_a_language_model(tiny_config, forest):
    """The constraint's recorder sees the members' calls; a head of zeros is drawn anew, not repeated."""
    adapter = AdapterConfig("loramoe", rank=2, experts=2)
    made = Ensemble(RewardTransformer(dataclasses.replace(tiny_config, adapter=adapter)), 2, "^head/", 1.0)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(made, 0))())
    build = functools.partial(balanced, preference, balance=Balance((0, 1), beta=1.0))
    terms = jax.device_get(jax.jit(together(build, made, 1.0))(params, forest([2, 1]), KEY))
    assert np.isfinite(terms["loss"][0]) and terms["disagreement"][0] > 0

    config = base.get_config()
    config.ensemble.members = 3
    loaded = METHOD.loaded(base.settle(config), {"backbone": {"x": np.ones(2)}, "head": {"kernel": np.zeros((4, 1))}})
    assert "head" not in loaded
    loaded = METHOD.loaded(
        base.settle(config),
        {"backbone": {"x": np.ones(2)}, "head": {"kernel": np.arange(4.0)[:, None]}},
    )
    assert loaded["head"]["kernel"].shape == (3, 4, 1) and loaded["backbone"]["x"].shape == (2,)
    assert not np.array_equal(loaded["head"]["kernel"][0], loaded["head"]["kernel"][1])
