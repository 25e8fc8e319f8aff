"""Policy pools: who is drawn with whom, how often, and what is left out."""

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from rmjax.data.errors import RecordError
from rmjax.data.pool import PolicyPool, PoolError
from rmjax.data.samplerows import parse_sample


def row(policy: str, sample: int = 0, prompt: str = "p", **changes) -> dict:
    text = f"{prompt}/{policy}/{sample}"  # says where it is from, and is different for each sample
    return {
        "prompt_id": prompt,
        "prompt": f"Say {prompt}.",
        "policy": policy,
        "sample": sample,
        "output": text,
        **changes,
    }


def make(rows: list[dict]) -> PolicyPool:
    return PolicyPool(parse_sample(r, f"pool.jsonl:{i + 1}") for i, r in enumerate(rows))


def origin(text: str) -> str:
    return text.split("/")[1]


def even_pool(policies: int = 5, samples: int = 3, kinds: int = 0, prompts: int = 1) -> PolicyPool:
    """Policy i is of kind i mod `kinds`."""
    return make(
        [
            row(f"policy{i}", s, f"p{p}", **({"kind": f"kind{i % kinds}"} if kinds else {}))
            for p in range(prompts)
            for i in range(policies)
            for s in range(samples)
        ]
    )


def draws(pool: PolicyPool, count: int, **options):
    rng = np.random.default_rng(0)
    return [pool.draw(pool[0], rng, **options) for _ in range(count)]


# --- the pairing rule -------------------------------------------------------------------------------------------------


@st.composite
def pools(draw):
    """Some prompts, policies with 1 to 4 samples each, of two kinds."""
    rows = []
    for prompt in ("p", "q"):
        counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6).filter(lambda c: max(c) > 1))
        rows += [row(f"a{i}", s, prompt, kind=f"kind{i % 2}") for i, c in enumerate(counts) for s in range(c)]
    return make(draw(st.permutations(rows)))


