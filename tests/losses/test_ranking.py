"""Ranking losses: values by hand, and what must hold of them all."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmjax.losses.ranking import (
    LOSSES,
    PENALTIES,
    bradley_terry,
    centering,
    focal,
    k_way,
    labels,
    listwise,
    log_barrier,
    order,
    pairs,
    smoothed,
    squared,
)
from rmjax.losses.reduction import mean, total

INF = math.inf
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())


def floats(values) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def one_group(loss, rewards, ranks, margin=0.0, **options) -> float:
    """The loss of a single group."""
    return float(loss(floats([[rewards]]), order(floats([[ranks]])), floats([[margin]]), **options)[0, 0])


def gradient(loss, rewards, ranks, margin=0.0, **options) -> np.ndarray:
    def objective(rewards):
        return jnp.sum(loss(rewards, order(floats([[ranks]])), floats([[margin]]), **options))

    return np.asarray(jax.grad(objective)(floats([[rewards]])))[0, 0]


def sigmoid(d: float) -> float:
    return 1 / (1 + math.exp(-d))


# --- order ------------------------------------------------------------------------------------------------------------


def test_order_by_hand():
    wanted = np.zeros((4, 4), bool)
    wanted[1, [0, 2]] = True  # rank 0 is better than the two of rank 1; the last is unknown
    np.testing.assert_array_equal(order(floats([[[1, 0, 1, INF]]]))[0, 0], wanted)


@settings(deadline=None, max_examples=30)
@given(ranks=hnp.arrays(np.float32, (2, 2, 4), elements=st.sampled_from([0, 1, 2, INF])))
def test_order_has_exactly_the_pairs_of_known_different_ranks(ranks):
    found = np.asarray(order(floats(ranks)))
    for index in np.ndindex(2, 2, 4, 4):
        first, second = ranks[index[:3]], ranks[index[:2] + index[3:]]
        assert found[index] == (first < second and second != INF)


@pytest.mark.parametrize("ranks", [[0, 0, 0], [INF, INF, INF], [0, INF, INF], [-INF, 0, INF]])
def test_ties_and_unknown_ranks_give_no_pairs(ranks):
    assert not np.asarray(order(floats([[ranks]]))).any()


# --- values by hand ---------------------------------------------------------------------------------------------------


@every_loss
def test_equal_rewards_of_a_pair_cost_exactly_ln_2(loss):
    assert np.float32(one_group(loss, [0, 0], [0, 1])) == np.log(np.float32(2))
    assert np.float32(one_group(loss, [3, 3], [1, 0])) == np.log(np.float32(2))


@pytest.mark.parametrize(
    ("rewards", "ranks", "margin", "wanted"),
    [
        ([1, -0.5], [0, 1], 0, 0.20141328),  # log(1 + e^−1.5)
        ([1, -0.5], [1, 0], 0, 1.70141328),
        ([1, -0.5], [0, 1], 0.5, 0.31326169),  # the margin makes it log(1 + e^−1)
        ([1, -0.5], [0, 1], 2.5, 1.31326169),
        ([2, 1, 0], [0, 1, 2], 0, (0.31326169 + 0.12692801 + 0.31326169) / 3),  # differences 1, 2, 1
        ([2, 1, 0], [0, 1, 1], 0, (0.31326169 + 0.12692801) / 2),  # no pair of the tied ones
        ([2, 1, 0], [0, 1, INF], 0, 0.31326169),
    ],
)
def test_bradley_terry_by_hand(rewards, ranks, margin, wanted):
    assert one_group(bradley_terry, rewards, ranks, margin) == pytest.approx(wanted, rel=1e-6)


def test_bradley_terry_gradient_by_hand():
    slope = sigmoid(-1.5) / 1
    np.testing.assert_allclose(gradient(bradley_terry, [1, -0.5], [0, 1]), [-slope, slope], rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_label_smoothing(alpha):
    wanted = (1 - alpha) * 0.20141328 + alpha * 1.70141328
    assert one_group(bradley_terry, [1, -0.5], [0, 1], label_smoothing=alpha) == pytest.approx(wanted, rel=1e-6)


def test_label_smoothing_has_its_minimum_where_the_odds_are_those_of_the_labels():
    best = math.log(0.9 / 0.1)
    np.testing.assert_allclose(gradient(bradley_terry, [best, 0], [0, 1], label_smoothing=0.1), 0, atol=1e-6)


def focal_by_definition(d: float, gamma: float) -> float:
    return (1 - 2 * max(sigmoid(d) - 0.5, 0)) ** gamma * -math.log(sigmoid(d))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("d", [-2.0, -0.3, 0.4, 1.5])
def test_focal_and_its_gradient(d, gamma):
    assert one_group(focal, [d, 0], [0, 1], gamma=gamma) == pytest.approx(focal_by_definition(d, gamma), rel=1e-5)
    step = 1e-5
    slope = (focal_by_definition(d + step, gamma) - focal_by_definition(d - step, gamma)) / (2 * step)
    np.testing.assert_allclose(gradient(focal, [d, 0], [0, 1], gamma=gamma), [slope, -slope], rtol=1e-4)


def test_focal_by_hand():
    # σ(ln 3) = ¾: weight (1 − 2·¼)² = ¼, loss −log ¾. γ is 2 unless told.
    assert one_group(focal, [math.log(3), 0], [0, 1]) == pytest.approx(0.25 * math.log(4 / 3), rel=1e-5)
    # A pair that is wrong weighs 1.
    assert one_group(focal, [-1.5, 0], [0, 1]) == pytest.approx(one_group(bradley_terry, [-1.5, 0], [0, 1]), rel=1e-6)


def test_focal_has_the_gradient_of_its_weight_too():
    d = math.log(3)
    frozen = 0.25 * -0.25  # weight · (σ − 1)
    of_weight = -2 * 0.5 * 2 * (0.75 * 0.25) * math.log(4 / 3)  # −2 (1 − 2·¼) · 2σ(1 − σ)/2 · 2 · −log σ
    assert gradient(focal, [d, 0], [0, 1])[0] == pytest.approx(frozen + of_weight, rel=1e-4)


def test_listwise_by_hand():
    e = math.e
    # Ranked three: first against both others, second against the third, averaged over these two choices.
    first, second = -math.log(e**2 / (e**2 + e + 1)), -math.log(e / (e + 1))
    assert one_group(listwise, [2, 1, 0], [0, 1, 2]) == pytest.approx((first + second) / 2, rel=1e-6)
    # The worst ranked first by the model.
    first, second = -math.log(1 / (1 + e + e**2)), -math.log(e / (e + e**2))
    assert one_group(listwise, [0, 1, 2], [0, 1, 2]) == pytest.approx((first + second) / 2, rel=1e-6)


def test_listwise_of_one_positive_is_softmax_cross_entropy():
    rewards = floats([0.3, -1.2, 2.0, 0.7])
    wanted = -jax.nn.log_softmax(rewards)[1]
    assert one_group(listwise, rewards, [1, 0, 1, 1]) == pytest.approx(float(wanted), rel=1e-6)
    slope = jax.nn.softmax(rewards) - floats([0, 1, 0, 0])
    np.testing.assert_allclose(gradient(listwise, rewards, [1, 0, 1, 1]), slope, rtol=1e-5, atol=1e-7)


def test_listwise_zero_rewards_cost_ln_of_the_number_of_choices():
    assert one_group(listwise, [0] * 4, [0, 1, 1, 1]) == pytest.approx(math.log(4), rel=1e-6)
    assert one_group(listwise, [0] * 4, [0, 1, INF, 1]) == pytest.approx(math.log(3), rel=1e-6)


def test_listwise_of_two_tied_at_the_top():
    # Each of the two competes with the third only.
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    assert one_group(listwise, [1, 2, 0], [0, 0, 1]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("d", [-3.0, 0.0, 2.5])
def test_listwise_of_a_pair_is_bradley_terry(d, margin):
    pair = ([d, 0], [0, 1], margin)
    assert one_group(listwise, *pair) == pytest.approx(one_group(bradley_terry, *pair), rel=1e-6)
    np.testing.assert_allclose(gradient(listwise, *pair), gradient(bradley_terry, *pair), rtol=1e-5)


def test_k_way_is_the_first_choice_of_listwise():
    e = math.e
    first = -math.log(e**2 / (e**2 + e + 1))
    assert one_group(k_way, [2, 1, 0], [0, 1, 2]) == pytest.approx(first, rel=1e-6)  # as with ranks 0 1 1
    assert one_group(k_way, [2, 1, 0], [0, 1, 1]) == one_group(listwise, [2, 1, 0], [0, 1, 1])
    assert gradient(k_way, [5, 1, 3], [0, 1, 2])[1] > 0 > gradient(k_way, [5, 1, 3], [0, 1, 2])[0]
    assert one_group(k_way, [0, 0, 0], [0, 0, 1]) == pytest.approx(
        math.log(2)
    )  # two first ones, each against the third


# --- what holds of all ------------------------------------------------------------------------------------------------

groups = st.tuples(
    hnp.arrays(np.float32, (1, 2, 4), elements=st.integers(-40, 40).map(lambda x: x / 8)),
    hnp.arrays(np.float32, (1, 2, 4), elements=st.sampled_from([0, 1, 2, INF])),
    hnp.arrays(np.float32, (1, 2), elements=st.sampled_from([0, 0.5])),
)


@every_loss
@settings(deadline=None, max_examples=20)
@given(group=groups, shift=st.integers(-16, 16))
def test_a_constant_added_to_all_rewards_changes_nothing(loss, group, shift):
    rewards, ranks, margin = group
    values = loss(rewards, order(floats(ranks)), margin)
    np.testing.assert_allclose(loss(rewards + shift, order(floats(ranks)), margin), values, rtol=1e-5, atol=1e-6)


@every_loss
@settings(deadline=None, max_examples=20)
@given(group=groups, permutation=st.permutations(range(4)))
def test_the_order_of_the_leaves_does_not_matter(loss, group, permutation):
    rewards, ranks, margin = group

    def values(rewards, ranks):
        return loss(rewards, order(floats(ranks)), margin)

    mixed = rewards[..., permutation], ranks[..., permutation]
    np.testing.assert_allclose(values(*mixed), values(rewards, ranks), rtol=1e-5, atol=1e-6)
    slopes, mixed_slopes = (
        jax.grad(lambda r, k: jnp.sum(values(r, k)))(*arrays) for arrays in ((rewards, ranks), mixed)
    )
    np.testing.assert_allclose(mixed_slopes, slopes[..., np.array(permutation)], rtol=1e-5, atol=1e-6)


@every_loss
def test_groups_do_not_mix(loss):
    random = np.random.default_rng(0)
    rewards = random.standard_normal((2, 3, 4)).astype(np.float32)
    ranks = random.permuted(np.full((2, 3, 4), [0, 1, 1, INF], np.float32), axis=-1)
    margin = random.random((2, 3)).astype(np.float32)
    values = np.asarray(loss(rewards, order(floats(ranks)), margin))
    assert values.shape == (2, 3)
    for r, g in np.ndindex(2, 3):
        assert values[r, g] == pytest.approx(one_group(loss, rewards[r, g], ranks[r, g], margin[r, g]), rel=1e-5)


@every_loss
@pytest.mark.parametrize("gap", [100.0, 1e4, -1e4])
@pytest.mark.parametrize("ranks", [[0, 1, 1], [0, 1, 2], [0, 1, INF]])
def test_huge_gaps_stay_finite(loss, gap, ranks):
    value, slopes = one_group(loss, [gap, 0, -gap], ranks), gradient(loss, [gap, 0, -gap], ranks)
    assert math.isfinite(value) and np.isfinite(slopes).all()
    assert value == pytest.approx(0, abs=1e-6) if gap > 0 else value >= 1e4
    if gap < 0:
        assert slopes[0] < 0 < slopes.max()  # still a way back


@every_loss
@pytest.mark.parametrize("ranks", [[1, 1, 1], [INF, INF, INF], [0, INF, INF]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_group_without_pairs_costs_nothing_and_has_no_gradient(loss, ranks, scale):
    rewards = scale * floats([1, -2, 3])
    assert one_group(loss, rewards, ranks) == 0
    np.testing.assert_array_equal(gradient(loss, rewards, ranks), 0)


@every_loss
def test_bf16_rewards_are_lifted_to_fp32(loss):
    rewards = jnp.asarray([[[1.0, -0.5]]], jnp.bfloat16)
    values = loss(rewards, order(floats([[[0, 1]]])), jnp.zeros((1, 1)))
    assert values.dtype == jnp.float32
    assert float(values[0, 0]) == pytest.approx(one_group(loss, [1, -0.5], [0, 1]), rel=1e-6)


@every_loss
def test_an_absent_group_of_nan_cannot_reach_the_mean(loss):
    """The last group is absent: no pairs, not counted, and whatever stands there is not seen."""
    ranks, margin = order(floats([[[0, 1], [INF, INF]]])), jnp.zeros((1, 2))
    rewards = floats([[[1.0, -0.5], [math.nan, INF]]])

    def objective(rewards):
        return mean(total(loss(rewards, ranks, margin), jnp.any(ranks, axis=(-1, -2))))

    value, slopes = jax.value_and_grad(objective)(rewards)
    assert float(value) == pytest.approx(one_group(loss, [1, -0.5], [0, 1]), rel=1e-6)
    np.testing.assert_allclose(slopes[0, 0], gradient(loss, [1, -0.5], [0, 1]), rtol=1e-5)


# --- soft order -------------------------------------------------------------------------------------------------------


def old_bradley_terry(d, order, smoothing=0.0):
    values = -(1 - smoothing) * jax.nn.log_sigmoid(d)
    return values - smoothing * jax.nn.log_sigmoid(-d) if smoothing else values


def old_focal(d, order, gamma=2.0):
    return (1 - 2 * jax.nn.relu(jax.nn.sigmoid(d) - 0.5)) ** gamma * -jax.nn.log_sigmoid(d)


def old_pairs(loss):
    """The losses as they were before order could be soft."""

    def of(rewards, order, margin):
        d = rewards[..., :, None] - rewards[..., None, :] - margin[..., None, None]
        return jnp.sum(jnp.where(order, loss(d, order), 0.0), axis=(-1, -2)) / jnp.maximum(jnp.sum(order, (-1, -2)), 1)

    return of


def old_listwise(rewards, order, margin):
    competing = jnp.where(order, -(rewards[..., :, None] - rewards[..., None, :] - margin[..., None, None]), -jnp.inf)
    beaten = jnp.any(order, axis=-1)
    values = jax.nn.softplus(jax.nn.logsumexp(jnp.where(beaten[..., None], competing, 0.0), axis=-1))
    return jnp.sum(jnp.where(beaten, values, 0.0), axis=-1) / jnp.maximum(jnp.sum(beaten, axis=-1), 1)


OLD = {"bradley_terry": old_pairs(old_bradley_terry), "focal": old_pairs(old_focal), "listwise": old_listwise}


@pytest.mark.parametrize("name", OLD)
@settings(deadline=None, max_examples=30)
@given(group=groups)
def test_a_plain_order_is_the_case_of_probability_1_bit_for_bit(name, group):
    rewards, ranks, margin = map(jnp.asarray, group)
    order_RGNN = order(ranks)
    target = jnp.where(order_RGNN, 1.0, jnp.where(jnp.swapaxes(order_RGNN, -1, -2), 0.0, -1.0))
    np.testing.assert_array_equal(pairs(target), order_RGNN)
    soft = {"target_RGNN": target, "weight_RGNN": jnp.ones_like(target)}
    whole = margin[..., None, None] + jnp.zeros_like(target)
    wanted, wanted_slopes = jax.value_and_grad(lambda r: jnp.sum(OLD[name](r, order_RGNN, margin)))(rewards)
    for m, arguments in ((margin, {}), (margin, {"target_RGNN": target}), (whole, soft)):
        value, slopes = jax.value_and_grad(lambda r: jnp.sum(LOSSES[name](r, order_RGNN, m, **arguments)))(rewards)  # noqa: B023
        assert value == wanted
        np.testing.assert_array_equal(slopes, wanted_slopes)


def soft_group(loss, rewards, target, margin=0.0, **options) -> float:
    """The loss of a single group of which `target` says all."""
    target = floats([[target]])
    return float(loss(floats([[rewards]]), pairs(target), jnp.asarray([[margin]]), target_RGNN=target, **options)[0, 0])


def pair(p: float) -> list[list[float]]:
    """Targets of two branches."""
    return [[-1, p], [1 - p, -1]]


def test_pairs_count_once_with_the_likely_better_first():
    target = [[-1, 0.25, 0.5, -1], [0.75, -1, 0, -1], [0.5, 1, -1, -1], [-1, -1, -1, -1]]
    wanted = np.zeros((4, 4), bool)
    wanted[1, 0] = wanted[0, 2] = wanted[2, 1] = True
    np.testing.assert_array_equal(pairs(floats([[target]]))[0, 0], wanted)


@every_loss
@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
def test_soft_pairs_by_hand_and_their_minimum(loss, p):
    def cost(d: float) -> float:
        if loss is focal:
            return p * focal_by_definition(d, 2) + (1 - p) * focal_by_definition(-d, 2)
        return -p * math.log(sigmoid(d)) - (1 - p) * math.log(sigmoid(-d))

    for d in (-1.5, 0.0, 0.7):
        assert soft_group(loss, [d, 0], pair(p)) == pytest.approx(cost(d), rel=1e-5)
        assert soft_group(loss, [0, d], pair(1 - p)) == pytest.approx(cost(d), rel=1e-5)
    if loss is not focal:  # calibrated: the odds of the rewards are those of the votes
        best, target = math.log(p / (1 - p)), floats([[pair(p)]])
        slopes = jax.grad(lambda r: jnp.sum(loss(r, pairs(target), jnp.zeros((1, 1)), target_RGNN=target)))
        np.testing.assert_allclose(slopes(floats([[[best, 0]]])), 0, atol=1e-6)


def test_listwise_of_luce_targets_has_its_minimum_at_their_rewards():
    rewards = floats([[[1.0, -0.5, 0.25]]])
    target = jax.nn.sigmoid(rewards[..., :, None] - rewards[..., None, :])
    slopes = jax.grad(lambda r: jnp.sum(listwise(r, pairs(target), jnp.zeros((1, 1)), target_RGNN=target)))(rewards)
    np.testing.assert_allclose(slopes, 0, atol=1e-6)


def test_label_smoothing_is_a_target():
    for alpha in (0.1, 0.3):
        hard = one_group(bradley_terry, [1, -0.5], [0, 1], label_smoothing=alpha)
        assert soft_group(bradley_terry, [1, -0.5], pair(1 - alpha)) == pytest.approx(hard, rel=1e-6)
        assert soft_group(bradley_terry, [1, -0.5], pair(1.0), label_smoothing=alpha) == pytest.approx(hard, rel=1e-6)


@every_loss
@pytest.mark.parametrize("ranks", [[0, 1], [1, 0]])
def test_smoothing_mixes_a_pair_s_two_losses(loss, ranks):
    columns = {"ranks_RGN": floats([[ranks]]), "margin_RG": floats([[0.5]]), "weight_RG": floats([[1]])}
    found, rewards = smoothed(labels(columns), 0.2), floats([[[1, -0.5]]])
    value = float(loss(rewards, found.pairs_RGNN, found.margin, **found.soft)[0, 0])
    d = (1.5 if ranks == [0, 1] else -1.5) - 0.5
    hard = one_group(loss, [d, 0], [0, 1]), one_group(loss, [-d, 0], [0, 1])
    assert value == pytest.approx(0.8 * hard[0] + 0.2 * hard[1], rel=1e-5)
    assert smoothed(labels(columns), 0.0).soft == {}


@every_loss
def test_margins_and_weights_of_pairs(loss):
    """A pair that weighs nothing is not there; a pair's margin is one of its rewards' difference."""
    target = [[-1, 1, 0.8], [0, -1, -1], [0.2, -1, -1]]
    weight = floats([[[[0, 2, 0], [2, 0, 0], [0, 0, 0]]]])
    if loss not in (listwise, k_way):  # their choice is against both
        assert soft_group(loss, [1, 0.5, 9], target, weight_RGNN=weight) == pytest.approx(
            soft_group(loss, [1, 0.5], pair(1))
        )
    assert soft_group(loss, [1, 0.5, 9], target, weight_RGNN=0 * weight) == 0
    margin = floats([[[[0, 0.3], [-0.3, 0]]]])
    for p in (0.7, 0.3):
        found = loss(floats([[[1, 0.5]]]), pairs(floats([[pair(p)]])), margin, target_RGNN=floats([[pair(p)]]))
        assert float(found[0, 0]) == pytest.approx(soft_group(loss, [0.7, 0.5], pair(p)), rel=1e-6)


def test_labels_are_ranks_unless_a_batch_has_targets():
    columns = {"ranks_RGN": floats([[[0, 1], [0, 1]]]), "margin_RG": floats([[0, 1]]), "weight_RG": floats([[1, 2]])}
    plain = labels(columns)
    np.testing.assert_array_equal(plain.order_RGNN, order(columns["ranks_RGN"]))
    assert plain.soft == {} and plain.pairs_RGNN is plain.order_RGNN and plain.weight_RG is columns["weight_RG"]
    target, weight = floats([[pair(0.5), pair(0.25)]]), floats([[[[0, 3], [3, 0]], [[0, 0.5], [0.5, 0]]]])
    soft = labels(columns | {"target_RGNN": target, "weight_RGNN": weight, "margin_RGNN": 0 * weight})
    assert not soft.order_RGNN[0, 0].any() and soft.order_RGNN[0, 1].tolist() == [[False, False], [True, False]]
    assert soft.weight_RG.tolist() == [[3, 1]] and soft.margin.shape == (1, 2, 2, 2)


# --- penalties --------------------------------------------------------------------------------------------------------


def penalty_of(penalty, rewards, present=None, **options) -> tuple[float, np.ndarray]:
    present = jnp.asarray([True] * len(rewards) if present is None else present)[None, None]
    f = jax.value_and_grad(lambda r: jnp.sum(penalty(r, present, **options)))
    value, slopes = f(jnp.float32(rewards)[None, None])
    return float(value), np.asarray(slopes)[0, 0]


def test_log_barrier_by_hand():
    assert penalty_of(log_barrier, [0.0])[0] == pytest.approx(-2 * math.log(5), rel=1e-6)
    wanted = (-math.log(2) - math.log(8) - math.log(5) - math.log(5)) / 2
    assert penalty_of(log_barrier, [3.0, 0.0])[0] == pytest.approx(wanted, rel=1e-6)
    assert penalty_of(log_barrier, [-1.0], bound=2.0)[0] == pytest.approx(-math.log(3), rel=1e-6)
    assert penalty_of(log_barrier, [3.0])[1] == pytest.approx([1 / 2 - 1 / 8], rel=1e-5)


@pytest.mark.parametrize("reward", [5.0, -5.0, 100.0, -1e4])
def test_log_barrier_is_flat_beyond_its_bound(reward):
    value, slopes = penalty_of(log_barrier, [reward])
    assert value == pytest.approx(-math.log(0.001) - math.log(9.999), rel=1e-4)
    np.testing.assert_array_equal(slopes, 0)


def test_squared_by_hand():
    value, slopes = penalty_of(squared, [3.0, -1.0])
    assert value == pytest.approx(5)
    np.testing.assert_allclose(slopes, [3, -1])


def test_centering_of_a_pair_is_its_squared_sum():
    value, slopes = penalty_of(centering, [3.0, -1.0])
    assert value == pytest.approx(4)
    np.testing.assert_allclose(slopes, [4, 4])
    assert penalty_of(centering, [2.0, -2.0])[0] == 0


@every_penalty
def test_penalties_are_means_over_the_leaves_that_are_there(penalty):
    wanted, slopes = penalty_of(penalty, [1.0, -2.0])
    value, padded_slopes = penalty_of(penalty, [1.0, 4.0, -2.0], [True, False, True])
    assert value == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(padded_slopes, [slopes[0], 0, slopes[1]], rtol=1e-6)


@every_penalty
def test_an_empty_group_has_no_penalty(penalty):
    value, slopes = penalty_of(penalty, [1.0, 2.0], [False, False])
    assert value == 0 and not slopes.any()
