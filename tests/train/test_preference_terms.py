"""Losses freely combined: what `preference_terms` adds up, on order, ties and scores."""

import math

import jax.numpy as jnp
import pytest

from rmjax.data.record import RecordError, parse
from rmjax.data.votes import Order
from rmjax.losses import ranking
from rmjax.losses.reduction import mean
from rmjax.methods.preference import Loss
from rmjax.models.forest import Forest
from rmjax.train.objective import LOSSES, preference_terms

REWARDS = jnp.asarray([[[1.0, -0.5], [0.3, 0.3]]])


def batch(ranks=((0, 1), (0, 0)), **columns) -> Forest:
    """One row of two groups: an ordered one and a tied one."""
    own = {
        "ranks_RGN": jnp.asarray([ranks], jnp.float32),
        "margin_RG": jnp.zeros((1, 2)),
        "weight_RG": jnp.ones((1, 2)),
    }
    tokens = jnp.zeros((1, 4), jnp.int32)
    return Forest(tokens, tokens, tokens, tokens, jnp.ones((1, 2, 2), jnp.int32), jnp.zeros((1, 2)), own | columns)


def loss(name="bradley_terry", forest=None, **options) -> tuple[float, float]:
    value, count = preference_terms(name, **options)(REWARDS, forest or batch())["loss"]
    return float(value), float(count)


def test_only_losses_with_ties_learn_from_equal_ranks():
    assert loss() == (pytest.approx(0.20141328), 1)
    value, count = loss("davidson", tie=0.5)
    win = math.log(1 + math.exp(-1.5) + 0.5 * math.exp(-0.75))
    assert (value, count) == (pytest.approx(win + math.log(2.5 / 0.5)), 2)
    assert loss("rao_kupper", tie=0.5)[1] == 2


def test_regression_alone_and_beside_an_order():
    scores = batch(score_RGN=jnp.asarray([[[2.0, 0.0], [math.inf, math.inf]]]))
    assert loss("regression", scores) == (pytest.approx((1 + 0.25) / 2), 1)
    assert loss(forest=scores, regression_weight=0.1) == (pytest.approx(0.20141328 + 0.0625), 1)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("regression", "rao_kupper", "davidson")])
@pytest.mark.parametrize("penalty", ["", *ranking.PENALTIES])
def test_smoothing_and_penalty_go_with_every_ranking(name, penalty):
    found = preference_terms(name, label_smoothing=0.1, penalty=penalty, penalty_weight=0.5)(REWARDS, batch())
    plain = preference_terms(name, label_smoothing=0.1)(REWARDS, batch())
    added = 0.5 * float(mean(found["penalty"])) if penalty else 0.0
    assert float(mean(found["loss"])) == pytest.approx(float(mean(plain["loss"])) + added, rel=1e-6)
    assert loss(name, label_smoothing=0.1)[0] > loss(name)[0]


def test_which_records_a_loss_can_learn_from():
    tie = parse({"prompt": "p", "outputs": ["a", "b"], "ranks": [1, 1]}, "f:1")
    scored = parse({"prompt": "p", "outputs": ["a"], "scores": [3]}, "f:2")
    assert Order.of(Loss(name="rao_kupper")).apply(tie).ranks == (1, 1)
    with pytest.raises(RecordError, match="all candidates are tied"):
        Order.of(Loss()).apply(tie)
    alone = Order.of(Loss(name="regression"))
    assert alone.columns == ("score_RGN",) and alone.apply(scored).scores == (3,)
    with pytest.raises(RecordError, match="f:1: field `scores`: missing, and config.loss.name is regression"):
        alone.apply(tie)
    with pytest.raises(ValueError, match="config.loss.order is 'votes', but loss.name is regression"):
        Order.of(Loss(name="regression", order="votes"))
    assert Order.of(Loss(regression_weight=0.1, order="targets")).columns[-1] == "score_RGN"
