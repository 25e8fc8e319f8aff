"""DPO and IPO: golden values from the formulas, candidates as sequences of their own, the frozen reference."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from rmjax import config as base
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.losses.direct import ipo, path_sums, predecessors
from rmjax.methods.dpo import ROLES, Section, dpo, implicit_rewards
from rmjax.parallel.mesh import RULES, make_mesh
from rmjax.roles import Role, Roles
from rmjax.train.objective import Terms

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def both(params):
    """The policy has moved from the reference in what is trained, the layers."""
    spread = ROLES.spread(params, "/layers/")
    moved = jax.tree.map(lambda x: x * 1.1, params["backbone"]["layers"])
    return {**spread, "policy": {**params, "backbone": {**params["backbone"], "layers": moved}}}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, forest):
    return model.apply({"params": params}, forest, method="logits")


def log_probability(model, params, ids) -> float:
    """Of a sequence by itself, from its second token on."""
    forest = fill(ForestShape(1, len(ids), 1, 1), [[Tree.from_sequences([list(ids)], [math.inf])]])
    logits = np.asarray(logits_of(model, params, forest), np.float64)[0]
    normal = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return sum(normal[t, ids[t + 1]] for t in range(len(ids) - 1))


def test_rewards_are_those_of_the_candidates_as_sequences_of_their_own(model, both, trees, lay_out):
    rows = trees([2, 1], branches=3, seed=5)
    found = jax.jit(implicit_rewards(model, 0.3))(both, lay_out(rows))
    for r, row in enumerate(rows):
        for g, tree in enumerate(row):
            for n, branch in enumerate(tree.branches):
                ids = [*tree.prefix.tolist(), *branch.tolist()]
                policy, reference = (
                    log_probability(model, ROLES.of(both, role), ids) for role in ("policy", "reference")
                )
                assert found[r, g, n] == pytest.approx(0.3 * (policy - reference), abs=2e-4)


def test_at_the_reference_rewards_are_zero_and_the_loss_is_ln_2(model, params, forest):
    start, batch = ROLES.spread(params, "/layers/"), forest([2, 1])
    terms: Terms = jax.device_get(jax.jit(dpo(model, Section()))(start, batch, KEY))
    assert terms["loss"][0] / terms["loss"][1] == pytest.approx(math.log(2), abs=1e-7)
    assert terms["ties"][0] == terms["ties"][1] > 0
    squared: Terms = jax.device_get(jax.jit(dpo(model, Section(loss="ipo", beta=0.25)))(start, batch, KEY))
    assert squared["loss"][0] / squared["loss"][1] == pytest.approx(4.0)  # (0 − 1 / 2β)²


@pytest.mark.parametrize(
    ("section", "formula"),
    [
        (Section(beta=0.5), lambda d: math.log1p(math.exp(-d))),
        (
            Section(beta=0.5, label_smoothing=0.1),
            lambda d: 0.9 * math.log1p(math.exp(-d)) + 0.1 * math.log1p(math.exp(d)),
        ),
        (Section(beta=0.5, loss="ipo"), lambda d: (d / 0.5 - 1.0) ** 2),
    ],
)
def test_golden_values_from_the_formulas(model, both, forest, section, formula):
    batch = forest([1, 1], seed=3)
    rewards = np.asarray(jax.jit(implicit_rewards(model, section.beta))(both, batch))
    terms: Terms = jax.device_get(jax.jit(dpo(model, section))(both, batch, KEY))
    wanted = [formula(float(rewards[r, 0, 0] - rewards[r, 0, 1])) for r in range(2)]
    assert abs(rewards[0, 0, 0] - rewards[0, 0, 1]) > 1e-3  # else any formula would do
    assert terms["loss"][0] / terms["loss"][1] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_gradient_reaches_the_policy_alone(model, both, forest):
    objective, batch = dpo(model, Section()), forest([1])
    gradient = jax.jit(jax.grad(lambda p: objective(p, batch, KEY)["loss"][0]))(both)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["reference"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["policy"]["backbone"]["layers"]))


def test_ipo_by_hand():
    rewards, order = np.array([[[0.2, -0.1]]], np.float32), np.array([[[[False, True], [False, False]]]])
    assert ipo(rewards, order, np.zeros((1, 1)), 0.1)[0, 0] == pytest.approx((3.0 - 5.0) ** 2)
    assert ipo(rewards, order, np.full((1, 1), 0.2), 0.1)[0, 0] == pytest.approx((3.0 - 7.0) ** 2)
    assert ipo(rewards, np.zeros_like(order), np.zeros((1, 1)), 0.1)[0, 0] == 0


def test_predecessors_and_paths_by_hand():
    """Row: prefix of 2, branches of 2 and 1; a group without prefix, of one branch; padding."""
    group, branch = np.array([[1, 1, 1, 1, 1, 2, 2, 0]]), np.array([[0, 0, 1, 1, 2, 1, 1, 0]])
    assert predecessors(group, branch, 2).tolist() == [[-1, 0, 1, 2, 1, -1, 5, -1]]
    values = np.array([[1, 2, 4, 8, 16, 32, 64, 128]], np.float32)
    assert path_sums(values, group, branch, (2, 2)).tolist() == [[[15, 19], [96, 0]]]


# --- roles -------------------------------------------------------------------------------------------------------------

PARAMS = {"backbone": {"low": 1, "up": 2}, "head": {"kernel": 3}}


def test_an_anchor_holds_only_what_is_trained():
    spread = ROLES.spread(PARAMS, "up")
    assert spread == {"policy": PARAMS, "reference": {"backbone": {"up": 2}}}
    moved = {**spread, "policy": {"backbone": {"low": 1, "up": 5}, "head": {"kernel": 3}}}
    assert ROLES.of(moved, "reference") == PARAMS and ROLES.of(moved)["backbone"]["up"] == 5
    chosen = ROLES.selected("up")
    assert [chosen(path) for path in ("policy/backbone/up", "policy/backbone/low", "reference/backbone/up")] == [
        True, False, False,
    ]  # fmt: skip


def test_a_role_may_be_trained_by_a_pattern_of_its_own():
    roles = Roles("policy", {"critic": Role(trainable="^head/")})
    assert roles.spread(PARAMS, "up")["critic"] == PARAMS
    chosen = roles.selected("up")
    assert chosen("critic/head/kernel") and not chosen("critic/backbone/up") and not chosen("policy/head/kernel")


def test_one_model_is_not_a_level_deeper():
    assert Roles().spread(PARAMS, "up") == PARAMS == Roles().of(PARAMS) and Roles().selected("up") == "up"
    assert dataclasses.astuple(Roles())[1] == {}


# --- what a config may not say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format.kind", "polar", "config.format.kind is 'polar', which a policy does not write in"),
        ("loss.label_smoothing", 0.3, "config.loss.label_smoothing is 0.3, which dpo reads with dpo.loss=rewards only"),
        ("loss.name", "focal", "config.loss.name is 'focal', which dpo reads with dpo.loss=rewards only"),
        ("loss.strength", "margin", "config.loss.strength is 'margin', which votes give"),
        ("dpo.loss", "ipo", None),
    ],
)
def test_keys_that_dpo_does_not_read_are_refused(key, value, message):
    config = base.get_config()
    config.update_from_flattened_dict(
        {"objective": "dpo", "format.kind": "plain", "data.kind": "comparisons", key: value}
    )
    chosen = base.chosen(config)
    if message is None:
        chosen.check(make_mesh({}), RULES)
        return
    with pytest.raises(ValueError, match=message):
        chosen.check(make_mesh({}), RULES)
