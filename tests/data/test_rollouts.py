"""Answers as trees: the prompt once, every token of an answer trained, what was recorded at its own token."""

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax.data.formats import Encoder, Format
from rmjax.data.record import Comparison, RecordError, parse
from rmjax.data.rollouts import answers, per_token, trees
from rmjax.data.tokenizer import Tokenizer

SPECIAL = ["<empty_output>", "<end>", "<stop>"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer, Format(kind="plain", reward_token="<empty_output>", end_token="<end>"), 64)


def ids(tokenizer, text, end=""):
    return tokenizer.encode(text) + ([tokenizer.id(end)] if end else [])


def test_an_answer_ends_with_the_end_token_unless_it_was_cut_off(tokenizer, encoder):
    c = Comparison("Q", ("ab", "", "ab"), columns={"truncated": (0, 0, 1)})
    wanted = [ids(tokenizer, "ab", "<end>"), ids(tokenizer, "", "<end>"), ids(tokenizer, "ab")]
    assert answers(encoder, c).prompt == ids(tokenizer, "Q") and answers(encoder, c).outputs == wanted


def test_tokens_that_were_drawn_are_kept_whatever_their_text_would_give(tokenizer, encoder):
    """Another stop token than the format's is one, too."""
    drawn = (tuple(ids(tokenizer, "b", "<stop>")), (tokenizer.id("<end>"),))
    assert answers(encoder, Comparison("Q", ("ab", ""), columns={"token_ids": drawn})).outputs == [*map(list, drawn)]


@pytest.mark.parametrize(
    ("columns", "output", "message"),
    [
        ({"truncated": (1,)}, "", r"`outputs\[0\]`.*no token to learn from"),
        ({"token_ids": ((),)}, "a", r"`token_ids\[0\]`.*no token to learn from"),
        ({"token_ids": ((5, 10**6),)}, "a", "an id that the vocabulary lacks"),
    ],
)
def test_answers_without_usable_tokens_are_refused(encoder, columns, output, message):
    with pytest.raises(RecordError, match=message):
        answers(encoder, Comparison("Q", (output,), place="f:1", columns=columns))


def test_a_list_of_another_length_is_refused(encoder):
    c = Comparison("Q", ("ab", "c"), columns={"log_probs": ((-1.0, -2.0, -3.0), (-1.0,))}, place="f:7")
    with pytest.raises(RecordError, match=r"f:7.*`log_probs\[1\]`.*1 for 2 tokens"):
        per_token(c, answers(encoder, c), ["log_probs", "values"])


def laid_out(encoder, row_tokens=64, branches=4):
    c = Comparison("Quest", ("ab", "ac", "abc"), columns={"log_probs": ((1, 2, 3), (4, 5, 6), (7, 8, 9, 10))})
    found = answers(encoder, c)
    tokens = per_token(c, found, ["log_probs"])
    return trees(found, tokens, {"reward_RGN": [0.1, 0.2, 0.3]}, row_tokens, branches, record=3, weight=2.0)


def test_answers_that_begin_alike_share_the_prompt_and_nothing_else(tokenizer, encoder):
    (tree,) = laid_out(encoder)
    assert tree.prefix.tolist() == ids(tokenizer, "Quest")
    assert [branch.tolist() for branch in tree.branches] == [
        ids(tokenizer, text, "<end>") for text in ("ab", "ac", "abc")
    ]
    assert [values.tolist() for values in tree.columns["behavior_RT"]] == [
        [0] * 5 + [1, 2, 3], [0] * 5 + [4, 5, 6], [0] * 5 + [7, 8, 9, 10],
    ]  # fmt: skip
    assert (tree.record, tree.weight) == (3, 2.0)


@pytest.mark.parametrize(
    ("row_tokens", "branches", "sizes"), [(64, 2, [2, 1]), (12, 4, [2, 1]), (10, 4, [1, 1, 1]), (64, 1, [1, 1, 1])]
)
def test_a_group_is_spread_over_trees_and_keeps_what_is_known_of_each(encoder, row_tokens, branches, sizes):
    found = laid_out(encoder, row_tokens, branches)
    assert [len(tree.branches) for tree in found] == sizes
    assert np.concatenate([tree.columns["reward_RGN"] for tree in found]).tolist() == [0.1, 0.2, 0.3]


def test_a_policy_may_say_nothing_where_that_is_allowed():
    row = {"prompt": "Q", "outputs": ["a", ""], "rewards": [1, 0]}
    assert parse(row, "f:1", blank=True).outputs == ("a", "")
    with pytest.raises(RecordError, match="empty text"):
        parse(row, "f:1")
