"""The kernels for TPUs and GPUs, interpreted: the dense form's values and gradients on any forest, tiles that are left out;
those for GPUs as Triton and Mosaic GPU get them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.models import attention, transformer
from rmjax.models.attention import HEAD_WIDTHS, MOSAIC_SINCE, kernels_for, pallas_attention
from rmjax.models.forest import attention_mask
from rmjax.models.reward import RewardTransformer
from rmjax.models.tiles import ForestMask
from rmjax.models.tpu_kernels import _nearest
from rmjax.models.transformer import TransformerConfig, attend
from rmjax.train.state import initial_params

T, BLOCK = 300, 128  # three blocks, the last one not full; on a GPU five of 64
newer = pytest.mark.skipif(
    jax.__version_info__ < MOSAIC_SINCE, reason="jax interprets Mosaic GPU's kernels from 0.12 on"
)
on_each = pytest.mark.parametrize("kernels", ["tpu", "triton", pytest.param("mosaic", marks=newer)])
# Its interpreter takes a second for a few tiles.
on_each_drawn = pytest.mark.parametrize(
    "kernels", ["tpu", "triton", pytest.param("mosaic", marks=[newer, pytest.mark.slow])]
)


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
def both(kernels):
    """(dense, in tiles) as compiled functions of q, k, v, weights, group, leaf: a sum of outputs, its gradients, the outputs."""

    def compiled(form):
        def total(qkv, weights, group, leaf):
            out = form(*qkv, group, leaf)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    def tiled(q, k, v, group, leaf):
        return pallas_attention(q, k, v, ForestMask(group, leaf), BLOCK, interpret=True, kernels=kernels)

    return compiled(lambda q, k, v, *marks: attend(q, k, v, attention_mask(*marks))), compiled(tiled)


def arrays(seed, rows=1, heads=(4, 2, 2, 4), width=32):
    random = np.random.default_rng(seed)
    q, k, v, weights = (jnp.asarray(random.normal(size=(rows, T, n, width)), jnp.float32) for n in heads)
    return (q, k, v), weights


def assert_values_and_gradients_are_dense(kernels, row, qkv, weights):
    want, got = (form(qkv, weights, *row) for form in both(kernels))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4, rtol=1e-4)
    assert not np.any(np.asarray(got[0][1])[row[0] == 0])


@on_each_drawn
@settings(max_examples=10, deadline=None)
@given(marks(), st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_dense_form(kernels, row, seed):
    assert_values_and_gradients_are_dense(kernels, row, *arrays(seed))


@newer
def test_mosaic_gpu_s_values_and_gradients_on_a_row_of_two_groups():
    group = np.repeat([1, 2, 0], [150, 130, 20])[None]
    leaf = np.repeat([0, 1, 2, 0, 1, 2, 0], [70, 50, 30, 50, 60, 20, 20])[None]
    assert_values_and_gradients_are_dense("mosaic", (group, leaf), *arrays(0, heads=(2, 1, 1, 2)))


def packed():
    """A row of three blocks: two leaves without a prefix, a block each; a group of its own."""
    group = np.repeat([1, 1, 2], BLOCK)[None, :T]
    leaf = np.repeat([1, 2, 0], BLOCK)[None, :T]
    return group, leaf


@on_each
def test_tiles_that_nobody_sees_are_not_computed(kernels):
    """A NaN among the values would spread over all queries of its tiles."""
    (q, k, v), weights = arrays(0, heads=(2, 1, 1, 2))
    (_, out), grads = both(kernels)[1]((q, k, v.at[:, :BLOCK].set(jnp.nan)), weights, *packed())
    assert np.all(np.isnan(out[:, :BLOCK])) and np.all(np.isfinite(out[:, BLOCK:]))
    assert np.all(np.isfinite(grads[1][:, BLOCK:])) and np.all(np.isfinite(grads[0][:, BLOCK:]))


def test_only_blocks_that_are_needed_are_fetched():
    seen = jnp.asarray([[[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]], bool)
    assert _nearest(seen).tolist() == [1, 1, 3, 3, 3, 0, 0, 0, 0, 0]


@pytest.mark.slow
@on_each
@pytest.mark.parametrize("remat", ["none", "attention"])
def test_a_model_with_kernels_has_the_dense_model_s_rewards_and_gradients(remat, kernels, monkeypatch):
    interpreted = functools.partial(pallas_attention, interpret=True, kernels=kernels)
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

    dense, tiled = trained(), trained(attention="pallas", remat=remat)
    for want, got in zip(jax.tree.leaves(dense), jax.tree.leaves(tiled), strict=True):
        rounding = 4e-5 * float(np.max(np.abs(want)))  # a number near 0 is a sum of some as large as the largest
        np.testing.assert_allclose(got, want, atol=max(1e-4, rounding), rtol=1e-4)
    assert max(np.max(np.abs(x)) for x in jax.tree.leaves(dense[1])) > 1e-2


def lowered_for_a_gpu(kernels, dtype, block, width):
    """The program of a gradient, for a GPU that is not there."""
    q, k, v = (jax.ShapeDtypeStruct((2, T, n, width), dtype) for n in (4, 2, 2))
    mask = ForestMask(*(jax.ShapeDtypeStruct((2, T), jnp.int32) for _ in range(2)))

    def total(qkv, mask):
        return jnp.sum(pallas_attention(*qkv, mask, block, kernels=kernels).astype(jnp.float32))

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(jax.grad(total)).trace((q, k, v), mask).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("block", "width"), [(512, 128), (32, 64)])
def test_the_kernels_for_gpus_are_lowered_to_triton(dtype, block, width):
    """Where there is no GPU that is as far as they go: all three are in the program, none is interpreted."""
    text = lowered_for_a_gpu("triton", dtype, block, width)
    assert [text.count(name) > 0 for name in ("output_kernel", "query_kernel", "key_kernel")] == [True] * 3
    assert "triton" in text


@newer
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", HEAD_WIDTHS)
def test_the_kernels_for_gpus_are_lowered_to_mosaic_gpu(dtype, width):
    text = lowered_for_a_gpu("mosaic", dtype, 512, width)
    assert [text.count(name) > 0 for name in ("output_kernel", "query_kernel", "key_kernel")] == [True] * 3
    assert text.count("@mosaic_gpu") == 3


def test_a_gpu_gets_the_kernels_that_this_jax_does_not_deprecate():
    assert [kernels_for(platform) for platform in ("cpu", "tpu")] == ["cpu", "tpu"]
    assert kernels_for("gpu") == ("mosaic" if jax.__version_info__ >= (0, 12) else "triton")


@pytest.mark.parametrize(
    ("kernels", "block", "width", "message"),
    [
        ("tpu", 100, 8, "attention_block is 100; attention=pallas needs a multiple of 128"),
        ("triton", 96, 8, "attention_block is 96; attention=pallas needs a power of two here, 16 at least"),
        ("triton", 8, 8, "attention_block is 8; attention=pallas needs a power of two here, 16 at least"),
        ("triton", 64, 8, "16 at least, not 8; use blockwise"),
        ("triton", 64, 24, "needs a head width that is a power of two on a GPU, 16 at least, not 24; use blockwise"),
        ("mosaic", 96, 64, "attention_block is 96; attention=pallas needs a multiple of 64 here"),
        ("mosaic", 64, 32, "needs a head width of 64 or 128 on a GPU with this jax, not 32; use blockwise"),
        (
            "mosaic",
            64,
            64,
            "16 bits on a GPU with this jax, not float32; set model.dtype to bfloat16, or use blockwise",
        ),
        ("cpu", 64, 64, "is for TPUs and GPUs, and this is cpu; use blockwise"),
    ],
)
def test_what_the_kernels_do_not_take(kernels, block, width, message):
    (q, k, v), _ = arrays(0, width=width)
    with pytest.raises(ValueError, match=message):
        pallas_attention(q, k, v, ForestMask(*map(jnp.asarray, packed())), block, kernels=kernels)


@pytest.mark.parametrize(("capability", "refused"), [("8.0", True), ("9.0", False), ("10.0", True), ("", False)])
def test_mosaic_gpu_s_kernels_are_for_hopper(capability, refused, monkeypatch):
    monkeypatch.setattr(attention, "_compute_capability", lambda: capability)
    reason = attention.refusal("mosaic", 64, 128, "bfloat16")
    assert (f"Hopper) with this jax, and this one has {capability}; use blockwise" in reason) == bool(reason) == refused
