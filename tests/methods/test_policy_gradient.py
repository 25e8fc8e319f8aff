"""The method: columns from records, a forest that shares the prompt, keys that all matter, what is refused."""

import dataclasses
import json
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.record import RecordError, parse
from rmjax.data.tokenizer import Tokenizer
from rmjax.losses.direct import predecessors
from rmjax.losses.policy.parts import Parts
from rmjax.losses.policy.presets import PRESETS, preset
from rmjax.losses.policy.tokens import TokenStatistics
from rmjax.methods import policy_gradient as policy
from rmjax.methods.policy_gradient import METHOD, ROLES, columns, needed, policy_gradient, prepare, statistics
from rmjax.parallel.mesh import RULES, make_mesh

KEY = jax.random.key(0)
TOKENIZER = Tokenizer.from_bpe(["<e>", "<f>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], ["<e>", "<f>"])
V = TOKENIZER.vocab_size
TABLES = (0.6 * np.random.default_rng(0).standard_normal((2, V, 6))).astype(np.float32)


class Bigram:
    """A model in place of a transformer's: the hidden state is that of the token alone, times a parameter."""

    def apply(self, params, forest, columns_RT, rngs, method):
        assert method in ("projection_at", "values_at")
        before = jnp.take_along_axis(jnp.asarray(forest.tokens_RT), columns_RT, axis=1)
        if method == "values_at":
            return params["params"]["scale"] * TABLES[0][before][..., 0]
        return params["params"]["scale"] * TABLES[0][before], jnp.asarray(TABLES[1]), 0.0


PARAMS = {name: {"scale": jnp.float32(scale)} for name, scale in (("policy", 1.0), ("reference", 0.7), ("critic", 0.5))}


def rows():
    """Two prompts with three answers each; the second prompt's have one reward."""
    random = np.random.default_rng(1)

    def row(prompt, lengths, rewards):
        per_token = lambda: [(-random.random(n) - math.log(V)).tolist() for n in lengths]  # noqa: E731
        return {
            "prompt": prompt, "outputs": ["x"] * 3, "rewards": rewards, "truncated": [0, 1, 0], "advantages": [0.3, -1, 0.2],
            "token_ids": [random.integers(2, V, n).tolist() for n in lengths], "log_probs": per_token(),
            "old_log_probs": per_token(), "reference_log_probs": per_token(), "values": per_token(),
        }  # fmt: skip

    return [row("ab", (3, 2, 4), [1.0, 0.0, 0.5]), row("c", (2, 2, 1), [0.1, 0.1, 0.1])]


def forest_of(parts, given=None, candidates=3):
    config = base.get_config()
    config.update_from_flattened_dict(
        {"objective": "policy_gradient", "data.candidates": candidates, "data.kind": "samples"}
    )
    config.policy.update(dataclasses.asdict(parts))
    encode = METHOD.encode(
        base.settle(config), Encoder(TOKENIZER, Format(kind="plain", reward_token="<e>", end_token="<f>"), 64)
    )
    ready = [prepare(parse(row, f"f:{i}", blank=True), parts) for i, row in enumerate(given or rows())]
    found = [tree for i, c in enumerate(ready) if not isinstance(c, str) for tree in encode(c, i)]
    shape = ForestShape(2, 64, 6, candidates, columns(parts))
    return fill(shape, [found[0::2], found[1::2]])


def plain(model, params, forest, parts, rng=None):
    """`statistics` without its scan, which would be compiled anew in every test."""
    before = np.maximum(predecessors(forest.group_RT, forest.branch_RT, forest.shape[2]), 0)
    hidden, table, _ = model.apply({"params": params}, forest, before, rngs={}, method="projection_at")
    log_p = jax.nn.log_softmax(hidden @ table.T / parts.temperature)
    own = jnp.take_along_axis(log_p, jnp.asarray(forest.tokens_RT)[..., None], axis=-1)[..., 0]
    return TokenStatistics(own, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


def terms_of(parts, given=None, candidates=3):
    with mock.patch.object(policy, "statistics", plain):
        return policy.policy_gradient(Bigram(), parts)(PARAMS, forest_of(parts, given, candidates), KEY)


def mean(terms, name="loss"):
    return float(terms[name][0] / terms[name][1])


# --- log-probabilities --------------------------------------------------------------------------------------------------


def test_a_token_s_log_probability_is_that_given_the_token_before_it():
    """Not that of the token behind it, nor, for an answer's first token, given the answer before."""
    parts, given = Parts(old="current", temperature=0.7), rows()[0]
    forest = forest_of(parts, [given])
    found = np.asarray(statistics(Bigram(), PARAMS["policy"], forest, parts).log_probability_RT)
    prompt = TOKENIZER.encode(given["prompt"])
    for n, ids in enumerate(given["token_ids"]):
        at = np.flatnonzero(np.asarray(forest.branch_RT[0]) == n + 1)
        for t, (before, token) in enumerate(zip([prompt[-1], *ids], ids, strict=False)):
            logits = (TABLES[1] @ TABLES[0][before]) / 0.7
            wanted = logits[token] - np.logaddexp.reduce(logits.astype(np.float64))
            assert found[0, at[t]] == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def moved(params):
    return {**ROLES.spread(params, "/layers/"), "policy": jax.tree.map(lambda x: x * 1.1, params)}


def test_sharing_the_prompt_changes_neither_loss_nor_gradient(model, moved):
    """A transformer on one tree of three answers, and on three trees of one answer each."""
    random = np.random.default_rng(2)
    prefix, branches = (
        random.integers(1, 97, 5).astype(np.int32),
        [random.integers(1, 97, n).astype(np.int32) for n in (3, 1, 4)],
    )
    parts = Parts(kl_weight=0.1, kl="k3", temperature=0.7, vocabulary_chunk=40, entropy_weight=0.1)

    def tree(members):
        over_tokens = [np.concatenate([np.zeros(5), -np.arange(1, len(branches[n]) + 1) / 3]) for n in members]
        found = {"trained_RT": [np.concatenate([np.zeros(5), np.ones(len(branches[n]))]) for n in members],
                 "behavior_RT": over_tokens, "advantage_RGN": [(1.0, -0.5, 0.2)[n] for n in members],
                 "reward_RGN": [0.0] * len(members)}  # fmt: skip
        return Tree(prefix, tuple(branches[n] for n in members), np.full(len(members), math.inf), columns=found)

    objective = policy_gradient(model, parts)

    @jax.jit
    def loss(params, forest):
        total, count = objective(params, forest, KEY)["loss"]
        return total / count

    shape = ForestShape(2, 40, 3, 3, columns(parts))
    shared = fill(shape, [[tree([0, 1, 2])], []])
    alone = fill(shape, [[tree([0]), tree([1])], [tree([2])]])
    (a, of_shared), (b, of_alone) = (jax.value_and_grad(loss)(moved, forest) for forest in (shared, alone))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    for x, y in zip(jax.tree.leaves(of_shared["policy"]), jax.tree.leaves(of_alone["policy"]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, float(np.max(np.abs(y)))))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_shared["reference"]))
    assert np.any(of_shared["policy"]["backbone"]["embedding"]["embedding"])


def test_a_critic_s_value_at_a_token_is_the_head_s_at_the_token_before(model, params):
    """A branch's first token has the prompt before it, not the branch beside it; the head at read-outs is the reward's."""
    prefix, branches = np.array([3, 4], np.int32), (np.array([5, 6], np.int32), np.array([7], np.int32))
    forest = fill(ForestShape(1, 8, 1, 2), [[Tree(prefix, branches, np.full(2, math.inf))]])
    at = jnp.asarray([[0, 1, 2, 3, 4, 0, 0, 0]])
    everywhere = model.apply({"params": params}, forest, at, method="values_at")[0]
    rewards = model.apply({"params": params}, forest)[0, 0]
    np.testing.assert_allclose(everywhere[jnp.asarray([3, 4])], rewards, rtol=1e-5)
    values = policy.critic_values(model, params, forest)[0]
    np.testing.assert_allclose(values[2:5], everywhere[jnp.asarray([1, 2, 1])], rtol=1e-5)


# --- from records to a loss ---------------------------------------------------------------------------------------------

GAE = {"advantage": "gae"}
CRITIC = {**GAE, "values": "critic"}
REWARD_KL = {"kl_weight": 0.2, "reference": "recorded"}
CHANGES = {
    "advantage": [({}, {"advantage": "gae"}), ({}, {"advantage": "given"})],
    "baseline": [({}, {"baseline": "none"}), ({"scale": "none"}, {"baseline": "leave_one_out"})],
    "scale": [({}, {"scale": "none"})],
    "ddof": [({}, {"ddof": 0})],
    "eps": [({}, {"eps": 1.0})],
    "gamma": [(GAE, {"gamma": 0.5})],
    "lam": [(GAE, {"lam": 0.5})],
    "values": [(GAE, {"values": "critic"})],
    "value_weight": [(CRITIC, {"value_weight": 2.0})],
    "value_clip": [(CRITIC, {"value_clip": 0.0})],
    "kl_place": [(REWARD_KL, {"kl_place": "reward"}), (REWARD_KL | GAE, {"kl_place": "reward"})],
    "reference": [({"kl_weight": 0.2}, {"reference": "recorded"})],
    "truncated": [({}, {"truncated": "mask"}), ({}, {"truncated": "penalize"})],
    "truncation_penalty": [({"truncated": "penalize"}, {"truncation_penalty": 0.1})],
    "equal_groups": [({"aggregation": "sequence_mean"}, {"equal_groups": "drop"})],
    "temperature": [({}, {"temperature": 0.5})],
    "old": [({}, {"old": "trainer"}), ({}, {"old": "current"})],
}


@pytest.mark.parametrize(
    ("before", "change"),
    [pytest.param(*pair, id=f"{key}{i}") for key, pairs in CHANGES.items() for i, pair in enumerate(pairs)],
)
def test_every_key_about_the_data_changes_the_loss(before, change):
    parts = Parts(**before, clip="none")
    assert abs(mean(terms_of(parts)) - mean(terms_of(dataclasses.replace(parts, **change)))) > 1e-4


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_its_columns_and_is_the_same_however_groups_are_spread(name):
    parts = preset(name)
    terms = terms_of(parts)
    assert np.isfinite(mean(terms)) and terms["loss"][1] > 0
    for candidates in (1, 2):
        spread = terms_of(parts, candidates=candidates)
        assert mean(spread) == pytest.approx(mean(terms), rel=1e-5) and mean(spread, "answer_tokens") == mean(
            terms, "answer_tokens"
        )


def test_equal_rewards_teach_nothing_and_nan_never_comes_through():
    for parts in (Parts(), Parts(eps=0.0), Parts(baseline="leave_one_out", scale="none")):
        ready = prepare(parse(rows()[1], "f:1"), parts)
        assert ready.columns["advantages"] == (0.0, 0.0, 0.0)
    assert prepare(parse(rows()[1], "f:1"), Parts(equal_groups="drop")) == "all samples of one reward"
    with pytest.raises(RecordError, match="not finite"):
        parse(rows()[0] | {"rewards": [math.nan, 0, 0]}, "f:1")
    with pytest.raises(RecordError, match="not a number"):
        parse(rows()[0] | {"rewards": [None, 0, 0]}, "f:1")
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="f:1: an advantage is not finite"),
    ):
        far = [[800.0] * 3, [-1.0] * 2, [-1.0] * 4]
        c = parse(rows()[0], "f:1")
        c = dataclasses.replace(c, columns={**c.columns, "reference_log_probs": far})
        prepare(c, Parts(kl="k3", kl_place="reward", reference="recorded", kl_weight=1.0))


