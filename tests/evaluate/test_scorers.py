"""Scoring records: every reward comes back to its candidate, however the batches are cut."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, Tree, fill, pack
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.scorers import (
    COMBINATIONS,
    Baseline,
    Ensemble,
    RewardScorer,
    ScoreError,
    checked,
    fitting_shape,
    score,
)
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer

SPECIAL = ("<split>", "<reward>")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *bytes_], [], SPECIAL)
    return Encoder(tokenizer, Format(*SPECIAL, max_length=500, max_response_length=200), row_tokens=1000)


def fingerprint(ids) -> float:
    """Tells any two sequences apart."""
    return float(sum((i + 1) * (int(token) + 1) ** 2 for i, token in enumerate(ids)))


def read_back(forest: Forest) -> np.ndarray:
    """A stand-in for the model: the fingerprint of each leaf's whole path."""
    rewards_RGN = np.zeros(forest.readout_RGN.shape)
    for r, g, n in np.argwhere(forest.readout_RGN >= 0):
        path = (forest.group_RT[r] == g + 1) & np.isin(forest.branch_RT[r], [0, n + 1])
        rewards_RGN[r, g, n] = fingerprint(forest.tokens_RT[r, path])
    return rewards_RGN


def wanted(encoder: Encoder, c: Comparison) -> list[float]:
    by_tree = [[fingerprint([*tree.prefix, *leaf]) for leaf in tree.branches] for tree in encoder.trees(c)]
    return np.mean(by_tree, axis=0).tolist()


def some_records(count: int, seed: int = 0) -> list[Comparison]:
    rng = random.Random(seed)

    def text(longest: int) -> str:
        return "".join(rng.choices("abc de\n", k=rng.randint(1, longest)))

    return [
        Comparison(
            text(40),
            tuple(text(30) for _ in range(rng.randint(1, 5))),
            tuple(text(20) for _ in range(rng.randint(0, 3))),
        )
        for _ in range(count)
    ]


class Model:
    """`read_back`, with a record of the batches."""

    def __init__(self):
        self.shapes: list[tuple[int, int, int, int]] = []

    def __call__(self, params, forest: Forest):
        assert params == "params"
        self.shapes.append(forest.shape)
        return read_back(forest)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 12), seed=st.integers(0, 99), batch_tokens=st.integers(1, 3000))
def test_rewards_come_back_in_order(encoder, count, seed, batch_tokens):
    records = some_records(count, seed)
    found = score(Model(), "params", encoder, records, batch_tokens)
    assert [len(values) for values in found] == [len(c.outputs) for c in records]
    for values, c in zip(found, records, strict=True):
        assert values == pytest.approx(wanted(encoder, c), rel=1e-12)


def test_no_records_no_rewards(encoder):
    model = Model()
    assert score(model, "params", encoder, [], 1024) == []
    assert model.shapes == []


def test_several_references_give_their_mean(encoder):
    c = Comparison("prompt", ("one", "two"), ("first", "second", "third"))
    single = [dataclasses.replace(c, references=(reference,)) for reference in c.references]
    (together,), apart = (score(Model(), "params", encoder, rows, 1024) for rows in ([c], single))
    assert together == pytest.approx(np.mean(apart, axis=0).tolist(), rel=1e-12)
    assert len({values[0] for values in apart}) == 3


def test_a_reward_does_not_depend_on_the_other_candidates(encoder):
    """Nor on their number or length: long ones are cut by themselves."""
    outputs = tuple(f"answer {i} " * (1 + 9 * (i % 5)) for i in range(40))
    c = Comparison("prompt " * 20, outputs, ("reference " * 10, "other"))
    (together,) = score(Model(), "params", encoder, [c], 4096)
    alone = score(Model(), "params", encoder, [dataclasses.replace(c, outputs=(o,)) for o in outputs], 4096)
    assert together == pytest.approx([reward for (reward,) in alone], rel=1e-12)
    assert len(set(together)) == 40


def test_equal_records_and_equal_candidates(encoder):
    c = Comparison("prompt", ("same", "same", "other"))
    first, second = score(Model(), "params", encoder, [c, c], 1024)
    assert first == second
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("batch_tokens", [1, 1024, 4096])
def test_few_shapes_and_no_more_tokens_than_asked_for(encoder, batch_tokens):
    model, records = Model(), some_records(60)
    score(model, "params", encoder, records, batch_tokens)
    assert len(set(model.shapes)) == 1
    R, T, G, N = model.shapes[0]
    assert R == 1 or batch_tokens >= R * T
    assert all(size & (size - 1) == 0 for size in (T, G, N)) and bin(R).count("1") <= 2
    tokens = sum(tree.size for c in records for tree in encoder.trees(c))
    assert len(model.shapes) * R * T < 1.5 * tokens + R * T  # rows are filled


