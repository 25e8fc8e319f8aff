"""Sampling: what a sequence depends on, what it is distributed as, and when it ends."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from rmjax.models.rope import Rope
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.policy.sampling import Decoding, draw, generate, left_pad, rules

M = 6
PROMPTS = [[5, 17, 60], [8], [90, 3, 3, 41, 77, 12, 9], [33, 5]]
PREFIX = [11, 2, 70, 64, 5]
GREEDY = Decoding(temperature=0.0)


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(tiny_config, tied_embeddings=False)


@pytest.fixture(scope="module")
def params(config, random_params):
    return jax.tree.map(jnp.asarray, random_params(config, 3))


def keys(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def sample(
    params, config, prompts, keys_R, decodings, prefix=(), samples=1, stop=(), multiple=16, new=M
) -> list[list[int]]:
    rule, candidates = rules(decodings, config.vocab_size)
    ids_RM = generate(
        params, left_pad([list(prefix)], multiple), left_pad(prompts, multiple), keys_R, rule, config=config,
        candidates=candidates, samples=samples, max_new_tokens=new, stop=tuple(stop),
    )  # fmt: skip
    return np.asarray(ids_RM).tolist()


@pytest.fixture(scope="module")
def logits(config, params):
    return full_pass(config, params)


def full_pass(config, params):
    """ids -> next-token logits_V by a full pass without cache or padding to the left."""

    @jax.jit
    def forward(ids_1T, length):
        T = ids_1T.shape[1]
        model = Transformer(config).bind({"params": params})
        hidden_1TD = model(ids_1T, jnp.arange(T)[None], causal_mask(jnp.arange(T)[None] < length))
        return model.logits(hidden_1TD)[0, length - 1]

    return lambda ids: np.asarray(forward(jnp.array([ids + [0] * (24 - len(ids))]), len(ids)))


# --- what a sequence depends on --------------------------------------------------------------------------------------
# The logits have a standard deviation of about 2, so two candidates' noisy scores lie within fp32 error of each other
# once in about 1e5 tokens; seeds are fixed, and a dozen tokens are compared.


@pytest.fixture(scope="module")
def free(params, config):
    """Four sampled rows that nothing stops."""
    return sample(params, config, PROMPTS, keys(0, 1, 2, 3), [Decoding()] * 4)


def test_greedy_tokens_are_the_arg_max_of_a_full_pass(params, config, logits):
    greedy_is_the_arg_max(params, config, logits)


def test_greedy_tokens_under_a_window_are_the_arg_max_of_a_full_pass(params, config):
    """Shorter than the prefix; the second layer sees all."""
    config = dataclasses.replace(config, window=4, windowed=(True, False), rotary=(True, False))
    greedy_is_the_arg_max(params, config, full_pass(config, params))


def test_a_text_longer_than_rotary_positions_allow_is_refused(params, config):
    config = dataclasses.replace(config, rope=Rope(kind="dynamic", factor=2.0), max_positions=32)
    with pytest.raises(ValueError, match="prefix, prompt and new tokens together is 38, but .* lower it to 32"):
        sample(params, config, PROMPTS, keys(0, 1, 2, 3), [GREEDY] * 4)


def greedy_is_the_arg_max(params, config, logits):
    rows = sample(params, config, PROMPTS, keys(0, 1, 2, 3), [GREEDY] * 4, prefix=PREFIX)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = PREFIX + prompt
        for token in row:
            top = np.sort(logits(ids))[-2:]
            assert top[1] - top[0] > 1e-3, "a tie: choose another seed for the parameters"
            assert token == logits(ids).argmax()
            ids = ids + [token]
    assert len({tuple(row) for row in rows}) == 4  # they do depend on the prompt


def test_rows_do_not_depend_on_their_batch(params, config):
    decodings = [Decoding(1.0, 0.9), Decoding(1.5), Decoding(0.7), Decoding(1.2, 0.8)]
    together = sample(params, config, PROMPTS, keys(0, 1, 2, 3), decodings)
    for i in range(4):
        assert sample(params, config, [PROMPTS[i]], keys(i), [decodings[i]]) == [together[i]]
    reverse = sample(params, config, PROMPTS[::-1], keys(3, 2, 1, 0), decodings[::-1])
    assert reverse == together[::-1]


def test_the_amount_of_left_padding_does_not_matter(params, config):
    given_keys, decodings = keys(0, 1, 2, 3), [Decoding(1.2)] * 4
    narrow = sample(params, config, PROMPTS, given_keys, decodings, prefix=PREFIX, multiple=1)
    assert sample(params, config, PROMPTS, given_keys, decodings, prefix=PREFIX) == narrow


def test_fanning_out_gives_the_samples_that_repeated_prompts_give(params, config):
    given_keys, (first, second) = keys(0, 1, 2, 3), PROMPTS[:2]
    fanned = sample(params, config, [first, second], given_keys, [Decoding()] * 4, samples=2)
    assert fanned == sample(params, config, [first, first, second, second], given_keys, [Decoding()] * 4)
    assert fanned[0] != fanned[1]  # two keys, two answers


def test_a_shared_prefix_is_the_same_as_a_longer_prompt(params, config):
    given_keys, decodings = keys(0, 1, 2, 3), [Decoding(1.0, 0.9)] * 4
    shared = sample(params, config, PROMPTS, given_keys, decodings, prefix=PREFIX)
    assert shared == sample(params, config, [PREFIX + prompt for prompt in PROMPTS], given_keys, decodings)
    assert shared != sample(params, config, PROMPTS, given_keys, decodings)


def test_more_new_tokens_continue_the_same_text(params, config, free):
    short = sample(params, config, PROMPTS, keys(0, 1, 2, 3), [Decoding()] * 4, new=3)
    assert [row[:3] for row in free] == short
    assert [len(row) for row in free] == [M] * 4


# --- what a token is distributed as ----------------------------------------------------------------------------------


def exact(logits_V: np.ndarray, rule: Decoding) -> np.ndarray:
    """The distribution that `draw` promises: the smallest nucleus, of the top-k, at the temperature."""
    order = np.argsort(-logits_V)[: rule.top_k or None]
    p = np.exp(logits_V[order].astype(np.float64) / rule.temperature)
    p /= p.sum()
    size = next(n for n in range(1, len(p) + 1) if rule.top_p == 1 and n == len(p) or p[:n].sum() >= rule.top_p)
    out = np.zeros(len(logits_V))
    out[order[:size]] = p[:size] / p[:size].sum()
    return out


DRAW = partial(jax.jit, static_argnums=3)(draw)
LOGITS = np.array([0.3, 2.0, -1.0, 1.4, 0.9, -0.2, 1.1, -2.5], np.float32)


@pytest.mark.parametrize(
    "rule",
    [Decoding(), Decoding(0.6), Decoding(2.0, 0.95), Decoding(1.0, 0.5), Decoding(1.0, 1.0, 3), Decoding(1.3, 0.8, 6)],
)
def test_draws_follow_the_exact_distribution(rule):
    n, V = 20_000, len(LOGITS)
    columns, candidates = rules([rule] * n, V)
    drawn_R = DRAW(jnp.tile(LOGITS, (n, 1)), jax.random.split(jax.random.key(5), n), columns, candidates)
    counts, want = np.bincount(drawn_R, minlength=V), exact(LOGITS, rule)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(want))
    kept = want > 0
    assert stats.chisquare(counts[kept], n * want[kept]).pvalue > 1e-3


def test_draws_that_sort_nothing_follow_the_exact_distribution():
    n, rule = 20_000, Decoding(0.8)
    drawn_R = DRAW(jnp.tile(LOGITS, (n, 1)), jax.random.split(jax.random.key(5), n), rules([rule] * n, 8)[0], 0)
    assert stats.chisquare(np.bincount(drawn_R, minlength=8), n * exact(LOGITS, rule)).pvalue > 1e-3


@settings(deadline=None, max_examples=60)
# All of them are in the nucleus, by less than rounding.
@example(logits_V=[0, 1, 2, 3, 5, 6, 7, 35], rule=Decoding(1.0, 0.9999999999999999, 0))
@given(
    logits_V=st.lists(st.integers(-40, 40), min_size=8, max_size=8, unique=True),
    rule=st.builds(Decoding, st.sampled_from([0.3, 1.0, 2.5]), st.floats(0.01, 1.0), st.integers(0, 8)),
)
def test_the_support_is_the_smallest_nucleus(logits_V, rule):
    """With the noise of many keys nothing outside the nucleus is drawn, and the best token always may be."""
    logits_V = np.array(logits_V, np.float32) / 10
    p = np.sort(exact(logits_V, dataclasses.replace(rule, top_p=1.0)))[::-1]
    if np.abs(np.cumsum(p) - rule.top_p).min() < 1e-5:
        return  # the nucleus ends within rounding of a token's edge
    want = exact(logits_V, rule)
    columns, _ = rules([rule] * 512, 8)
    drawn_R = DRAW(jnp.tile(logits_V, (512, 1)), jax.random.split(jax.random.key(0), 512), columns, 8)
    assert want[np.unique(drawn_R)].min() > 0
    assert set(np.flatnonzero(want > 0.05)) <= set(np.unique(drawn_R).tolist())


@pytest.mark.parametrize("rule", [GREEDY, Decoding(2.0, 1.0, 1), Decoding(2.0, 1e-6)])
def test_rules_that_leave_one_candidate_are_greedy(rule):
    columns, candidates = rules([rule] * 64, len(LOGITS))
    drawn_R = DRAW(jnp.tile(LOGITS, (64, 1)), jax.random.split(jax.random.key(0), 64), columns, candidates)
    assert set(np.asarray(drawn_R).tolist()) == {int(LOGITS.argmax())}


def test_each_row_has_its_own_rule():
    decodings = [GREEDY, Decoding(3.0), Decoding(3.0, 1.0, 2)] * 200
    columns, candidates = rules(decodings, len(LOGITS))
    drawn_R = np.asarray(
        DRAW(jnp.tile(LOGITS, (600, 1)), jax.random.split(jax.random.key(0), 600), columns, candidates)
    )
    assert [len(set(drawn_R[i::3].tolist())) for i in range(3)] == [1, 8, 2]


def test_a_draw_does_not_depend_on_the_other_rows_rules():
    """Nor on the number of candidates that these make the batch look at."""
    drawing_keys = jax.random.split(jax.random.key(0), 300)
    logits_RV = np.random.default_rng(0).standard_normal((300, 60)).astype(np.float32)
    decodings = [Decoding(1.0, 0.9, 5), Decoding(1.0, 0.9, 50), Decoding(2.0)] * 100
    together = np.asarray(DRAW(logits_RV, drawing_keys, *rules(decodings, 60)))
    for i in range(3):
        alone = DRAW(logits_RV[i::3], drawing_keys[i::3], *rules(decodings[i::3], 60))
        np.testing.assert_array_equal(alone, together[i::3])


def test_candidates_are_as_few_as_the_rules_allow():
    assert rules([Decoding(1.0, 0.9, 50), Decoding(1.0, 1.0, 4)], 97)[1] == 50
    assert rules([Decoding(1.0, 0.9, 50), Decoding(1.0)], 97)[1] == 97
    assert rules([GREEDY], 97)[1] == 1
    assert rules([Decoding(1.0, 1.0, 200)], 97)[1] == 97


def test_a_first_token_follows_the_models_distribution(params, config, logits):
    n, rule = 4000, Decoding(1.5, 0.9, 12)
    rows = sample(params, config, [PROMPTS[0]], jax.random.split(jax.random.key(1), n), [rule] * n, samples=n, new=1)
    want = exact(logits(PROMPTS[0]), rule)
    kept = want > 0
    counts = np.bincount(np.ravel(rows), minlength=config.vocab_size)
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], n * want[kept]).pvalue > 1e-3


@pytest.mark.parametrize("bad", [(-0.1, 1.0, 0), (1.0, 0.0, 0), (1.0, 1.1, 0), (1.0, 1.0, -1)])
def test_impossible_rules_are_refused(bad):
    with pytest.raises(ValueError, match="want temperature >= 0, 0 < top_p <= 1, top_k >= 0"):
        Decoding(*bad)


# --- when a sequence ends --------------------------------------------------------------------------------------------


def test_a_stop_token_ends_its_row_only(params, config, free):
    stop = (free[0][2], free[2][4])
    want = [row[: next((i for i, token in enumerate(row) if token in stop), M)] for row in free]
    assert len(set(map(len, want))) > 2  # in different places, and not in every row
    got = sample(params, config, PROMPTS, keys(0, 1, 2, 3), [Decoding()] * 4, stop=stop)
    assert got == [row + [-1] * (M - len(row)) for row in want]


# --- padding ---------------------------------------------------------------------------------------------------------


@given(prompts=st.lists(st.lists(st.integers(1, 99), max_size=20), min_size=1, max_size=5), multiple=st.integers(1, 9))
def test_left_padding(prompts, multiple):
    ids_BT, valid_BT = left_pad(prompts, multiple)
    T = ids_BT.shape[1]
    assert T % multiple == 0
    assert 0 <= T - max(1, *map(len, prompts), 1) < multiple
    assert [row[keep].tolist() for row, keep in zip(ids_BT, valid_BT, strict=True)] == prompts
    assert (np.sort(valid_BT, axis=1) == valid_BT).all()  # padding to the left
