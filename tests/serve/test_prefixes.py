"""The prefix cache: scores as without it, whatever was asked before; what is kept, what goes, and that nothing is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.models.lora import AdapterConfig
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import RewardModel
from rmjax.serve.blocks import BLOCK
from rmjax.serve.engine import Engine
from rmjax.serve.items import key
from rmjax.serve.ladder import plan
from tests.serve.conftest import make_model, random_weights, running

SIZES = TransformerConfig(64, width=16, depth=3, heads=2, kv_heads=1, head_width=8, mlp_width=32)
KINDS = {
    "plain": {},
    "windows": {"window": 24, "windowed": (True, False, True)},
    "all windowed": {"window": 40},
    "without positions": {"rotary": (True, False, True)},
    "softcaps": {"attention_softcap": 2.0, "qk_norm": True},
    "LoRA above frozen layers": {
        "frozen_layers": 1,
        "adapter": AdapterConfig("lora", "(key|value|up)$", rank=2, alpha=2.0),
    },
}


def engine_of(changes, tokens=512):
    model = make_model("plain")
    config = dataclasses.replace(SIZES, vocab_size=model.config.vocab_size, **changes)
    weights = jax.tree.map(
        lambda x: np.float32(0.7) * x, random_weights(config, 1)
    )  # larger ones magnify rounding errors
    model = RewardModel(config, model.format, model.tokenizer, weights)
    return Engine.of(model, batch_tokens=256, prefix_cache_tokens=tokens)


@pytest.fixture(scope="module")
def engines_of():
    """An engine of each kind, compiled when first asked for."""
    made = {}

    def found(name):
        if name not in made:
            made[name] = engine_of(KINDS[name])
            made[name].compile()
        return made[name]

    return found


def scores(engine, sequences, kept):
    """Sequence → reward, in as many batches as are planned."""
    found, waiting = {}, list(sequences)
    while waiting:
        batch = plan(waiting, engine.shapes, engine.quadratic, engine.kept if kept else None)
        found |= (engine if kept else dataclasses.replace(engine, prefixes=None)).run(batch)
        waiting = [each for each in waiting if each not in found]
    return found


@st.composite
def rounds(draw):
    """Sequences of a few branching beginnings, asked in several rounds."""
    lengths = draw(st.lists(st.integers(1, 70), min_size=2, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 5)))
    beginnings = [[]]
    for length in lengths:
        stem = beginnings[draw(st.integers(0, len(beginnings) - 1))]
        beginnings.append([*stem, *random.integers(1, 60, length).tolist()][:110])
    end = st.lists(st.integers(1, 60), min_size=1, max_size=12)
    one = st.builds(lambda stem, end: key([*stem, *end]), st.sampled_from(beginnings), end)
    return draw(st.lists(st.lists(one, min_size=1, max_size=6), min_size=2, max_size=4))


@pytest.mark.parametrize("name", KINDS)
@given(rounds())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_scores_are_those_without_it(engines_of, name, asked):
    engine = engines_of(name)
    for sequences in asked:
        with_it, without = (scores(engine, sequences, kept) for kept in (True, False))
        for each in sequences:
            assert with_it[each] == pytest.approx(without[each], abs=1e-5)


def answers(prompt, *ends):
    return [key([*prompt, *end]) for end in ends]


PROMPT = [*range(1, 60), *range(1, 12)]  # 70 tokens: two blocks and a rest


def test_a_prompt_of_several_answers_is_run_once_for_all_batches(engines_of):
    engine = engines_of("windows")
    engine.prefixes.clear()
    scores(engine, answers(PROMPT, [1], [2, 3]), kept=True)
    assert engine.prefixes.tokens == 2 * BLOCK
    batch = plan(answers(PROMPT, [4], [5, 6], [7]), engine.shapes, 0.0, engine.kept)
    ((group,),) = batch.rows
    assert len(group.past) == 2 and group.tokens == 70 - 2 * BLOCK + 1 + 2 + 1
    first = batch.forest().positions_RT[0]
    assert first[: group.shared].tolist() == [*range(2 * BLOCK, 70)]


def test_a_single_answers_prompt_is_kept_from_its_second_time_on(engines_of):
    engine = engines_of("plain")
    engine.prefixes.clear()
    kept = []
    for end in range(3):
        scores(engine, answers(PROMPT, [end] * 40), kept=True)
        kept.append(engine.prefixes.tokens)
    assert kept == [0, 2 * BLOCK, 2 * BLOCK], "answers are kept, too, or nothing is"


def test_a_value_that_is_not_finite_is_not_kept(engines_of):
    engine = engines_of("plain")
    engine.prefixes.clear()
    broken = dataclasses.replace(
        engine, params=jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), engine.params)
    )
    found = scores(broken, answers(PROMPT, [1], [2]), kept=True)
    assert np.isnan([*found.values()]).all() and engine.prefixes.tokens == 0
    again = answers(PROMPT, [3], [4])
    assert scores(engine, again, kept=True) == pytest.approx(scores(engine, again, kept=False), abs=1e-5)


def test_after_a_failure_it_is_empty_and_works(engines_of):
    engine = engines_of("plain")
    scores(engine, answers(PROMPT, [1], [2]), kept=True)
    with pytest.raises(Exception, match="params|scope|not"):
        scores(dataclasses.replace(engine, params={}), answers(PROMPT, [3]), kept=True)
    assert engine.prefixes.tokens == 0
    again = answers(PROMPT, [3], [4])
    assert scores(engine, again, kept=True) == pytest.approx(scores(engine, again, kept=False), abs=1e-5)


def test_nothing_is_compiled_and_hits_are_counted(engines_of):
    engine = engines_of("plain")
    engine.prefixes.clear()
    rows = [{"prompt": "p" * 60, "output": f"{n}" * 9} for n in range(6)]
    with running(engine) as server:
        for n in range(0, 6, 2):
            assert server.ask("/v1/reward", {"records": rows[n : n + 2]})[0] == 200
        assert server.metric("rmjax_recompiles_total") == 0
        assert server.metric("rmjax_prefix_hits_total") == 4
        assert server.metric("rmjax_prefix_tokens_total") == 2 * BLOCK, "a block in each of two batches"
        assert server.metric("rmjax_sequence_tokens_total") == 6 * 71


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [(64, {}, "less than the longest text"), (512, {"wrapped": True}, "several members")],
)
def test_what_it_is_not_for_is_refused(tokens, change, message):
    model = make_model("plain")
    if change:
        model._wrapped = {"ensemble": {}}
    with pytest.raises(ValueError, match=message):
        Engine.of(model, prefix_cache_tokens=tokens)


def test_it_is_off_unless_asked_for(engines):
    assert engines["polar"].prefixes is None and engines["polar"].kept is None


def test_two_answers_may_store_the_same_columns(engines_of):
    """Their second blocks differ and begin alike: what they share is in both."""
    engine = engines_of("plain")
    engine.prefixes.clear()
    shared = [*range(1, 50)]
    both = answers(shared, [3] * 15 + [5], [4] * 15 + [5])
    for _ in range(3):
        scores(engine, both, kept=True)
    assert [len(engine.kept(each)) for each in both] == [2, 2] and engine.prefixes.tokens == 3 * BLOCK
    longer = answers(shared, [3] * 15 + [6], [4] * 15 + [6])
    with_it, without = (scores(engine, longer, kept) for kept in (True, False))
    assert with_it == pytest.approx(without, abs=1e-5)
