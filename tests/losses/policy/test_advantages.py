"""Advantages: golden values in fp64, exact zeros, masks that are not read, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.losses.policy.advantages import all_equal, gae, group_advantages, require_finite, value_loss
from rmjax.losses.policy.sequences import at_last

REWARDS = np.array([1, 0, 0.5, 0])
ALL = np.ones(4, bool)
GOLDEN = {
    "TRL": (("group_mean", "group_std", 1, 1e-4), [1.30530975, -0.78318585, 0.26106195, -0.78318585]),
    "verl, tunix": (("group_mean", "group_std", 1, 1e-6), [1.30557969, -0.78334782, 0.26111594, -0.78334782]),
    "OpenRLHF": (("group_mean", "group_std", 1, 1e-9), [1.30558242, -0.78334945, 0.26111648, -0.78334945]),
    "EasyDeL": (("group_mean", "group_std", 0, 1e-4), [1.50719317, -0.9043159, 0.30143863, -0.9043159]),
    "RLOO": (("leave_one_out", "none", 1, 0.0), [0.83333333, -0.5, 0.16666667, -0.5]),
    "Dr. GRPO": (("group_mean", "none", 1, 0.0), [0.625, -0.375, 0.125, -0.375]),
    "REINFORCE": (("none", "none", 1, 0.0), [1, 0, 0.5, 0]),
}
FORMS = [form for form, _ in GOLDEN.values()]


@pytest.mark.parametrize(("form", "wanted"), GOLDEN.values(), ids=GOLDEN)
def test_golden_values(form, wanted):
    assert group_advantages(REWARDS, ALL, *form) == pytest.approx(wanted, abs=6e-9)
    compiled = jax.jit(group_advantages, static_argnums=(2, 3, 4, 5))
    assert compiled(jnp.asarray(REWARDS), ALL, *form) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("array", [lambda x: x, lambda x: jnp.asarray(x, jnp.float32)], ids=["numpy", "jax"])
@pytest.mark.parametrize("form", [form for form in FORMS if form[0] != "none"])
@pytest.mark.parametrize("samples", [8, 3])
def test_equal_rewards_give_exactly_0(array, form, samples):
    rewards, present = np.full((3, samples), [[0.1], [1e6 / 3], [-7.3]]), np.ones((3, samples), bool)
    for eps in (0.0, 1e-9):
        assert np.all(np.asarray(group_advantages(array(rewards), present, *form[:3], eps)) == 0)
    assert np.all(all_equal(array(rewards), present))


def test_the_plain_formula_would_not_give_0():
    assert np.mean([0.1] * 3) != 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_group_of_one_and_an_absent_sample(form):
    present = np.array([False, True, False, False])
    found = group_advantages(np.array([np.nan, 3.0, np.inf, 0]), present, *form)
    assert found.tolist() == [0, 3.0 if form[0] == "none" else 0, 0, 0]
    with_gap = group_advantages(np.array([np.nan, *REWARDS]), np.array([False, *ALL]), *form)
    assert with_gap[1:] == pytest.approx(group_advantages(REWARDS, ALL, *form), abs=1e-12) and with_gap[0] == 0


@settings(max_examples=40, deadline=None)
@given(
    rewards=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8),
    shift=st.floats(-50, 50),
    order=st.randoms(use_true_random=False),
    form=st.sampled_from([form for form in FORMS if form[0] != "none"]),
)
def test_a_shift_changes_nothing_and_order_is_followed(rewards, shift, order, form):
    values, present = np.array(rewards, np.float64), np.ones(len(rewards), bool)
    wanted = group_advantages(values, present, *form)
    assert np.sum(wanted) == pytest.approx(0, abs=1e-6 * (1 + np.max(np.abs(wanted))))
    at = list(range(len(rewards)))
    order.shuffle(at)
    assert group_advantages(values[at], present, *form) == pytest.approx(wanted[at], rel=1e-6, abs=1e-9)
    if form[1] == "none":
        assert group_advantages(values + shift, present, *form) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("change", [{"baseline": "mean"}, {"scale": "std"}, {"ddof": 2}, {"eps": -1.0}])
def test_other_forms_are_refused(change):
    with pytest.raises(ValueError, match="choose one of|ddof is"):
        group_advantages(REWARDS, ALL, **change)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_advantage_that_is_not_finite_is_an_error(bad):
    require_finite([0.0, 1.0], "a:1")
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="a:1: an advantage is not finite"):
        require_finite(group_advantages(np.array([bad, 0.0]), ALL[:2]), "a:1")


def test_groups_of_one_reward():
    present = np.array([[True, True, False], [True, True, False], [True, False, False]])
    assert all_equal(np.array([[1.0, 1, 2], [1, 2, 2], [3, 1, 2]]), present).tolist() == [True, False, True]


GAE = {(1, 1): [0.5, 0.6, 0.7], (1, 0.95): [0.43675, 0.565, 0.7], (0.9, 0.7): [0.05593, 0.311, 0.7]}


@pytest.mark.parametrize(("form", "wanted"), GAE.items())
def test_gae_golden_values_whatever_stands_elsewhere(form, wanted):
    """Two sequences side by side, padding between and behind; in the second a masked token is passed over."""
    bad = np.nan
    sequence = np.array([[0, 0, 0, -1, 1, 1, 1, 1, -1]])
    mask = np.array([[1, 1, 1, 0, 1, 0, 1, 1, 0]])
    values = np.array([[0.5, 0.4, 0.3, bad, 0.5, bad, 0.4, 0.3, bad]])
    rewards = np.array([[0, 0, 1, bad, 0, bad, 0, 1, bad]])
    found = np.asarray(gae(*map(jnp.asarray, (rewards, values, mask, sequence)), *form))[0]
    assert found[:3] == pytest.approx(wanted, abs=6e-6)
    assert found[[4, 6, 7]] == pytest.approx(wanted, abs=6e-6)
    assert found[[3, 5, 8]].tolist() == [0, 0, 0]
    assert np.asarray(found + np.nan_to_num(values[0]))[:3] == pytest.approx(
        np.array(wanted) + [0.5, 0.4, 0.3], abs=1e-5
    )


def test_a_reward_of_the_whole_stands_at_the_last_trained_token():
    sequence, mask = np.array([[0, 0, 0, -1, 1, 1]]), np.array([[1, 1, 0, 0, 1, 1]])
    assert at_last(jnp.array([[2.0, 3.0]]), mask, sequence).tolist() == [[0, 2, 0, 0, 0, 3]]


def test_the_critic_s_loss_by_hand():
    values, returns, old = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[0.0, 2.0, 1.0]]), jnp.array([[0.0, 1.0, 0.0]])
    assert value_loss(values, returns).tolist() == [[0.5, 0.0, 0.5]]
    assert value_loss(values, returns, old, 0.2)[0].tolist() == pytest.approx([0.5, 0.5 * 0.8**2, 0.5])
