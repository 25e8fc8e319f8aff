"""Parameters by path."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.models.parameters import ParameterError, count, first_layers, flat, merge, nested, split, warm_start
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import Transformer, causal_mask

names = st.sampled_from(["a", "b", "layers", "head"])
trees = st.recursive(st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8)


@pytest.fixture(scope="module")
def reward_params(tiny_config, random_params):
    return {"backbone": random_params(tiny_config, 0), "head": {"kernel": np.ones((32, 1), np.float32)}}


@given(st.dictionaries(names, trees, min_size=1), st.sampled_from(["a", "head$", "layers/", "^b", "b|layers"]))
def test_split_and_merge_round_trip(tree, pattern):
    if not any(re.search(pattern, path) for path in flat(tree)):
        with pytest.raises(ParameterError, match="matches no parameter"):
            split(tree, pattern)
        return
    trainable, frozen = split(tree, pattern)
    assert merge(trainable, frozen) == merge(frozen, trainable) == tree
    assert not flat(trainable).keys() & flat(frozen).keys()
    assert nested(flat(tree)) == tree


def test_split_is_by_path(reward_params):
    trainable, frozen = split(reward_params, "layers/attention/|^head")
    assert sorted(flat(trainable)) == [
        *(f"backbone/layers/attention/{name}/kernel" for name in ("key", "output", "query", "value")),
        "head/kernel",
    ]
    assert "backbone/embedding/embedding" in flat(frozen)
    assert split(reward_params, ".")[1] == {}


def test_a_pattern_that_matches_nothing_lists_the_paths(reward_params):
    with pytest.raises(
        ParameterError, match=r"'lora' and matches no parameter; paths: backbone/embedding/.*head/kernel"
    ):
        split(reward_params, "lora")
    with pytest.raises(ParameterError, match=r"'layers\(', not a regular expression"):
        split(reward_params, "layers(")


def test_first_layers_are_those_of_the_whole(tiny_config, random_params):
    params = random_params(tiny_config, 0)
    short = first_layers(params, 1)
    assert count(short) == count(params) - count(params["layers"]) // 2
    np.testing.assert_array_equal(short["layers"]["mlp"]["up"]["kernel"], params["layers"]["mlp"]["up"]["kernel"][:1])
    one = type(tiny_config)(**{**vars(tiny_config), "depth": 1})
    ids = np.array([[3, 1, 4, 1, 5]])

    def hidden(config, params):
        run = jax.jit(lambda params: Transformer(config).apply({"params": params}, ids, ids, causal_mask(ids > 0)))
        return run(params)

    # The whole model with its second layer silenced is the one-layer model.
    silent = jax.tree.map(lambda x: x.copy(), params)
    for kernel in (silent["layers"]["attention"]["output"]["kernel"], silent["layers"]["mlp"]["down"]["kernel"]):
        kernel[1] = 0
    np.testing.assert_allclose(hidden(one, short), hidden(tiny_config, silent), atol=1e-5)


def test_frozen_layers_are_stacked_apart_and_together_again(tiny_config, random_params):
    params = random_params(tiny_config, 0)
    apart = first_layers(params, 2, frozen=1)
    assert {path.split("/")[0] for path in flat(apart)} == {"embedding", "final_norm", "frozen_layers", "layers"}
    back = first_layers(apart, 2)
    assert flat(back).keys() == flat(params).keys()
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(flat(back)[path], leaf)


def test_count(tiny_config, reward_params):
    assert count(reward_params) == sum(x.size for x in jax.tree.leaves(reward_params))
    shapes = jax.eval_shape(lambda: reward_params)
    assert count(shapes) == count(reward_params)


def test_warm_start_from_a_language_model_keeps_the_head(reward_params):
    zero = jax.tree.map(np.zeros_like, reward_params)
    started = warm_start(zero, {"backbone": reward_params["backbone"]})
    # On the host: what is loaded may be larger than a device's memory.
    assert {type(leaf) for path, leaf in flat(started).items() if not path.startswith("head/")} == {np.ndarray}
    assert not started["head"]["kernel"].any()
    for path, leaf in flat(started["backbone"]).items():
        np.testing.assert_array_equal(leaf, flat(reward_params["backbone"])[path], err_msg=path)
    assert started["backbone"]["final_norm"]["scale"].dtype == np.float32


def test_warm_start_casts_to_our_dtype(reward_params):
    ours = {"head": {"kernel": np.zeros((32, 1), "bfloat16")}}
    assert warm_start(ours, {"head": reward_params["head"]})["head"]["kernel"].dtype == "bfloat16"


def test_a_reward_checkpoint_must_have_its_head(reward_params):
    with pytest.raises(ParameterError, match="another architecture: head/kernel: missing there$"):
        warm_start(reward_params, {"backbone": reward_params["backbone"]}, may_miss="")
    assert warm_start(reward_params, reward_params, may_miss="")


def test_warm_start_lists_what_differs(reward_params):
    theirs = flat(reward_params)
    theirs["backbone/layers/attention/query/bias"] = np.zeros((2, 32))
    theirs["backbone/final_norm/scale"] = np.zeros(48)
    del theirs["backbone/layers/mlp/up/kernel"]
    with pytest.raises(ParameterError) as raised:
        warm_start(reward_params, nested(theirs))
    for part in (
        "backbone/layers/mlp/up/kernel: missing there",
        "backbone/layers/attention/query/bias: unknown here",
        "backbone/final_norm/scale: (48,) there, (32,) here",
    ):
        assert part in str(raised.value)


def test_warm_start_lists_twelve_paths_at_most(reward_params):
    surplus = {**flat(reward_params), **{f"extra/{i:02}": np.zeros(1) for i in range(20)}}
    with pytest.raises(ParameterError, match=r"extra/11: unknown here \(and 8 more\)$"):
        warm_start(reward_params, nested(surplus))


def test_the_trees_of_model_and_decoder_agree(tiny_config, reward_params):
    from rmjax.train.state import initial_params

    boxed = jax.eval_shape(lambda: initial_params(RewardTransformer(tiny_config), 0))
    shapes = jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "names"))
    assert {p: x.shape for p, x in flat(shapes).items()} == {p: x.shape for p, x in flat(reward_params).items()}
