"""Attention block by block: the dense one's values and gradients, in memory that grows with the row."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.models.attention import blockwise, pallas_attention
from rmjax.models.forest import attention_mask
from rmjax.models.reward import RewardTransformer
from rmjax.models.tiles import ForestMask, tiles_seen
from rmjax.models.transformer import TransformerConfig, attend
from rmjax.models.xla_kernels import _schedule
from rmjax.train.state import initial_params

SIZES = TransformerConfig(64, 32, 2, 4, 2, 8, 64)


@pytest.fixture(scope="module")
def forest():
    """Two rows of 37 tokens (a multiple of no block): two groups and padding; one group whose leaf crosses blocks."""
    random = np.random.default_rng(0)

    def tree(prefix, *leaves):
        ids = [random.integers(1, 64, n).astype(np.int32) for n in (prefix, *leaves)]
        return Tree(ids[0], tuple(ids[1:]), np.arange(len(leaves), dtype=np.float32))

    return fill(ForestShape(2, 37, 2, 3), [[tree(5, 6, 2), tree(0, 1, 9, 4)], [tree(11, 17, 9)]])


@pytest.mark.parametrize("block", [1, 4, 8, 64])
def test_values_and_gradients_are_those_of_the_dense_form(forest, block):
    random = np.random.default_rng(1)
    q, k, v, weights = (jnp.asarray(random.normal(size=(2, 37, heads, 8)), jnp.float32) for heads in (4, 2, 2, 4))
    mask = attention_mask(jnp.asarray(forest.group_RT), jnp.asarray(forest.branch_RT))
    parts = ForestMask(jnp.asarray(forest.group_RT), jnp.asarray(forest.branch_RT))

    def both(form):
        return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(form(*qkv) * weights), argnums=(0, 1, 2)))(q, k, v)

    dense, blocks = both(lambda *qkv: attend(*qkv, mask)), both(lambda *qkv: blockwise(*qkv, parts, block))
    for want, got in zip(jax.tree.leaves(dense), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    out = blockwise(q, k, v, parts, block)
    np.testing.assert_allclose(out, attend(q, k, v, mask), atol=1e-6)
    assert not np.any(np.asarray(out)[forest.group_RT == 0])


def test_the_second_derivative_is_that_of_the_dense_form(forest):
    """MetaRM's second order needs it; what is not visible has scores so large here that their exponential is infinite."""
    random = np.random.default_rng(1)
    q, k, v, weights = (jnp.asarray(random.normal(size=(2, 37, heads, 8)), jnp.float32) for heads in (4, 2, 2, 4))
    hidden = jnp.where((jnp.asarray(forest.group_RT) == 0)[..., None, None], 1e4, 1.0)
    mask = attention_mask(jnp.asarray(forest.group_RT), jnp.asarray(forest.branch_RT))
    parts = ForestMask(jnp.asarray(forest.group_RT), jnp.asarray(forest.branch_RT))

    def slope(form):
        def length(qkv):
            inner = jax.grad(lambda qkv: jnp.sum(form(qkv[0], qkv[1] * hidden, qkv[2]) * weights))(qkv)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in inner[:2])

        return jax.jit(jax.grad(length))((q, k, v))

    for want, got in zip(slope(lambda *x: attend(*x, mask)), slope(lambda *x: blockwise(*x, parts, 8)), strict=True):
        visible = np.asarray(forest.group_RT) > 0
        np.testing.assert_allclose(np.asarray(got)[visible], np.asarray(want)[visible], atol=2e-4)
        assert np.isfinite(got).all()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "attention", "full"])
