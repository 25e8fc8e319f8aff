"""Rewards do not depend on company: alone, packed, shared, shifted, in any row and order they are the same."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.packing import ForestShape, Tree, fill, pack
from rmjax.losses import ranking
from rmjax.models.forest import Forest
from rmjax.models.parameters import flat
from rmjax.models.reward import READOUT, RewardTransformer
from rmjax.models.rope import Rope
from rmjax.models.transformer import Transformer, causal_mask

LEAVES, GROUPS, LONGEST = 3, 5, 16
ALONE = ForestShape(rows=1, row_tokens=LONGEST, groups=1, branches=1)
PACKED = ForestShape(rows=4, row_tokens=64, groups=5, branches=LEAVES)
LONGER = dataclasses.replace(PACKED, row_tokens=96)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def scorer(tiny_config, random_params):
    return scoring(tiny_config, random_params)


@pytest.fixture(scope="module")
def windowed(tiny_config, random_params):
    """In tiles, the first layer under a window that is shorter than the texts."""
    changes = {"window": 5, "windowed": (True, False), "local_rope": Rope(100.0), "attention_softcap": 4.0}
    config = dataclasses.replace(tiny_config, **changes, attention="blockwise", attention_block=8)
    return scoring(config, random_params)


def scoring(config, random_params):
    """A tiny fp32 model with a random head; rewards have a standard deviation of about 1."""
    head = np.random.default_rng(1).standard_normal((config.width, 1)).astype(np.float32)
    params = {"backbone": random_params(config, 0), "head": {"kernel": head / config.width**0.5}}
    model = RewardTransformer(config)
    rewards = jax.jit(lambda forest: model.apply({"params": params}, forest))
    return SimpleNamespace(config=config, params=params, model=model, rewards=rewards)


def separate(ids: list[int]) -> Tree:
    """A full sequence as a group of its own, with nothing shared."""
    return Tree(np.zeros(0, np.int32), (np.asarray(ids, np.int32),), np.zeros(1, np.float32))


def shared(sequences: list[list[int]]) -> Tree:
    return Tree.from_sequences(sequences, ranks=[0] * len(sequences))


def alone(scorer, ids: list[int]) -> float:
    return float(scorer.rewards(fill(ALONE, [[separate(ids)]]))[0, 0, 0])


@st.composite
def groups_of_sequences(draw):
    token = st.integers(0, 96)
    prefix = draw(st.lists(token, max_size=10))
    return [prefix + draw(st.lists(token, min_size=1, max_size=6)) for _ in range(draw(st.integers(1, LEAVES)))]


@st.composite
def arranged(draw, trees: list[Tree]):
    """The trees in random rows and random order: [row] -> indices."""
    rows: list[list[int]] = [[] for _ in range(PACKED.rows)]
    for i in draw(st.permutations(range(len(trees)))):
        used = [sum(trees[j].size for j in row) for row in rows]
        open_rows = [
            r for r, u in enumerate(used) if u + trees[i].size <= PACKED.row_tokens and len(rows[r]) < PACKED.groups
        ]
        rows[draw(st.sampled_from(open_rows))].append(i)
    return rows


def shifted(forest: Forest, columns: int) -> Forest:
    """All tokens that many columns to the right: padding on the left."""
    moved = {name: np.roll(getattr(forest, name), columns, axis=1) for name in vars(forest) if name.endswith("_RT")}
    readout_RGN: Any = np.where(forest.readout_RGN >= 0, forest.readout_RGN + columns, -1)
    return dataclasses.replace(forest, **moved, readout_RGN=readout_RGN)


def check(scorer, forest: Forest, rows: list[list[int]], wanted: list[list[float]]) -> None:
    rewards_RGN = np.asarray(scorer.rewards(forest))
    for r, row in enumerate(rows):
        for g, i in enumerate(row):
            np.testing.assert_allclose(rewards_RGN[r, g, : len(wanted[i])], wanted[i], atol=TOLERANCE, rtol=0)
    assert not rewards_RGN[forest.readout_RGN < 0].any()
    assert (forest.readout_RGN >= 0).sum() == sum(len(wanted[i]) for row in rows for i in row)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_reward_does_not_depend_on_company(scorer, data):
    in_any_company(scorer, data)


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_a_reward_under_a_window_does_not_depend_on_company(windowed, data):
    in_any_company(windowed, data)


def test_in_tiles_and_densely_a_window_gives_the_same_rewards(windowed):
    dense = RewardTransformer(dataclasses.replace(windowed.config, attention="dense"))
    whole = RewardTransformer(
        dataclasses.replace(windowed.config, attention="dense", window=0, windowed=(), local_rope=None)
    )
    random = np.random.default_rng(0)
    forest = fill(ALONE, [[separate(random.integers(0, 97, LONGEST).tolist())]])
    want, other = (jax.jit(m.apply)({"params": windowed.params}, forest) for m in (dense, whole))
    np.testing.assert_allclose(windowed.rewards(forest), want, atol=TOLERANCE)
    assert np.abs(np.asarray(want) - other).max() > 1e-2


def in_any_company(scorer, data):
    groups = data.draw(st.lists(groups_of_sequences(), min_size=1, max_size=GROUPS))
    wanted = [[alone(scorer, s) for s in sequences] for sequences in groups]
    trees = [shared(sequences) for sequences in groups]

    rows = data.draw(arranged(trees))
    forest = fill(PACKED, [[trees[i] for i in row] for row in rows])
    check(scorer, forest, rows, wanted)
    free = PACKED.row_tokens - int(np.max(np.sum(forest.group_RT > 0, axis=1)))
    check(scorer, shifted(forest, data.draw(st.integers(0, free))), rows, wanted)
    longer = fill(LONGER, [[trees[i] for i in row] for row in rows])  # more padding on the right
    check(scorer, longer, rows, wanted)

    for forest, places in pack(trees, PACKED):
        check(scorer, forest, places, wanted)

    parts = [separate(s) for sequences in groups for s in sequences]  # the same sequences, nothing shared
    rows = data.draw(arranged(parts))
    forest = fill(PACKED, [[parts[i] for i in row] for row in rows])
    check(scorer, forest, rows, [[w] for group in wanted for w in group])


def test_the_rewards_tell_sequences_apart(scorer):
    """Without this the property above would hold of a constant."""
    random = np.random.default_rng(0)
    values = [alone(scorer, random.integers(0, 97, 8).tolist()) for _ in range(20)]
    assert 0.3 < np.std(values) < 5
    base = random.integers(0, 97, 8).tolist()
    changed = [alone(scorer, base[:i] + [(base[i] + 1) % 97] + base[i + 1 :]) for i in range(8)]
    assert min(abs(alone(scorer, base) - value) for value in changed) > 1e-3  # every token has a say


@pytest.mark.parametrize("length", [1, 5])
def test_a_reward_is_the_head_on_the_last_hidden_state(scorer, length):
    ids = np.random.default_rng(length).integers(0, 97, (1, length))
    positions, mask = np.arange(length)[None], causal_mask(jnp.ones((1, length), bool))
    hidden = np.asarray(Transformer(scorer.config).apply({"params": scorer.params["backbone"]}, ids, positions, mask))
    wanted = hidden[0, -1] @ scorer.params["head"]["kernel"][:, 0]
    assert alone(scorer, ids[0].tolist()) == pytest.approx(float(wanted), abs=TOLERANCE)


def test_identical_candidates_have_equal_rewards(scorer):
    forest = fill(PACKED, [[shared([[5, 6, 7]] * 3)], [], [], []])
    rewards = np.asarray(scorer.rewards(forest))[0, 0]
    # Not to the last bit: the sums of the softmax run over different columns.
    np.testing.assert_allclose(rewards, alone(scorer, [5, 6, 7]), atol=TOLERANCE, rtol=0)
    assert np.abs(rewards).min() > 0.01


# --- the head ---------------------------------------------------------------------------------------------------------

SMALL = ForestShape(rows=2, row_tokens=16, groups=2, branches=3)


def small_forest() -> Forest:
    return fill(SMALL, [[shared([[5, 6, 7], [5, 8]]), shared([[9], [10], [11]])], [shared([[1, 2], [1, 3]])]])


def initial(scorer, **changes):
    model = RewardTransformer(dataclasses.replace(scorer.config, **changes))
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), small_forest()))["params"]


def test_at_the_start_rewards_are_zero_and_the_loss_is_ln_2(scorer):
    model, params = initial(scorer)
    assert set(params) == {"backbone", "head"}
    assert jax.tree.map(jnp.shape, params["head"]) == {"kernel": (scorer.config.width, 1)}  # no bias
    ranks_RGN = jnp.broadcast_to(jnp.asarray([0, 1, np.inf]), (2, 2, 3))

    def loss(params):
        rewards_RGN: Any = model.apply({"params": params}, small_forest())
        values_RG = ranking.bradley_terry(rewards_RGN, ranking.order(ranks_RGN), jnp.zeros((2, 2)))
        return jnp.sum(values_RG[0]), (values_RG, rewards_RGN)

    grads, (values_RG, rewards_RGN) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert not np.asarray(rewards_RGN).any()
    np.testing.assert_array_equal(values_RG, np.log(np.float32(2)))
    assert np.abs(grads["head"]["kernel"]).max() > 1e-3  # it can leave the start, head first
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["backbone"]))


def test_the_head_computes_in_fp32_whatever_the_backbone(scorer):
    model, params = initial(scorer, dtype="bfloat16", param_dtype="bfloat16")
    assert params["head"]["kernel"].dtype == jnp.float32
    assert params["backbone"]["embedding"]["embedding"].dtype == jnp.bfloat16
    # 1 + 2⁻¹⁴ on each input; in bf16 it would be 1.
    params = {**params, "head": {"kernel": np.full((scorer.config.width, 1), 1 + 2**-14, np.float32)}}

    def both(params):
        forest = small_forest()
        return model.apply({"params": params}, forest), model.apply({"params": params}, forest, method="hidden")

    rewards_RGN, hidden_RTD = jax.jit(both)(params)
    assert rewards_RGN.dtype == jnp.float32 and hidden_RTD.dtype == jnp.bfloat16
    readout = np.asarray(hidden_RTD[0, small_forest().readout_RGN[0, 0, 1]], np.float64)
    rounding = 1e-6 * np.abs(readout).sum()
    assert abs(readout.sum()) * 2**-14 > 3 * rounding, "the test would not see a rounded head"
    assert float(rewards_RGN[0, 0, 1]) == pytest.approx(readout.sum() * (1 + 2**-14), abs=rounding)


def test_an_mlp_head_starts_at_zero_and_is_two_matrices_with_a_relu_between(scorer):
    model, params = initial(scorer, head="mlp", head_hidden=24)
    D = scorer.config.width
    shapes = {"hidden": {"kernel": (D, 24), "bias": (24,)}, "output": {"kernel": (24, 1), "bias": (1,)}}
    assert jax.tree.map(jnp.shape, params["head"]) == shapes
    assert jax.tree.map(jnp.shape, initial(scorer, head="mlp")[1]["head"])["hidden"]["kernel"] == (D, D)
    assert [path for path in flat(params) if re.search(READOUT, path)] == ["head/output/kernel"]
    assert not np.asarray(model.apply({"params": params}, small_forest())).any()
    random = np.random.default_rng(2)
    head = jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), params["head"])
    params = {"backbone": scorer.params["backbone"], "head": head}
    apply = jax.jit(
        lambda forest: (
            model.apply({"params": params}, forest),
            scorer.model.apply({"params": scorer.params}, forest, method="hidden"),
        )
    )
    rewards_RGN, hidden_RTD = (np.asarray(x) for x in apply(small_forest()))
    x_D = hidden_RTD[0, small_forest().readout_RGN[0, 0, 1]]
    want = np.maximum(x_D @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0) @ head["output"]["kernel"]
    assert float(rewards_RGN[0, 0, 1]) == pytest.approx(float(want[0] + head["output"]["bias"][0]), abs=1e-4)
    assert not rewards_RGN[small_forest().readout_RGN < 0].any()


def test_neither_padding_nor_absent_leaves_have_a_gradient(scorer):
    forest = small_forest()

    def parts(params):
        rewards_RGN = scorer.model.apply({"params": params}, forest)
        absent_RGN = forest.readout_RGN < 0
        return jnp.sum(jnp.where(absent_RGN, rewards_RGN, 0.0)), jnp.sum(jnp.where(absent_RGN, 0.0, rewards_RGN))

    of_absent, of_present = jax.jit(jax.jacrev(parts))(scorer.params)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(of_absent))
    embedding = np.asarray(of_present["backbone"]["embedding"]["embedding"])
    assert np.isfinite(embedding).all()
    # Token 0 pads, and no text here has it.
    assert set(np.flatnonzero(np.abs(embedding).sum(1))) == {1, 2, 3, 5, 6, 7, 8, 9, 10, 11}


def test_logits_of_a_packed_text_are_those_of_the_text_alone(scorer):
    texts = [[5, 6, 7, 8], [9, 4]]
    logits = jax.jit(lambda forest: scorer.model.apply({"params": scorer.params}, forest, method="logits"))
    shape = ForestShape(rows=1, row_tokens=8, groups=2, branches=1)
    trees = [Tree.for_language_model(ids, 1) for ids in texts]
    packed, first, second = (np.asarray(logits(fill(shape, [row]))) for row in (trees, trees[:1], trees[1:]))
    np.testing.assert_allclose(packed[0, :4], first[0, :4], atol=1e-4)
    np.testing.assert_allclose(packed[0, 4:6], second[0, :2], atol=1e-4)
    assert np.std(packed[0, :6]) > 0.1
