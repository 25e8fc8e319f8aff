"""The local generator: what an answer depends on, where it ends, and that its log-probabilities are the trainer's."""

import dataclasses
import functools
import heapq
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax.data import rollouts
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, fill
from rmjax.data.record import Comparison, RecordError, parse, select, to_row
from rmjax.data.tokenizer import Tokenizer
from rmjax.losses.policy.parts import Parts
from rmjax.methods.policy_gradient import statistics
from rmjax.models.reward import RewardTransformer
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import make_mesh
from rmjax.policy import local
from rmjax.policy.local import LocalGenerator
from rmjax.policy.sampling import Decoding
from rmjax.policy.slots import admit, decode
from tests.conftest import _random_params
from tests.simulated import devices

ROOT = Path(__file__).parents[2]
TOKENIZER = Tokenizer.from_bpe(["<e>", "<f>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], ["<e>", "<f>"])
ENCODER = Encoder(TOKENIZER, Format(kind="plain", reward_token="<f>", end_token="<e>"), 512)
M, N = 10, 5
PROMPTS = ["a", "and so, what?", "no", "why? why?", "é"]
RECORDS = [Comparison(prompt, ("as before",), id=f"p{i}") for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def config(tiny_config):
    return changed(tiny_config, vocab_size=TOKENIZER.vocab_size, tied_embeddings=False)


@pytest.fixture(scope="module")
def params(config, random_params):
    return weights(config, random_params)


def weights(config, random_params):
    """Less wild than the fixture's: rounding grows with the size of what is added up."""
    found = random_params(config, 3)
    found["layers"] = jax.tree.map(lambda x: x * (0.6 if x.ndim > 2 else 1.0), found["layers"])
    found["output"]["kernel"] *= 0.6
    found["output"]["kernel"][:, 0] *= 3  # the end token comes after a few others
    return found


@pytest.fixture(scope="module")
def generator(config, params):
    return LocalGenerator(config, params, ENCODER, Decoding(0.9), M, slots=8)


@pytest.fixture(scope="module")
def drawn(generator):
    """All records' answers, by 8 rows in two groups that are filled again and again."""
    found = generator(RECORDS, N, 0)
    lengths = [len(ids) for c in found.records for ids in c.columns["token_ids"]]
    assert len({*lengths}) > 4 and max(lengths) == M and not found.dropped
    return found.records


def changed(generator, **changes):
    return dataclasses.replace(generator, **changes)


def by_id(records):
    return {c.id: c for c in records}


def assert_same(some, others):
    """Tokens exactly, log-probabilities to 1e-5, of those records that both have."""
    some, others = by_id(some), by_id(others)
    assert (both := some.keys() & others.keys())
    for name in both:
        one, other = some[name], others[name]
        assert (one.outputs, one.columns["token_ids"]) == (other.outputs, other.columns["token_ids"])
        assert one.columns["truncated"] == other.columns["truncated"]
        for mine, theirs in zip(one.columns["log_probs"], other.columns["log_probs"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def forest_of(answers):
    """A tree a row."""
    trees = [rollouts.trees(said, {}, {}, 128, N) for said in answers]
    return fill(ForestShape(len(trees), 128, 1, N), trees)


def trainer_s(config, params, records, temperature):
    """[record][answer] → log-probabilities of its tokens by the policy gradient's own function."""
    answers = [rollouts.answers(ENCODER, c) for c in records]
    of_trainer = jax.jit(functools.partial(statistics, RewardTransformer(config), parts=Parts(temperature=temperature)))
    values_RT = np.asarray(of_trainer({"backbone": params}, forest_of(answers)).log_probability_RT)
    ends = [list(itertools.accumulate(map(len, said.outputs), initial=len(said.prompt))) for said in answers]
    return [[row[i:j] for i, j in itertools.pairwise(of)] for row, of in zip(values_RT, ends, strict=True)]


def assert_trainer_s(config, params, records, temperature=1.0):
    for c, answers in zip(records, trainer_s(config, params, records, temperature), strict=True):
        for mine, theirs in zip(c.columns["log_probs"], answers, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


# --- what an answer depends on ---------------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_other_records_and_samples(generator, drawn):
    assert_same(generator(RECORDS[1:2], 2, 0).records, [select(c, (0, 1)) for c in drawn])


def test_an_answer_does_not_depend_on_slots_or_order(generator, drawn):
    """Three rows: each prompt's samples are drawn three at a time."""
    assert_same(changed(generator, slots=3)(RECORDS[::-1], N, 0).records, drawn)


def test_a_row_goes_on_with_the_next_sample_at_once(generator, drawn, monkeypatch):
    """Three rows for a prompt's five samples: no more steps than three writers need who take one after the other."""
    seen = []
    kept = lambda *args, **more: seen.append(decode(*args, **more)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(local.decoding_slots, "decode", kept)
    changed(generator, slots=3)(RECORDS, N, 0)
    wanted = 0
    for c in drawn:
        writers = [0] * 3
        for ids in c.columns["token_ids"]:
            heapq.heappush(writers, heapq.heappop(writers) + len(ids))
        wanted += max(writers)
    assert int(seen[-1].step) == wanted


@pytest.mark.slow
def test_what_all_prompts_begin_with_is_read_once(config, params, generator, monkeypatch):
    long = [changed(c, prompt="you are told what to say; now say it. " + c.prompt) for c in RECORDS]
    ids = [ENCODER.begun(c.prompt) for c in long]
    assert local._common(ids) == ids[0][:32] and local._common(ids[:1]) == []
    widths = []
    kept = lambda *args, **more: widths.append(args[3][0].shape[1]) or admit(*args, **more)  # noqa: E731
    monkeypatch.setattr(local.decoding_slots, "admit", kept)
    assert_trainer_s(config, params, generator(long, N, 0).records, 0.9)
    assert max(widths) <= 32 < min(map(len, ids))


def test_seed_id_prompt_and_sample_all_matter(generator, drawn):
    c = next(c for c in drawn if len({*c.columns["token_ids"]}) == N)
    others = [changed(c, id=other.id) for other in (c, *(other for other in RECORDS if other.id != c.id))]
    first, *found = [one.columns["token_ids"] for one in generator(others, N, 0).records]
    assert first == c.columns["token_ids"] and len({*found, first}) == len(RECORDS)
    assert generator(others, N, 1).records[0].columns["token_ids"] != first
    keys = {
        tuple(local._key(0, Comparison(prompt, (), id=name), n)) for prompt in "ab" for name in "ab" for n in (0, 1)
    }
    assert len(keys) == 8


def test_other_weights_compile_nothing(generator, drawn, params):
    before = generator.compilations
    assert before > 0
    moved = changed(generator, params=jax.tree.map(lambda x: 1.1 * x, params))
    assert moved(RECORDS, N, 0).records[0].columns["token_ids"] != drawn[0].columns["token_ids"]
    assert moved.compilations == generator.compilations == before


def test_lengths_that_are_compiled():
    shapes = {local._rounded(tokens) for tokens in range(1, 1025)}
    assert sorted(shapes) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(tokens <= local._rounded(tokens) for tokens in range(1, 1025))


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}]


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_mesh(config, drawn, tmp_path):
    """Eight devices; weights cut over fsdp and tensor in the first case."""
    path = tmp_path / "answers.json"
    given = f"{str(path)!r}, {dataclasses.asdict(config)}"
    subprocess.run(
        [sys.executable, "-c", f"from tests.policy.test_local import on_meshes; on_meshes({given})"],
        cwd=ROOT, env=os.environ | devices(8), check=True,
    )  # fmt: skip
    for found in json.loads(path.read_text()):
        assert_same([parse(row, "mesh", blank=True) for row in found], drawn)


def on_meshes(path, described):
    """In a process of its own: writes what each mesh draws."""
    config = TransformerConfig.parse(described)
    one = LocalGenerator(config, weights(config, _random_params), ENCODER, Decoding(0.9), M)
    found = []
    for sizes in MESHES:
        generator = dataclasses.replace(one, mesh=make_mesh(sizes), slots=8)
        found.append([to_row(c) for c in generator(RECORDS, N, 0).records])
        before = generator.compilations, decode._cache_size(), admit._cache_size()
        moved = dataclasses.replace(generator, params=jax.tree.map(lambda x: 1.1 * x, generator.params))
        moved(RECORDS, N, 0)
        assert (moved.compilations, decode._cache_size(), admit._cache_size()) == before
    Path(path).write_text(json.dumps(found))


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_log_probabilities_are_the_trainer_s(config, params, drawn):
    assert_trainer_s(config, params, drawn, 0.9)


@pytest.mark.slow
def test_under_windows_and_a_softcap_too(config, params, generator):
    """Shorter than a prompt; the second layer sees all, without rotary positions."""
    config = changed(config, window=4, windowed=(True, False), rotary=(True, False), logit_softcap=4.0)
    found = changed(generator, config=config)(RECORDS, N, 0)
    assert_trainer_s(config, params, found.records, 0.9)


def test_greedy_answers_are_the_most_likely_tokens(config, params, generator):
    greedy = changed(generator, decoding=Decoding(0.0))
    found = greedy(RECORDS, N, 0).records
    assert all(len({*c.columns["token_ids"]}) == 1 for c in found)
    assert_trainer_s(config, params, found, 1.0)
    logits = jax.jit(
        functools.partial(RewardTransformer(config).apply, {"params": {"backbone": params}}, method="logits")
    )
    answers = [rollouts.answers(ENCODER, c) for c in found]
    best_RT = np.argmax(logits(forest_of(answers)), axis=-1)
    for best_T, said in zip(best_RT, answers, strict=True):
        first, ids = len(said.prompt), said.outputs[0]
        assert [best_T[first - 1], *best_T[first : first + len(ids) - 1]] == ids


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, True), ({"decoding": Decoding(0.0)}, False), ({"decoding": Decoding(1.0, 0.9)}, False),
        ({"decoding": Decoding(1.0, 1.0, 5)}, False), ({"rule": lambda logits_RV, ids_RM, n_R: logits_RV}, False),
    ],
)  # fmt: skip
def test_what_a_policy_gradient_may_read(generator, changes, exact):
    assert changed(generator, **changes).exact is exact


@pytest.mark.slow
def test_bf16(config, params, generator):
    half = changed(generator, config=dataclasses.replace(config, dtype="bfloat16"))
    found = half(RECORDS, N, 0).records
    for mine, theirs in zip(found, trainer_s(half.config, params, found, 0.9), strict=True):
        assert np.abs(np.concatenate(mine.columns["log_probs"]) - np.concatenate(theirs)).mean() < 0.02


# --- where an answer ends --------------------------------------------------------------------------------------------


def test_several_tokens_end_an_answer_and_truncation_is_exact(generator, drawn):
    """The end token is the id 0, with which others pad."""
    other = next(ids for c in drawn for ids in c.columns["token_ids"] if len(ids) == M and ids.index(ids[-1]) == M - 1)[
        -1
    ]
    found = changed(generator, stop=("<f>", other))(RECORDS, N, 0).records
    ends, seen = {0, 1, other}, set()
    for before, c in zip(drawn, found, strict=True):
        for whole, ids, cut in zip(
            before.columns["token_ids"], c.columns["token_ids"], c.columns["truncated"], strict=True
        ):
            first = next((i for i, token in enumerate(whole) if token in ends), M)
            assert (ids, cut) == (whole[: first + 1], float(first == M))
            seen.add((ids[-1] if ids[-1] in ends else -1, len(ids)))
    assert {(other, M), (-1, M)} <= seen and 0 in {token for token, _ in seen}
    assert not [text for c in found for text in c.outputs if "<e>" in text or "<f>" in text]


def test_a_stop_string_may_straddle_tokens(generator, drawn):
    c = next(c for c in drawn if len(c.columns["token_ids"][0]) > 5)
    ids = c.columns["token_ids"][0]
    text = TOKENIZER.decode(ids)
    string = next(text[i : i + 2] for i in range(1, len(text) - 2) if "\ufffd" not in text[i : i + 2])
    found = by_id(changed(generator, stop=(string,))(RECORDS, N, 0).records)[c.id]
    kept = found.columns["token_ids"][0]
    assert kept == ids[: len(kept)] and string in TOKENIZER.decode(kept) and string not in TOKENIZER.decode(kept[:-1])
    assert found.outputs[0] == text[: text.index(string)]
    assert found.columns["log_probs"][0] == pytest.approx(c.columns["log_probs"][0][: len(kept)], abs=1e-5)
    assert found.columns["truncated"][0] == 0
    for n in range(1, N):
        if string not in TOKENIZER.decode(c.columns["token_ids"][n]):
            assert found.columns["token_ids"][n] == c.columns["token_ids"][n]


def test_a_row_at_a_stop_string_goes_on_with_the_next_sample(generator, drawn, monkeypatch):
    """Looked for after every token: no row draws more than its sample has, and all samples are as before."""
    monkeypatch.setattr(local, "STEPS", 1)
    string = next(char for c in drawn for text in c.outputs for char in text[1:-1] if char != "\ufffd")
    stopping = changed(generator, stop=(string,))
    found = stopping(RECORDS, N, 0).records
    assert [c.outputs for c in found] != [c.outputs for c in drawn]
    monkeypatch.setattr(local, "STEPS", 1000)
    assert_same(found, stopping(RECORDS, N, 0).records)


def test_bytes_that_are_no_character_are_replaced_and_kept_as_tokens(drawn):
    c = next(c for c in drawn if any("\ufffd" in text for text in c.outputs))
    assert [TOKENIZER.decode(ids) for ids in c.columns["token_ids"]] == list(c.outputs)


def test_an_empty_answer_is_kept(drawn):
    """The end token alone."""
    c = next(c for c in drawn if "" in c.outputs)
    n = c.outputs.index("")
    assert c.columns["token_ids"][n] == (0,) and c.columns["truncated"][n] == 0
    assert rollouts.answers(ENCODER, c).outputs[n] == [0]


# --- rules -----------------------------------------------------------------------------------------------------------


def counts_up(logits_RV, ids_RM, n_R):
    """The first token is 10, each other one more than the one before."""
    before_R = jnp.take_along_axis(ids_RM, jnp.maximum(n_R - 1, 0)[:, None], axis=1)[:, 0]
    wanted_R = jnp.where(n_R == 0, 10, before_R + 1)
    return jnp.where(jnp.arange(logits_RV.shape[1]) == wanted_R[:, None], logits_RV, -jnp.inf)


def test_a_rule_sees_what_was_drawn(generator):
    (c,) = changed(generator, rule=counts_up)(RECORDS[:1], N, 0).records
    assert c.columns["token_ids"] == (tuple(range(10, 10 + M)),) * N
    assert c.columns["truncated"] == (1.0,) * N


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_keeps_what_is_not_of_its_old_outputs(generator, drawn):
    given = parse(
        {
            "prompt": "a", "outputs": ["x", "y"], "scores": [1, 2], "rewards": [0.5, 1], "reference": "z", "weight": 2.0,
            "id": "p0",
        },
        "file:1", blank=True,
    )  # fmt: skip
    c = generator([given, *RECORDS[1:]], N, 0).records[0]
    assert (c.references, c.weight, c.place, c.id) == (("z",), 2.0, "file:1", "p0")
    assert (c.scores, c.ranks, c.votes, c.policies) == (None, None, None, ("policy",) * N)
    assert c.columns == drawn[0].columns and len(c.outputs) == N
    assert parse(to_row(c), "file:1", blank=True) == c


def test_prompts_that_cannot_be_answered_are_dropped_and_counted(generator, config):
    long = Comparison("x" * 60, ("",), id="long")
    short = changed(
        generator, config=dataclasses.replace(config, rope=Rope(kind="dynamic", factor=2.0), max_positions=64)
    )
    found = short([long, Comparison("", ("",), id="none")], 2, 0)
    assert found.records == []
    assert found.dropped == {
        "prompt and 10 new tokens are longer than the model's 64 positions": 2, "prompt without a token": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_a_token_that_the_tokenizer_lacks_drops_its_sample(generator, config, random_params):
    larger = dataclasses.replace(config, vocab_size=TOKENIZER.vocab_size + 40)
    found = changed(generator, config=larger, params=random_params(larger, 3))(RECORDS[:2], N, 0)
    assert 0 < found.dropped["token that the tokenizer lacks"] == 2 * N - sum(len(c.outputs) for c in found.records)
    assert all(max(ids) < TOKENIZER.vocab_size for c in found.records for ids in c.columns["token_ids"])


def test_broken_weights_are_an_error(generator, params):
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ValueError, match="p0: a log-probability of policy is not finite; its weights are broken"):
        changed(generator, params=broken)(RECORDS, N, 0)


def test_a_prompt_that_the_template_refuses_is_named(generator):
    refusing = Format(kind="chat", template="{{ raise_exception('no such turn') }}", end_token="<e>")
    with pytest.raises(RecordError, match=r"file:7: the chat template refuses the conversation \(no such turn\)"):
        changed(generator, encoder=Encoder(TOKENIZER, refusing, 512))([Comparison("a", (), place="file:7")], 1, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
        ({"slots": 0}, "slots is 0; it must be 1 or more"),
        ({"stop": ("",)}, 'stop holds "", which every answer begins with; take it out'),
        ({"stop": (900,)}, "stop holds 900, which is no token's id; there are 258"),
    ],
)
def test_what_is_refused(generator, changes, said):
    with pytest.raises(ValueError, match=said):
        changed(generator, **changes)


def test_no_samples_are_refused(generator):
    with pytest.raises(ValueError, match="samples is 0; it must be 1 or more"):
        generator(RECORDS, 0, 0)
