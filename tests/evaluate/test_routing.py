"""Shares of mass over a data set, and their heat map."""

import jax
import numpy as np
import pytest

from rmjax.evaluate import plots
from rmjax.evaluate.routing import expert_shares, spread_of
from rmjax.models.loramoe import ROUTING
from rmjax.train.parameters import flat
from tests.models.adapting import PAIRS, experts, moved, small, started


@pytest.mark.parametrize("router", ["linear", "block"])
def test_shares_are_means_over_the_groups_of_a_type(router):
    model, params = started(small(adapter=experts(router=router)))
    params = moved(params, scale=0.5)
    shares = expert_shares(model, params, [PAIRS, PAIRS], types=3)
    assert set(shares) == ({"mlp/gate", "mlp/up", "mlp/down"} if router == "linear" else {"mlp"})
    _, written = jax.jit(lambda p: model.apply({"params": p}, PAIRS, mutable=[ROUTING]))(params)
    weights = {path: np.asarray(value[0]) for path, value in flat(written[ROUTING]).items()}
    for name, share_ZLN in shares.items():
        assert share_ZLN.shape == (3, 2, 3)
        weights_LRTN = weights[f"backbone/layers/{name}/weights"]
        for t in range(2):  # row t holds the one group of type t, six tokens long
            np.testing.assert_allclose(share_ZLN[t], weights_LRTN[:, t, :6].mean(axis=1), rtol=1e-4)
        assert np.isnan(share_ZLN[2]).all()


def test_without_a_mixture_there_is_nothing_to_measure():
    model, params = started(small())
    with pytest.raises(ValueError, match="the model has no LoRAMoE adapter"):
        expert_shares(model, params, [PAIRS], 2)


def test_the_map_has_a_panel_for_each_type_and_white_is_even():
    shares = np.full((2, 5, 4), 0.25)
    shares[1, 2] = 0.7, 0.1, 0.1, 0.1
    figure = plots.routing_map(shares, ("knowledge", "tasks"))
    one, other, bar = figure.axes
    assert (one.get_title(), other.get_title()) == ("knowledge", "tasks")
    (mesh,) = other.collections
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(5, 4)[2], [70, 10, 10, 10])
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((-20, 70))
    assert "share of the mass (%)" in bar.get_ylabel()
    nothing = shares.copy()
    nothing[0] = np.nan
    assert "svg" in plots.svg(plots.routing_map(nothing), "routing")


def test_spread_is_zero_where_even_and_largest_where_one_expert_has_all():
    even, alone = np.full((2, 3, 4), 0.25), np.zeros((2, 3, 4))
    alone[..., 1] = 1.0
    assert spread_of({"mlp/up": even}) == 0.0 and spread_of({"mlp/up": alone}) == pytest.approx(np.sqrt(3))
    tilted = np.array([[[0.6, 0.4]], [[0.4, 0.6]]])  # each type leans its own way, together they are even
    assert spread_of({"mlp": tilted}) == pytest.approx(0)
    tilted[1] = np.nan  # no group of that type
    assert spread_of({"mlp": tilted, "attention": tilted}) == pytest.approx(0.2)