@pytest.mark.parametrize(
    ("count", "rows", "batches"), [(1, 1, 1), (5, 6, 1), (8, 8, 1), (9, 6, 2), (17, 6, 3), (23, 8, 3)]
)
def test_batches_are_equally_full(count, rows, batches):
    """A call that just exceeds a batch of eight rows does not run a second one of empty rows."""
    trees = [Tree.from_sequences([[5] * 400], [0.0]) for _ in range(count)]  # one a row
    shape = fitting_shape(trees, batch_tokens=8 * 512)
    assert shape == ForestShape(rows, 512, 1, 1)
    assert len(list(pack(trees, shape))) == batches


def test_a_batch_has_no_more_tokens_than_asked_for_where_rows_are_rounded_up():
    trees = [Tree.from_sequences([[5] * 400], [0.0]) for _ in range(7)]
    assert fitting_shape(trees, batch_tokens=7 * 512).rows == 7


def test_a_progress_bar_counts_groups(encoder, capsys):
    score(Model(), "params", encoder, some_records(5), 1024, progress=True)
    groups = sum(len(encoder.trees(c)) for c in some_records(5))
    assert f"{groups}/{groups}" in capsys.readouterr().err
    score(Model(), "params", encoder, some_records(5), 1024)
    assert capsys.readouterr().err == ""


def test_the_model_s_rewards_do_not_depend_on_the_batch_size(encoder, tiny_config, random_params):
    config = dataclasses.replace(tiny_config, vocab_size=encoder.tokenizer.vocab_size)
    head = np.random.default_rng(1).standard_normal((config.width, 1)).astype(np.float32) / config.width**0.5
    params = {"backbone": random_params(config, 0), "head": {"kernel": head}}
    rewards = jax.jit(lambda params, forest: RewardTransformer(config).apply({"params": params}, forest))
    records = some_records(6)
    small, large = (score(rewards, params, encoder, records, batch_tokens) for batch_tokens in (1, 2048))
    assert np.concatenate(small) == pytest.approx(np.concatenate(large), abs=1e-5)
    assert np.std(np.concatenate(small)) > 0.1

    (tree,) = encoder.trees(next(c for c in records if len(c.references) == 1))
    i = next(i for i, c in enumerate(records) if len(c.references) == 1)
    alone = rewards(params, fill(ForestShape(1, 256, 1, len(tree.branches)), [[tree]]))[0, 0]
    np.testing.assert_allclose(small[i], alone, atol=1e-5)


def test_a_reward_scorer_counts_what_it_cut(encoder):
    records = [Comparison("p", ("a" * 300, "b"), id="x"), Comparison("p", ("<reward>", "b"))]
    scorer = RewardScorer(Model(), "params", encoder)
    other = RewardScorer(Model(), "params", encoder)
    assert scorer.score(records) == score(Model(), "params", encoder, records, 4096)
    scorer.score(records)
    assert scorer.counts == {"cut": 2, "special_token_in_text": 2} and not other.counts


PAIR = Comparison("p q", ("q", "longer"), place="f:2")


def test_baselines_are_scorers():
    assert Baseline("shorter").score([PAIR]) == [[-1.0, -6.0]]
    assert Baseline("word_overlap").score([PAIR, PAIR]) == [[0.5, 0.0]] * 2
    with pytest.raises(ValueError, match="baseline 'shortest' does not exist; there are word_overlap, length, longer"):
        Baseline("shortest")


@pytest.mark.parametrize(
    ("combine", "wanted"),
    [("mean", [0.0, 0.0]), ("minimum", [-1.0, -6.0]), ("disagreement", [1.0, 6.0]), ("majority", [0.0, 0.0])],
)
def test_an_ensemble_combines_its_scorers(combine, wanted):
    ensemble = Ensemble([Baseline("longer"), Baseline("shorter")], combine)
    assert ensemble.score([PAIR]) == [wanted]
    assert ensemble.name == f"{combine} of longer, shorter" and not ensemble.counts


def test_a_majority_prefers_one_answer_to_every_other():
    three = Ensemble([Baseline("longer"), Baseline("longer"), Baseline("shorter")], "majority")
    assert three.score([PAIR]) == [[0.0, 1.0]]
    assert (
        COMBINATIONS["majority"](np.asarray([[3.0, 2, 1], [1, 3, 2], [2, 1, 3]])).tolist() == [0.0] * 3
    )  # a circle has no winner
    assert COMBINATIONS["majority"](np.asarray([[9.0, 2, 1], [1, 0, 2], [1, 0, 0]])).tolist() == [1.0, 0.0, 0.0]


def test_ensembles_that_cannot_be():
    with pytest.raises(ValueError, match="combine is 'max'; choose mean, minimum, disagreement, majority"):
        Ensemble([Baseline("longer")], "max")
    with pytest.raises(ValueError, match="no scorers; give one or more"):
        Ensemble([])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.0, float("inf")]], r"^f:2: a score is not finite \(\[0.0, inf\]\); the model is broken"),
        ([[0.0]], "^f:2: 2 outputs have 1 scores"),
        ([], "^1 comparisons have 0 lists of scores"),
    ],
)
def test_scores_that_do_not_fit_leave_no_scorer(scores, message):
    with pytest.raises(ScoreError, match=message):
        checked([PAIR], scores)