def test_a_model_with_blocks_has_the_dense_model_s_rewards_and_gradients(forest, remat):
    params = nn.meta.unbox(initial_params(RewardTransformer(SIZES), 0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 1))

    def both(**changes):
        model = RewardTransformer(dataclasses.replace(SIZES, **changes))
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, forest)))))(params)

    dense, blocks = both(), both(attention="blockwise", attention_block=8, remat=remat)
    for want, got in zip(jax.tree.leaves(dense), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
    assert max(np.max(np.abs(x)) for x in jax.tree.leaves(dense[1])) > 1e-2


@pytest.mark.parametrize(("queries", "keys"), [(2, 2), (4, 4), (10, 10), (2, 4), (4, 10)])
def test_the_schedule_is_the_lower_triangle_and_of_a_part_of_the_queries_all(queries, keys):
    slot, i, j = _schedule(queries, keys)
    wanted = [(a, b) for a in range(queries) for b in range(a + 1 if queries == keys else keys)]
    assert sorted(zip(i.ravel(), j.ravel(), strict=True)) == wanted
    assert all(len(set(i[a][slot[a] == s])) == 1 for a in range(queries // 2) for s in (0, 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.integers(1, 3), st.integers(0, 3), st.sampled_from([1, 3, 6, 8]))
def test_no_tile_that_a_token_sees_is_left_out(seed, groups, leaves, size):
    """Of any marks, sorted like a forest's or not."""
    random = np.random.default_rng(seed)
    group, leaf = random.integers(0, groups + 1, (2, 48)), random.integers(0, leaves + 1, (2, 48))
    if seed % 2:
        group = np.sort(group)
    column = np.broadcast_to(np.arange(48), group.shape)
    marks = jnp.asarray(np.stack([group, leaf, column], -1)).reshape(2, 48 // size, size, 3)
    seen = tiles_seen(marks, marks)
    mask = np.asarray(attention_mask(jnp.asarray(group), jnp.asarray(leaf)))
    tiles = mask.reshape(2, 48 // size, size, 48 // size, size).any((2, 4))
    assert not np.any(tiles & ~np.asarray(seen))
    assert not np.any(np.triu(np.asarray(seen), 1))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 3, 4]))
def test_blocks_of_any_marks_have_the_dense_form_s_values(seed, block):
    random = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(random.normal(size=(2, 12, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    group, leaf = (jnp.asarray(random.integers(0, 4, (2, 12))) for _ in range(2))
    want = attend(q, k, v, attention_mask(group, leaf))
    np.testing.assert_allclose(blockwise(q, k, v, ForestMask(group, leaf), block), want, atol=1e-5)


@st.composite
def forests_with_windows(draw):
    """(forest of one row, window, block), the row of up to three groups, windows from one token to more than there are."""
    random = np.random.default_rng(draw(st.integers(0, 9999)))

    def tree():
        prefix, *leaves = (random.integers(1, 64, n) for n in (random.integers(0, 8), *random.integers(1, 6, 3)))
        return Tree(prefix, tuple(leaves), np.zeros(3, np.float32))

    forest = fill(ForestShape(1, 72, 3, 3), [[tree() for _ in range(draw(st.integers(1, 3)))]])
    return forest, draw(st.integers(1, 14)), draw(st.sampled_from([4, 8]))


def windowed_by_hand(forest, window):
    """Token by token: the last `window` tokens of the path from the root to it."""
    group_T, branch_T, position_T = (np.asarray(x)[0] for x in (forest.group_RT, forest.branch_RT, forest.positions_RT))
    mask_TS = np.zeros((len(group_T),) * 2, bool)
    for t in np.flatnonzero(group_T):
        path = [s for s in range(t + 1) if group_T[s] == group_T[t] and branch_T[s] in (0, branch_T[t])]
        assert position_T[path].tolist() == list(range(len(path)))
        mask_TS[t, path[-window:]] = True
    return mask_TS[None]


@settings(max_examples=10, deadline=None)
@given(forests_with_windows())
def test_a_window_is_the_last_tokens_of_the_path(drawn):
    """In tiles and by positions as by hand; and a tile whose tokens are all outside is left out, none that has one inside."""
    forest, window, block = drawn
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(1, 72, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    marks = (jnp.asarray(x) for x in (forest.group_RT, forest.branch_RT, forest.positions_RT))
    parts, by_hand = ForestMask(*marks, jnp.asarray(window)), windowed_by_hand(forest, window)
    want = attend(q, k, v, jnp.asarray(by_hand), softcap=1.5, scale=0.5)
    np.testing.assert_allclose(blockwise(q, k, v, parts, block, scale=0.5, softcap=1.5), want, atol=1e-5)
    seen = tiles_seen(*(x.reshape(1, 72 // block, block, 4) for x in parts.marks()))
    tiles = by_hand.reshape(1, 72 // block, block, 72 // block, block).any((2, 4))
    assert not np.any(tiles & ~np.asarray(seen))


def test_tiles_outside_of_a_window_are_left_out():
    """Of a plain row of 64 tokens in blocks of 8 under a window of 8: the diagonal, and the tiles beside it."""
    row = [jnp.ones((1, 64), jnp.int32), jnp.zeros((1, 64), jnp.int32), jnp.arange(64)[None]]
    seen = tiles_seen(*(x.reshape(1, 8, 8, 4) for x in ForestMask(*row, jnp.asarray(8)).marks()))
    np.testing.assert_array_equal(seen[0], np.eye(8, dtype=bool) | np.eye(8, k=-1, dtype=bool))


def test_gradients_with_a_window_and_a_softcap_are_those_of_the_dense_form(forest):
    random = np.random.default_rng(1)
    q, k, v, weights = (jnp.asarray(random.normal(size=(2, 37, heads, 8)), jnp.float32) for heads in (4, 2, 2, 4))
    group, leaf, position = (jnp.asarray(x) for x in (forest.group_RT, forest.branch_RT, forest.positions_RT))
    mask = attention_mask(group, leaf) & (position[:, :, None] - position[:, None] < 6)
    parts = ForestMask(group, leaf, position, jnp.asarray(6))

    def slopes(form):
        return jax.jit(jax.grad(lambda qkv: jnp.sum(form(*qkv) * weights)))((q, k, v))

    dense = slopes(lambda *qkv: attend(*qkv, mask, softcap=1.5))
    for want, got in zip(dense, slopes(lambda *qkv: blockwise(*qkv, parts, 8, softcap=1.5)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
        assert np.abs(want).max() > 0.1


@pytest.mark.parametrize("changes", [{"softcap": 50.0}, {"window": jnp.asarray(4)}])
def test_kernels_refuse_what_they_do_not_have(changes):
    q, marks = jnp.ones((1, 128, 2, 8)), jnp.ones((1, 128), jnp.int32)
    mask = ForestMask(marks, marks, marks, changes.pop("window", None))
    with pytest.raises(ValueError, match="attention=pallas has neither windows nor a softcap; use blockwise"):
        pallas_attention(q, q, q, mask, 128, interpret=True, kernels="tpu", **changes)


def test_tiles_that_nobody_sees_are_not_computed():
    """A NaN among the values would spread over all queries of its tiles."""
    group, leaf = (jnp.asarray(np.repeat(marks, 4)[None], jnp.int32) for marks in ([1, 1, 2], [1, 2, 0]))
    q, k, v = (jnp.ones((1, 12, heads, 8)) for heads in (4, 2, 2))

    def both(q, k):
        out = blockwise(q, k, v.at[:, :4].set(jnp.nan), ForestMask(group, leaf), 4)
        return jnp.sum(out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(q, k)
    for x in (out, *gradients):
        assert np.all(np.isnan(x[:, :4])) and np.all(np.isfinite(x[:, 4:]))


def test_tiles_between_groups_and_between_leaves_are_not_seen():
    """A row of eight groups of one block each; a group with two leaves of four blocks; nothing."""
    group_RT = np.array([np.repeat(np.arange(1, 9), 4), np.repeat([1, 0], 16), np.zeros(32)], np.int32)
    branch_RT = np.array([np.zeros(32), np.repeat([0, 1, 2, 0], [2, 6, 8, 16]), np.zeros(32)], np.int32)
    marks = np.stack([group_RT, branch_RT, np.broadcast_to(np.arange(32), (3, 32))], -1).reshape(3, 8, 4, 3)
    each, leaves, nothing = np.asarray(tiles_seen(jnp.asarray(marks), jnp.asarray(marks))).astype(int)
    assert each.tolist() == np.eye(8, dtype=int).tolist()
    assert leaves[:4, :4].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]] and leaves.sum() == 8
    assert not nothing.any()


@pytest.mark.slow
def test_memory_grows_linearly_to_32k_tokens_a_row():
    """That of a training step's gradient: with a scan over layers and remat, masks must not be kept for all of a row."""

    def temporaries(T, **changes):
        config = dataclasses.replace(SIZES, heads=2, kv_heads=1, remat="attention", attention_block=512, **changes)
        model = RewardTransformer(config)
        shapes = jax.eval_shape(lambda: nn.meta.unbox(initial_params(model, 0)))
        forest = jax.eval_shape(lambda: ForestShape(1, T, 2, 2).empty())
        grad = jax.grad(lambda params, forest: jnp.sum(model.apply({"params": params}, forest)))
        return jax.jit(grad).lower(shapes, forest).compile().memory_analysis().temp_size_in_bytes

    blocks = {T: temporaries(T, attention="blockwise") for T in (16_384, 32_768)}
    dense = {T: temporaries(T) for T in (2048, 4096)}
    assert blocks[32_768] < 2.1 * blocks[16_384], blocks
    assert dense[4096] > 3.5 * dense[2048], dense  # the square that blocks avoid
    assert blocks[32_768] < dense[4096]


def test_a_part_of_a_row_is_two_tokens_at_least():
    mesh = jax.sharding.AbstractMesh((2,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v = (jnp.ones((1, 2, heads, 8)) for heads in (4, 2, 2))
    marks = ForestMask(jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32))
    refused = pytest.raises(ValueError, match="rows of 2 tokens leave a device of mesh axis context fewer than two")
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules((("tokens", "context"),)), refused:
        blockwise(q, k, v, marks, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "sparse"}, "attention is 'sparse'; choose one of dense, blockwise, pallas"),
        ({"attention_block": 0}, "attention_block is 0"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIZES, **change)