@settings(deadline=None)
@given(
    pool=pools(),
    seed=st.integers(0, 99),
    negatives=st.integers(1, 7),
    references=st.integers(1, 5),
    hard=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_positive_and_references_are_of_one_policy_and_negatives_of_others(pool, seed, negatives, references, hard):
    for prompt in (pool[i] for i in range(len(pool))):
        rng = np.random.default_rng(seed)
        c = pool.draw(prompt, rng, negatives=negatives, references=references, hard_negatives=hard, wrapper="pretrain")
        assert c.policies is not None
        by_policy = pool.outputs[prompt]
        own = c.policies[0]
        assert {origin(text) for text in (c.outputs[0], *c.references)} == {own}
        assert len(c.references) == min(references, len(by_policy[own]) - 1)
        assert len(c.outputs) - 1 == min(negatives, len(by_policy) - 1)
        assert [origin(text) for text in c.outputs] == list(c.policies)
        assert len(set(c.policies)) == len(c.policies)  # K different other policies
        drawn = [*c.outputs, *c.references]
        assert len(set(drawn)) == len(drawn)  # every sample at most once
        assert all(text in by_policy[origin(text)] for text in drawn)
        assert c.ranks == (0.0,) + (1.0,) * (len(c.outputs) - 1)
        assert (c.prompt, c.id, c.wrapper, c.source) == (f"Say {prompt}.", prompt, "pretrain", "policy_pool")


def test_a_draw_is_a_function_of_the_generator():
    pool = even_pool()
    first, again, other = (pool.draw("p0", np.random.default_rng(seed), negatives=3) for seed in (7, 7, 8))
    assert first == again != other


def test_a_policy_with_one_sample_is_only_ever_a_negative():
    pool = make([row("two", 0), row("two", 1), row("one")])
    for c in draws(pool, 20):
        assert c.policies == ("two", "one")


def chi_square(counts: Counter, choices: int) -> float:
    """p-value of "all choices are equally likely"."""
    observed = list(counts.values()) + [0] * (choices - len(counts))
    return stats.chisquare(observed).pvalue


def test_policies_and_samples_are_drawn_uniformly():
    found = draws(even_pool(policies=5, samples=3), 3000)
    pairs = Counter(c.policies for c in found)
    assert len(pairs) == 20 and chi_square(pairs, 20) > 0.01  # ordered pairs of different policies
    assert chi_square(Counter((c.outputs[0], c.references) for c in found), 30) > 0.01
    assert chi_square(Counter(c.outputs[1] for c in found), 15) > 0.01


def test_the_number_of_samples_gives_a_policy_no_weight():
    pool = make([row("many", s) for s in range(20)] + [row(name, s) for name in ("a", "b", "c") for s in range(2)])
    found = draws(pool, 2000)
    assert chi_square(Counter(c.policies[0] for c in found), 4) > 0.01
    assert chi_square(Counter(c.policies[1] for c in found), 4) > 0.01


def test_several_negatives_are_uniform_too():
    found = draws(even_pool(policies=5), 2000, negatives=3)
    assert chi_square(Counter(frozenset(c.policies[1:]) for c in found if c.policies[0] == "policy0"), 4) > 0.01
    assert chi_square(Counter(c.policies[3] for c in found), 5) > 0.01


# --- hard negatives ---------------------------------------------------------------------------------------------------


def sibling_share(pool: PolicyPool, count: int = 2000, **options) -> float:
    found = draws(pool, count, **options)
    return float(np.mean([pool.kind[name] == pool.kind[c.policies[0]] for c in found for name in c.policies[1:]]))


def test_hard_negatives_are_of_the_policy_s_own_kind():
    pool = even_pool(policies=10, kinds=5)  # 1 sibling among 9 others
    assert sibling_share(pool, hard_negatives=1.0) == 1.0
    assert sibling_share(pool, hard_negatives=0.0) == pytest.approx(1 / 9, abs=0.03)
    assert sibling_share(pool, hard_negatives=0.5) == pytest.approx(0.5 + 0.5 / 9, abs=0.04)  # the others are any


def test_hard_negatives_fall_back_on_any_policy():
    pool = even_pool(policies=6, kinds=6)  # nobody has a sibling
    assert sibling_share(pool, 50, hard_negatives=1.0) == 0
    pool = even_pool(policies=6, kinds=2)  # 2 siblings, 4 wanted
    assert sibling_share(pool, 50, hard_negatives=1.0, negatives=4) == 0.5


def test_siblings_are_drawn_uniformly():
    found = draws(even_pool(policies=8, kinds=2), 2000, hard_negatives=1.0)
    assert chi_square(Counter(c.policies for c in found), 24) > 0.01


# --- fixed triples ----------------------------------------------------------------------------------------------------


def test_triples_are_fixed_by_the_seed():
    pool = even_pool(prompts=3)
    first, again, other = pool.triples(1, 4), even_pool(prompts=3).triples(1, 4), pool.triples(2, 4)
    assert first == again != other
    assert set(Counter(c.id for c in first)) == {"p0", "p1", "p2"}
    assert max(Counter(c.id for c in first).values()) <= 4
    assert all(len(c.outputs) == 2 and len(c.references) == 1 and c.ranks == (0, 1) for c in first)


def test_a_prompt_s_triples_do_not_depend_on_how_many_are_wanted():
    pool = even_pool(policies=8, samples=4)
    assert pool.triples(1, 6)[:3] == pool.triples(1, 3)


def test_equal_triples_come_once():
    pool = make([row("two", 0), row("two", 1), row("one")])  # 2 different triples
    found = pool.triples(0, 50)
    assert len(found) == 2 and len({(c.outputs, c.references) for c in found}) == 2


def test_triples_of_identical_candidates_are_left_out_counted_and_logged(caplog):
    pool = make([row("two", 0), row("two", 1), row("copy", output="p/two/0")])
    with caplog.at_level(logging.INFO):
        found = pool.triples(0, 50)
    # The copy of sample 0 makes a pair with sample 1 only.
    assert [(c.outputs, c.references) for c in found] == [(("p/two/1", "p/two/0"), ("p/two/0",))]
    count = pool.skipped["identical_candidates"]
    assert 10 < count < 40
    assert f"left out {count} triples with identical candidates, kept 1" in caplog.text


def test_triples_with_one_reference_come_as_one_group():
    found = even_pool(policies=4).triples(0, 3, negatives=3)
    assert {len(c.outputs) for c in found} == {4}
    assert all(c.ranks == (0, 1, 1, 1) and len(set(c.policies)) == 4 for c in found)
    copied = make([row("two", 0), row("two", 1), row("copy", output="p/two/0"), row("other")])
    groups = copied.triples(0, 50, negatives=2)
    assert {c.outputs[0]: set(c.outputs[1:]) for c in groups} == {
        "p/two/0": {"p/other/0"},
        "p/two/1": {"p/two/0", "p/other/0"},
    }
    assert all(len(c.outputs) == len(c.policies) == len(c.ranks) for c in groups)


def test_triples_take_the_wrapper():
    assert {c.wrapper for c in even_pool().triples(0, 3)} == {"sft"}
    assert {c.wrapper for c in even_pool().triples(0, 3, wrapper="pretrain")} == {"pretrain"}


# --- what a pool holds ------------------------------------------------------------------------------------------------


def test_a_pool_is_a_source_of_prompts():
    pool = even_pool(prompts=3)
    assert [pool[i] for i in range(len(pool))] == ["p0", "p1", "p2"]
    assert pool.policies == [f"policy{i}" for i in range(5)]


def test_prompts_without_a_triple_and_empty_outputs_are_counted(caplog):
    rows = [row("a", 0), row("a", 1), row("b", 0)]
    rows += [row("a", 0, "alone"), row("a", 1, "alone")]  # one policy
    rows += [row("a", 0, "single"), row("b", 0, "single")]  # one sample each
    rows += [row("c", 0, output=" \n"), row("c", 1, output="")]
    with caplog.at_level(logging.INFO):
        pool = make(rows)
    assert [pool[i] for i in range(len(pool))] == ["p"]
    assert pool.skipped == {"prompt_without_triple": 2, "empty_output": 2}
    assert "'empty_output': 2" in caplog.text and "'prompt_without_triple': 2" in caplog.text
    assert "c" not in pool.policies


def test_category_is_the_prompt_s():
    rows = [row("a", s, category="letters") for s in (0, 1)] + [row("b", category="letters")]
    assert draws(make(rows), 1)[0].category == "letters"
    assert draws(even_pool(), 1)[0].category is None


@pytest.mark.parametrize("field", ["prompt_id", "prompt", "policy", "output"])
@pytest.mark.parametrize("value", [None, 3.5, ["text"], "half \ud800", "absent"])
def test_a_malformed_row_is_named(field, value):
    bad = row("b")
    if value == "absent":
        del bad[field]
    else:
        bad[field] = value
    with pytest.raises(
        RecordError, match=rf"^pool\.jsonl:3: field `{field}`: (missing|not a|neither text|text with a lone)"
    ):
        make([row("a", 0), row("a", 1), bad])


def test_a_prompt_id_with_two_prompts_is_named():
    with pytest.raises(RecordError, match=r"^pool\.jsonl:3: field `prompt`: differs .* prompt_id `p`"):
        make([row("a", 0), row("a", 1), row("b") | {"prompt": "Say something else."}])


def test_a_label_that_is_null_counts_as_absent():
    pool = make([row(name, s, category=None, kind=None) for name in "ab" for s in (0, 1)])
    assert draws(pool, 1)[0].category is None and set(pool.kind.values()) == {""}


@pytest.mark.parametrize(
    "rows", [[], [row("a", 0), row("a", 1)], [row("a"), row("b")], [row("a", 0), row("a", 1), row("b", output=" ")]]
)
def test_a_pool_without_a_single_triple_is_an_error(rows):
    with pytest.raises(PoolError, match="two samples of one policy and one of another"):
        make(rows)


# --- what a pool cannot give ------------------------------------------------------------------------------------------


def test_more_than_the_pool_has_is_refused():
    pool = even_pool(policies=3, samples=2)
    pool.check_numbers(negatives=2, references=1)
    with pytest.raises(PoolError, match="negatives is 3, and no prompt of the pool gives more than 2; lower it"):
        pool.check_numbers(negatives=3, references=1)
    with pytest.raises(PoolError, match="references is 2, and no prompt of the pool gives more than 1; lower it"):
        pool.check_numbers(negatives=2, references=2)


def test_prompts_that_give_smaller_groups_are_counted(caplog):
    rows = [row(f"policy{i}", s, prompt) for prompt, n in (("p", 4), ("q", 2)) for i in range(n) for s in range(2)]
    with caplog.at_level(logging.WARNING):
        make(rows).check_numbers(negatives=1, references=1)
        assert not caplog.records
        make(rows).check_numbers(negatives=3, references=1)
    assert "1 of 2 prompts give fewer than 3 negatives" in caplog.text
