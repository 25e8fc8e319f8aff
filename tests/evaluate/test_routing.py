"""Shares of mass over a data set, and their heat map."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rmjax.data.packing import Tree
from rmjax.evaluate import plots
from rmjax.evaluate.routing import describe_routing, expert_shares, served_share, spread_of
from rmjax.models.loramoe import ROUTING
from rmjax.models.parameters import flat
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


def test_a_description_is_what_reports_read():
    model, params = started(small(adapter=experts(experts=4)))
    trees = [Tree(np.array([1, 2]), (np.array([3, n + 4]),), np.array([0.0]), type=0) for n in range(3)]
    found = json.loads(json.dumps(describe_routing(model.config, moved(params), trees, ("tasks", "knowledge"))))
    up_ZLN = np.asarray(found["shares"]["mlp/up"], np.float64)
    assert found["types"] == ["tasks", "knowledge"] and up_ZLN.shape == (2, 2, 4) and np.isnan(up_ZLN[1]).all()
    np.testing.assert_allclose(up_ZLN[0].sum(-1), 1, atol=1e-5)
    assert found["variation"] == pytest.approx(spread_of({k: np.asarray(v, float) for k, v in found["shares"].items()}))
    with pytest.raises(ValueError, match="a group is of type 2, and there are names for 2 types .tasks, knowledge."):
        describe_routing(model.config, params, [dataclasses.replace(trees[0], type=2)], ("tasks", "knowledge"))
    with pytest.raises(ValueError, match="there is no text to see the routing of"):
        describe_routing(model.config, params, [], ("tasks",))


def test_served_is_the_mass_on_a_type_s_own_experts():
    shares = {"mlp/up": [[[0.4, 0.3, 0.2, 0.1]], [[0.1, 0.1, 0.1, 0.7]]], "mlp": [[[1, 0, 0, 0]], [[0, 0, 1, 0]]]}
    routing = {"types": ["a", "b"], "shares": shares}
    assert served_share(routing, (0, 0, 1, 1)) == pytest.approx([0.85, 0.9])
    shares["mlp"][1] = shares["mlp/up"][1] = [[None] * 4]  # no group of that type
    assert served_share(routing, (0, 0, 1, 1)) == [pytest.approx(0.85), None]
    shares["mlp"][1], shares["mlp/up"][1] = [[0, 0, 1, 0]], [[0.1, 0.1, 0.1, 0.7]]
    assert served_share(routing, (1, 0, 0, 0)) == pytest.approx([0.3, 0.05])


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
