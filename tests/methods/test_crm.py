"""CRM: each model learns from what the other one selects, as reward models and as policies."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import config as base
from rmjax.data.readers import open_records
from rmjax.losses.reduction import mean
from rmjax.methods import crm, dpo
from rmjax.methods.crm import METHOD, collaborative, member_rewards, scored
from rmjax.methods.preference import preference
from rmjax.models.members import Ensemble
from rmjax.models.parameters import flat
from rmjax.models.reward import RewardTransformer
from rmjax.reward_model import RewardModel
from rmjax.train.state import initial_params
from rmjax.trainer import Trainer
from tests.experiments.running import ranked_rows
from tests.experiments.starting import save_start

KEY = jax.random.key(0)
TRAINED = "/layers/|head"


@pytest.fixture(scope="module")
def pair(tiny_config):
    """(the two models with a frozen layer in common, their parameters)."""
    made = Ensemble(RewardTransformer(dataclasses.replace(tiny_config, frozen_layers=1)), 2, TRAINED, 1.0)
    return made, nn.meta.unbox(jax.jit(lambda: initial_params(made, 0))())


def batch(forest, discard, flips=None):
    made = forest([2, 2], branches=2)
    shape = made.record_RG.shape
    given = np.full(shape, -1, np.float32) if flips is None else flips
    columns = {"discard_RG": np.full(shape, discard, np.float32), "flipped_RG": given}
    return dataclasses.replace(made, columns={**made.columns, **columns})


def alone(pair, k):
    """Parameters of one of the two."""
    made, params = pair
    return jax.tree.map(
        lambda x, axis: x if axis is None else x[k], params, made.axes(params), is_leaf=lambda x: x is None
    )


def differentiated(objective):
    """(parameters, forest) → ((loss, terms), gradient)."""

    def loss(params, given):
        terms = objective(params, given, KEY)
        return terms["loss"][0], terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def compiled(made, review):
    objective = collaborative(preference, made, review)
    return jax.jit(
        lambda p, f: jax.value_and_grad(lambda q: (lambda t: (t["loss"][0], t))(objective(q, f, KEY)), has_aux=True)(p)
    )


def test_without_noise_each_learns_from_all_as_if_alone(pair, forest):
    made, params = pair
    given = batch(forest, 0.0)
    (loss, terms), gradient = compiled(made, "peer")(params, given)
    one = preference(made.bare)
    value = jax.jit(jax.value_and_grad(lambda p: mean(one(p, given, KEY)["loss"])))
    found = [value(alone(pair, k)) for k in range(2)]
    assert float(loss) == pytest.approx(np.mean([float(v) for v, _ in found]), rel=1e-5)
    assert float(mean(terms["jaccard"])) == 1 and float(mean(terms["discarded"])) == 0
    for k in range(2):
        np.testing.assert_allclose(gradient["head"]["kernel"][k], found[k][1]["head"]["kernel"] / 2, atol=1e-6)


def test_each_learns_from_the_other_one_s_selection(pair, forest):
    made, params = pair
    given = batch(forest, 0.5)
    rewards = jax.jit(member_rewards(made, lambda p, f: made.bare.apply({"params": p}, f)))(params, given)
    margins = np.asarray(rewards[..., 0, :] - rewards[..., 1, :])  # R G K; ranks 0 1
    present = np.asarray(given.readout_RGN)[..., 0] >= 0
    easy = [present & (margins[..., k] >= np.sort(margins[present][:, k])[2]) for k in range(2)]
    assert (easy[0] != easy[1]).any()  # else the test could not tell the two apart
    gradients = {review: compiled(made, review)(params, given)[1]["head"]["kernel"] for review in ("peer", "self")}
    one = preference(made.bare)

    @jax.jit
    def by(own, kept):
        return jax.grad(lambda p: mean(one(p, given.replace(weight_RG=kept.astype(jnp.float32)), KEY)["loss"]))(own)

    for k in range(2):
        for review, chosen in (("self", easy[k]), ("peer", easy[1 - k])):
            wanted = by(alone(pair, k), chosen)["head"]["kernel"] / 2
            np.testing.assert_allclose(gradients[review][k], wanted, atol=1e-6, err_msg=f"{review} {k}")


@pytest.mark.slow
def test_policies_share_the_reference_and_start_with_its_rewards(tiny_config, forest):
    made = Ensemble(RewardTransformer(tiny_config), 2, "/layers/", 1.0)
    own = nn.meta.unbox(jax.jit(lambda: initial_params(made, 0))())
    params = dpo.ROLES.spread(own, "/layers/")
    given = batch(forest, 0.5, np.zeros((2, 4), np.float32))
    rewards = member_rewards(made, dpo.implicit_rewards(made.bare, 0.1), dpo.ROLES)(params, given)
    assert np.abs(rewards[..., 0]).max() < 1e-5 < np.abs(rewards[..., 1]).max()  # the first is the reference
    objective = collaborative(lambda model: dpo.dpo(model, dpo.Section()), made, "peer", dpo.ROLES)
    terms, gradient = differentiated(objective)(params, given)
    assert np.isfinite(terms[0]) and float(mean(terms[1]["discarded"])) == 0.5
    moving = flat(gradient["policy"]["backbone"]["layers"])
    assert all(np.abs(leaf[k]).max() > 0 for leaf in moving.values() for k in range(2))
    assert not any(np.any(leaf) for leaf in flat(gradient["reference"]).values())


@pytest.mark.slow
def test_two_policies_from_a_config_to_scores(tmp_path):
    save_start(tmp_path / "start")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows()))
    config = base.get_config()
    config.update_from_flattened_dict({
        "model.init": str(tmp_path / "start"), "objective": "dpo", "format.kind": "plain", "data.kind": "comparisons",
        "data.path": str(tmp_path / "pairs.jsonl"), "data.flip": 0.34, "data.rows": 4, "data.row_tokens": 128,
        "crm.review": "peer", "crm.apart": 0.05, "crm.window": 2, "crm.estimate": True, "run.steps": 3, "run.save_every": 3,
        "run.log_every": 1, "optimizer.learning_rate": 1e-2,
    })  # fmt: skip
    Trainer(config, tmp_path / "run").run()
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/jaccard", "train/discard", "train/flipped"} <= set(logged[-1])
    assert 0 < max(row["train/flipped"] for row in logged) <= 1
    model, found = RewardModel.load(tmp_path / "run"), list(open_records(tmp_path / "pairs.jsonl"))
    scores = model.score_groups(found)
    assert len({round(a - b, 6) for a, b in scores}) > 1
    apart = model.measures["disagreement"].score(found)
    assert max(map(max, apart)) > 0


def test_scores_of_two():
    rewards = np.array([[2.0, 5.0], [0.0, 1.0]])
    assert scored(rewards, "mean").tolist() == [3.5, 0.5]
    assert scored(rewards, "first").tolist() == [2, 0] and scored(rewards, "second").tolist() == [5, 1]
    assert scored(rewards, "minimum").tolist() == [1, -2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "language_model"}, "objective=language_model ranks no answers; use preference or dpo"),
        ({"objective": "dpo"}, "config.crm.apart is 0, and two policies that start equal stay equal"),
        ({"ensemble.members": 2}, "goes with ensemble.members=1 and gradient.name=plain only"),
        ({"crm.estimate": True}, "config.crm.estimate needs the margins of a window; set config.crm.window to 8"),
        ({"crm.noise": 0.6}, "config.crm.noise is 0.6; it must be from 0 to 0.5"),
        ({"loss.name": "davidson"}, "config.loss.name is 'davidson', and crm.review compares ordered pairs only"),
        ({"loss.name": "regression"}, "config.loss.name is 'regression', and crm.review compares ordered pairs only"),
        ({"crm.review": "mine"}, "config.crm.review is 'mine'; choose '', peer, self, random or none"),
    ],
)
def test_configs_that_cannot_run(changes, message):
    config = base.get_config()
    config.update_from_flattened_dict({"crm.review": "peer"} | changes)
    with pytest.raises(ValueError, match=message):
        METHOD.check(base.settle(config), None, None)


def test_an_objective_that_shows_no_rewards_is_refused(pair):
    with pytest.raises(ValueError, match="needs rewards to review by; set adapter.beta to 0"):
        collaborative(lambda model: lambda *_: {}, pair[0], "peer")


def test_a_loaded_head_is_repeated_and_policies_start_apart():
    config = base.get_config()
    config.update_from_flattened_dict({"crm.review": "peer", "crm.apart": 0.1, "trainable": "/layers/|head"})
    params = {"backbone": {"layers": {"x": np.arange(4.0)}, "norm": np.ones(2)}, "head": {"kernel": np.zeros((4, 1))}}
    loaded = crm.METHOD.loaded(base.settle(config), params)
    first, second = loaded["backbone"]["layers"]["x"]
    assert "head" not in loaded and loaded["backbone"]["norm"].shape == (2,)
    assert first.tolist() == [0, 1, 2, 3] and 0 < np.abs(second - first).max() < 0.5
