"""The training state: what it starts from, how it is sharded."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from rmjax.models.parameters import ParameterError, flat
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import make_mesh
from rmjax.train.optimizer import adamw
from rmjax.train.state import initial_params, make_state, state_shardings


def test_the_head_starts_at_zero_and_nothing_else_does(boxed):
    leaves = flat(nn.meta.unbox(boxed))
    assert [path for path, leaf in leaves.items() if not np.any(leaf)] == ["head/kernel"]
    assert leaves["head/kernel"].dtype == np.float32


def test_the_seed_decides_the_parameters(model, boxed):
    again, other = (jax.jit(lambda s=s: initial_params(model, s))() for s in (0, 1))
    for path, leaf in flat(nn.meta.unbox(boxed)).items():
        np.testing.assert_array_equal(leaf, flat(nn.meta.unbox(again))[path])
    embeddings = [flat(nn.meta.unbox(tree))["backbone/embedding/embedding"] for tree in (boxed, other)]
    assert (np.asarray(embeddings[0]) != np.asarray(embeddings[1])).all()


@pytest.mark.parametrize("tied", [True, False])
def test_untied_embeddings_have_an_output_projection(tied):
    config = TransformerConfig(11, 8, 1, 2, 1, 4, 16, tied_embeddings=tied)
    shapes = jax.eval_shape(lambda: initial_params(RewardTransformer(config), 0))
    assert ("output" in shapes["backbone"]) is not tied


def test_bf16_parameters_keep_an_fp32_head():
    config = TransformerConfig(11, 8, 1, 2, 1, 4, 16, param_dtype="bfloat16")
    shapes = flat(nn.meta.unbox(jax.eval_shape(lambda: initial_params(RewardTransformer(config), 0))))
    assert shapes.pop("head/kernel").dtype == np.float32
    assert {leaf.dtype.name for leaf in shapes.values()} == {"bfloat16"}


def test_make_state(params):
    state = make_state(params, "^head", optax.adam(1.0), seed=5)
    assert int(state.step) == 0
    assert list(flat(state.trainable)) == ["head/kernel"] and "head/kernel" not in flat(state.frozen)
    np.testing.assert_array_equal(state.rng, jax.random.key_data(jax.random.key(5)))
    with pytest.raises(ParameterError, match="matches no parameter"):
        make_state(params, "lora", optax.adam(1.0), seed=5)


def test_moments_are_sharded_as_their_parameters_and_the_rest_is_replicated(boxed):
    mesh, update, trainable = make_mesh({}), adamw(lambda step: 1e-3), "layers|head"
    state = jax.eval_shape(lambda: make_state(nn.meta.unbox(boxed), trainable, update, 0))
    shardings = state_shardings(state, boxed, trainable, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    wanted = {path: sharding.spec for path, sharding in flat(shardings.trainable).items()}
    assert wanted["backbone/layers/attention/query/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert wanted["backbone/layers/mlp/down/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert flat(shardings.frozen)["backbone/embedding/embedding"].spec == PartitionSpec("tensor", "fsdp")
    adam = shardings.optimizer[1][0]
    for moments in (adam.mu, adam.nu):
        assert {path: sharding.spec for path, sharding in flat(moments).items()} == wanted
    assert adam.count.is_fully_replicated and shardings.step.is_fully_replicated and shardings.rng.is_fully_replicated
