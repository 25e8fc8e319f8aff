"""The kernels for TPUs and GPUs, interpreted: the dense form's values and gradients on any forest, tiles that are left out;
those for GPUs as Triton gets them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.models import transformer
from rmjax.models.attention import pallas_attention
from rmjax.models.forest import attention_mask
from rmjax.models.reward import RewardTransformer
from rmjax.models.tiles import ForestMask
from rmjax.models.tpu_kernels import _nearest
from rmjax.models.transformer import TransformerConfig, attend
from rmjax.train.state import initial_params

T, BLOCK = 300, 128  # three blocks, the last one not full; on a GPU five of 64
on_each = pytest.mark.parametrize("platform", ["tpu", "gpu"])


@st.composite
def marks(draw):
    """Group and leaf of a forest's row of T tokens: trees until the row is full, a prefix or none, one to three leaves."""
    row, left = [], draw(st.integers(0, T))
    while left:
        sizes = draw(st.lists(st.integers(0, 200), min_size=2, max_size=4))
        sizes = [min(size, left) for size in sizes]
        prefix, *leaves = (np.ones(size, np.int32) for size in sizes)
        tree = Tree(prefix, tuple(leaves), np.zeros(len(leaves), np.float32))
        if not 0 < tree.size <= left:
            break
        row.append(tree)
        left -= tree.size
    forest = fill(ForestShape(1, T, max(len(row), 1), 3), [row])
    return forest.group_RT, forest.branch_RT


@functools.cache
def both(platform):
    """(dense, kernels) as compiled functions of q, k, v, weights, group, leaf: a sum of outputs, its gradients, the outputs."""

    def compiled(form):
        def total(qkv, weights, group, leaf):
            out = form(*qkv, group, leaf)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    def kernels(q, k, v, group, leaf):
        return pallas_attention(q, k, v, ForestMask(group, leaf), BLOCK, interpret=True, platform=platform)

    return compiled(lambda q, k, v, *marks: attend(q, k, v, attention_mask(*marks))), compiled(kernels)


def arrays(seed, rows=1, heads=(4, 2, 2, 4), width=8):
    random = np.random.default_rng(seed)
    q, k, v, weights = (jnp.asarray(random.normal(size=(rows, T, n, width)), jnp.float32) for n in heads)
    return (q, k, v), weights


@on_each
@settings(max_examples=10, deadline=None)
@given(marks(), st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_dense_form(platform, row, seed):
    want, got = (form(*arrays(seed), *row) for form in both(platform))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4, rtol=1e-4)
    assert not np.any(np.asarray(got[0][1])[row[0] == 0])


def packed():
    """A row of three blocks: two leaves without a prefix, a block each; a group of its own."""
    group = np.repeat([1, 1, 2], BLOCK)[None, :T]
    leaf = np.repeat([1, 2, 0], BLOCK)[None, :T]
    return group, leaf


@on_each
def test_tiles_that_nobody_sees_are_not_computed(platform):
    """A NaN among the values would spread over all queries of its tiles."""
    (q, k, v), weights = arrays(0)
    (_, out), grads = both(platform)[1]((q, k, v.at[:, :BLOCK].set(jnp.nan)), weights, *packed())
    assert np.all(np.isnan(out[:, :BLOCK])) and np.all(np.isfinite(out[:, BLOCK:]))
    assert np.all(np.isfinite(grads[1][:, BLOCK:])) and np.all(np.isfinite(grads[0][:, BLOCK:]))


def test_only_blocks_that_are_needed_are_fetched():
    seen = jnp.asarray([[[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]], bool)
    assert _nearest(seen).tolist() == [1, 1, 3, 3, 3, 0, 0, 0, 0, 0]


@pytest.mark.slow
@on_each
@pytest.mark.parametrize("remat", ["none", "attention"])
def test_a_model_with_kernels_has_the_dense_model_s_rewards_and_gradients(remat, platform, monkeypatch):
    interpreted = functools.partial(pallas_attention, interpret=True, platform=platform)
    monkeypatch.setitem(transformer._TILED, "pallas", interpreted)
    random = np.random.default_rng(0)
    tree = Tree(random.integers(1, 64, 40), tuple(random.integers(1, 64, (2, 30))), np.arange(2.0))
    forest = fill(ForestShape(1, 210, 2, 2), [[tree, tree]])
    config = TransformerConfig(64, 32, 2, 4, 2, 8, 64, attention_block=BLOCK)
    params = nn.meta.unbox(initial_params(RewardTransformer(config), 0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 1))

    def trained(**changes):
        model = RewardTransformer(dataclasses.replace(config, **changes))
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, forest)))))(params)

    dense, kernels = trained(), trained(attention="pallas", remat=remat)
    for want, got in zip(jax.tree.leaves(dense), jax.tree.leaves(kernels), strict=True):
        rounding = 4e-5 * float(np.max(np.abs(want)))  # a number near 0 is a sum of some as large as the largest
        np.testing.assert_allclose(got, want, atol=max(1e-4, rounding), rtol=1e-4)
    assert max(np.max(np.abs(x)) for x in jax.tree.leaves(dense[1])) > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("block", "width"), [(512, 128), (32, 64)])
def test_the_kernels_for_gpus_are_lowered_to_triton(dtype, block, width):
    """Where there is no GPU that is as far as they go: all three are in the program, none is interpreted."""
    q, k, v = (jax.ShapeDtypeStruct((2, T, n, width), dtype) for n in (4, 2, 2))
    mask = ForestMask(*(jax.ShapeDtypeStruct((2, T), jnp.int32) for _ in range(2)))

    def total(qkv, mask):
        return jnp.sum(pallas_attention(*qkv, mask, block, platform="gpu").astype(jnp.float32))

    lowered = jax.jit(jax.grad(total)).trace((q, k, v), mask).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert [text.count(name) > 0 for name in ("output_kernel", "query_kernel", "key_kernel")] == [True] * 3
    assert "triton" in text


@pytest.mark.parametrize(
    ("platform", "block", "width", "message"),
    [
        ("tpu", 100, 8, "attention_block is 100; attention=pallas needs a multiple of 128"),
        ("gpu", 96, 8, "attention_block is 96; attention=pallas needs a power of two here, 16 at least"),
        ("gpu", 8, 8, "attention_block is 8; attention=pallas needs a power of two here, 16 at least"),
        ("gpu", 64, 8, "16 at least, not 8; use blockwise"),
        ("gpu", 64, 24, "needs a head width that is a power of two on a GPU, 16 at least, not 24; use blockwise"),
    ],
)
def test_sizes_that_the_kernels_do_not_take(platform, block, width, message):
    (q, k, v), _ = arrays(0, width=width)
    with pytest.raises(ValueError, match=message):
        pallas_attention(q, k, v, ForestMask(*map(jnp.asarray, packed())), block, platform=platform)
