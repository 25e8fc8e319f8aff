"""The policy pool: what a policy's entry may say, and what it does to the weights."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.chat import template_text, written
from rmjax.data.messages import Message
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.policy.policies import Policy, blend_noise, drop_layers, realize, sequence_key
from rmjax.policy.sampling import Decoding


@pytest.fixture(scope="module")
def deep(tiny_config):
    return dataclasses.replace(tiny_config, depth=4)


@pytest.fixture(scope="module")
def params(deep, random_params):
    return jax.tree.map(jnp.asarray, random_params(deep))


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_parsed():
    row = {
        "name": "pirate", "kind": "persona", "split": "seen", "system": "Arr.", "examples": [["hi", "ahoy"]],
        "decoding": [0.3, 0.9, 50], "dropped_layers": [3, -1], "noise": 0.1, "noise_seed": 4, "checkpoint": "tuned/7",
    }  # fmt: skip
    assert Policy.parse(row) == Policy(
        "pirate", "persona", "seen", "Arr.", (("hi", "ahoy"),), Decoding(0.3, 0.9, 50), (3, -1), 0.1, 4, "tuned/7"
    )
    assert isinstance(row["decoding"], list)  # the entry itself is left alone


def test_an_entry_may_be_short_and_then_decodes_as_in_the_paper():
    policy = Policy.parse({"name": "plain", "kind": "base", "split": "seen"})
    assert policy == Policy("plain", "base", "seen")
    assert policy.decoding == Decoding(1.0, 0.9, 50)
    assert hash(policy)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "human"}, ValueError, "policy x: kind is 'human'; choose one of base, decoding"),
        ({"split": "test"}, ValueError, "policy x: split is 'test'; choose seen or unseen"),
        ({"decoding": (1.0, 0.0, 5)}, ValueError, "0 < top_p <= 1"),
        ({"tempreature": 1.0}, TypeError, "tempreature"),
        ({"examples": [["only the user"]]}, ValueError, "unpack"),
    ],
)
def test_an_impossible_entry_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        Policy.parse({"name": "x", "kind": "base", "split": "seen"} | change)


def test_the_preamble_is_the_system_prompt_and_the_examples():
    policy = Policy("x", "persona", "seen", "Be brief.", (("Hi?", "Yes."), ("Bye?", "No.")))
    assert written(template_text("chatml"), [*policy.preamble(), Message("user", "Now?")], asked=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
        "<|im_start|>user\nNow?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert Policy("x", "base", "seen").preamble() == ()


# --- weights ---------------------------------------------------------------------------------------------------------


def test_dropping_layers_keeps_the_others_in_order(deep, params):
    config, cut = drop_layers(deep, params, (1, -1))
    assert config == dataclasses.replace(deep, depth=2)
    jax.tree.map(
        lambda got, was: np.testing.assert_array_equal(got, was[jnp.array([0, 2])]), cut["layers"], params["layers"]
    )
    assert {name: cut[name] is params[name] for name in cut} == {"embedding": True, "final_norm": True, "layers": False}


def test_a_dropped_layer_is_a_layer_that_adds_nothing(deep, params):
    silent = jax.tree.map(lambda x: x, params)
    for part, name in (("attention", "output"), ("mlp", "down")):
        kernel = silent["layers"][part][name]["kernel"]
        silent["layers"][part][name]["kernel"] = kernel.at[2].set(0.0)
    config, cut = drop_layers(deep, params, (2,))
    want, got = _hidden(deep, silent), _hidden(config, cut)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want - _hidden(deep, params)).max() > 0.1


def _hidden(config, params):
    tokens_RT = jnp.array([[5, 17, 60, 33]])
    inputs = tokens_RT, jnp.arange(4)[None], causal_mask(tokens_RT >= 0)
    return np.asarray(jax.jit(Transformer(config).apply)({"params": params}, *inputs))


@pytest.mark.parametrize("dropped", [(4,), (-5,), (1, -3), (0, 1, 2, 3)])
def test_layers_that_cannot_be_dropped_are_named(deep, params, dropped):
    with pytest.raises(ValueError, match=r"cannot drop layers \(.*\) of 4"):
        drop_layers(deep, params, dropped)


def test_no_noise_changes_nothing(params):
    jax.tree.map(np.testing.assert_array_equal, blend_noise(params, 0.0, 1), params)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_noise_is_blended_in_at_the_size_of_each_matrix(params, noise):
    """What is added to (1 - noise) W is noise * std(W) * N(0, 1): standard deviation, mean, no correlation with W."""
    mixed = blend_noise(params, noise, 7)
    for path, was in jax.tree_util.tree_leaves_with_path(params["layers"]):
        got = mixed["layers"]
        for key in path:
            got = got[key.key]
        if was.ndim < 3:
            np.testing.assert_array_equal(got, was)
            continue
        z = np.ravel((got - (1 - noise) * was) / (noise * np.std(was)))
        error = z.size**-0.5
        assert z.std() == pytest.approx(1.0, abs=5 * error)
        assert abs(z.mean()) < 5 * error
        assert abs(np.corrcoef(z, np.ravel(was))[0, 1]) < 5 * error
        assert np.abs(z).max() > 2.5  # normal, not uniform (1.7)


def test_noise_leaves_norms_and_embeddings(params):
    mixed = blend_noise(params, 0.5, 7)
    assert mixed["embedding"] is params["embedding"]
    assert mixed["final_norm"] is params["final_norm"]


def test_noise_differs_between_seeds_and_matrices_and_is_repeatable(params):
    def added(seed, name):
        kernel = params["layers"]["mlp"][name]["kernel"]
        return np.asarray(
            (blend_noise(params, 0.5, seed)["layers"]["mlp"][name]["kernel"] - 0.5 * kernel) / jnp.std(kernel)
        )

    np.testing.assert_array_equal(added(0, "up"), added(0, "up"))
    assert np.abs(added(0, "up") - added(1, "up")).mean() > 0.1
    assert np.abs(added(0, "up") - added(0, "gate")).mean() > 0.1


def test_realizing_does_all_of_it_and_nothing_else(deep, params):
    plain = Policy("x", "base", "seen")
    assert realize(plain, deep, params) == (deep, params)
    both = dataclasses.replace(plain, dropped_layers=(0,), noise=0.2, noise_seed=3)
    config, got = realize(both, deep, params)
    want_config, cut = drop_layers(deep, params, (0,))
    assert config == want_config
    jax.tree.map(np.testing.assert_array_equal, got, blend_noise(cut, 0.2, 3))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_every_sequence_has_its_own_key():
    names = list(itertools.product((0, 1), ("p1", "p2", "p11"), ("plain", "cold"), range(12)))
    data = {tuple(np.ravel(jax.random.key_data(sequence_key(*name)))) for name in names}
    assert len(data) == len(names)


def test_a_key_never_changes():
    """A resumed run, on another day and in another process, draws the same."""
    assert jax.random.key_data(sequence_key(0, "w000", "plain", 1)).tolist() == [0, 2419553176]