def test_what_a_mask_leaves_out_is_in_no_sum_and_no_count():
    given = rows()[:1]
    given[0]["loss_mask"] = [[1, 0, 1], [0, 0], [1, 1, 1, 1]]
    terms = terms_of(Parts(aggregation="sequence_mean"), given)
    assert terms["answer_tokens"][0] == 6 and terms["loss"][1] == 2
    assert terms_of(Parts(truncated="mask"), rows()[:1])["loss"][1] == 7


def test_a_mask_counts_in_the_reward_s_divergence_too():
    parts = Parts(kl="k1", kl_place="reward", reference="recorded", kl_weight=1.0)
    given = rows()[0] | {"loss_mask": [[1, 0, 1], [1, 1], [1, 1, 1, 1]]}

    def advantages(far):
        numbers = [list(each) for each in given["log_probs"]]
        numbers[0][1] = far
        return prepare(parse(given | {"reference_log_probs": numbers}, "f:1"), parts).columns["advantages"]

    assert advantages(-1.0) == advantages(-100.0)


def test_an_answer_without_a_prompt_does_not_learn_its_first_token():
    """Nothing stands before it. (Files always have a prompt; a generator may not.)"""
    parts = Parts(old="current")
    tree = Tree(np.zeros(0, np.int32), (np.array([5, 6, 7], np.int32),), np.full(1, math.inf),
                columns={"trained_RT": [np.ones(3)], "advantage_RGN": [1.0], "reward_RGN": [1.0]})  # fmt: skip
    forest = fill(ForestShape(1, 8, 1, 1, columns(parts)), [[tree]])
    assert policy_gradient(Bigram(), parts)(PARAMS, forest, KEY)["loss"][1] == 2


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (Parts(old="current"), "rewards"),
        (Parts(), "log_probs"),
        (Parts(old="trainer"), "old_log_probs"),
        (Parts(advantage="gae"), "values"),
        (Parts(advantage="given"), "advantages"),
        (Parts(truncated="mask"), "truncated"),
        (Parts(kl_weight=1.0, reference="recorded"), "reference_log_probs"),
        (preset("rloo"), "reference_log_probs"),
        (Parts(old="trainer", correction="token"), "log_probs"),
    ],
)
def test_a_field_that_a_record_lacks_is_named_with_the_key_that_wants_it(parts, field):
    assert field in needed(parts)
    lacking = {name: value for name, value in rows()[0].items() if name != field}
    with pytest.raises(RecordError, match=rf"f:1: `{field}`.*config.policy.{needed(parts)[field]}|f:1.*{field}"):
        prepare(parse(lacking, "f:1"), parts)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format.kind", "polar", "config.format.kind is 'polar', which a policy does not write in"),
        ("policy.ratio", "none", "config.policy.clip is 'both', but policy.ratio=none"),
        ("data.kind", "comparisons", "objective=policy_gradient learns from samples"),
        ("policy.old", "current", None),
    ],
)
def test_what_a_config_may_not_say(key, value, message):
    config = base.get_config()
    config.update_from_flattened_dict({**METHOD.example, key: value})
    chosen = base.chosen(config)
    if message is None:
        chosen.check(make_mesh({}), RULES)
        return
    with pytest.raises(ValueError, match=message):
        chosen.check(make_mesh({}), RULES)


def test_a_temperature_of_0_is_refused():
    config = base.get_config()
    config.policy.temperature = 0.0
    with pytest.raises(ValueError, match="config.policy.temperature is 0.0; it must be above 0"):
        base.settle(config)


def test_a_file_of_samples(tmp_path):
    """Records that cannot be used, and prompts without a difference, are left out where that is asked for, and counted."""
    path = tmp_path / "samples.jsonl"
    lines = [*rows(), {**rows()[0], "rewards": [1.0]}, {"prompt": "p", "outputs": ["a"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    config = base.get_config()
    config.update_from_flattened_dict({**METHOD.example, "policy.equal_groups": "drop", "data.path": str(path)})
    config.data.on_error = "skip"
    found = base.chosen(config).records()
    assert len(found) == 1 and sum(found.skipped.values()) == 3 and found.skipped["all samples of one reward"] == 1
    config.data.on_error = "raise"
    with pytest.raises(RecordError, match="rewards"):
        base.chosen(config).records()
    path.write_text(json.dumps(rows()[1]) + "\n")
    with pytest.raises(ValueError, match="nothing is left to learn from \\(1 × all samples of one reward\\)"):
        base.chosen(config).records()
