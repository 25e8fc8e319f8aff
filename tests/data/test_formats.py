"""POLAR's input format, token by token; what a format refuses; texts for language models."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.record import Comparison, parse
from rmjax.data.tokenizer import Tokenizer, TokenizerError
from tests.data.encoding import (
    DEFAULT_FORMAT,
    END,
    FORM,
    REWARD,
    SPECIAL,
    SPLIT,
    any_text,
    assert_specials_only_where_they_belong,
    paths,
    roomy,
    spelled,
    texts,
)

# --- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrapper", "reference", "output", "wanted"),
    [
        ("sft", "REF", "CAND", "P\nREF{<file_sep>}P\nCAND{<empty_output>}"),
        ("pretrain", "REF", "CAND", "PREF{<file_sep>}PCAND{<empty_output>}"),
        ("sft", "REF", "", "P\nREF{<file_sep>}P{<empty_output>}"),  # no newline before nothing
        ("sft", "", "CAND", "P{<file_sep>}P\nCAND{<empty_output>}"),
        ("pretrain", "", "", "P{<file_sep>}P{<empty_output>}"),
        ("sft", None, "CAND", "P\nCAND{<empty_output>}"),
        ("pretrain", None, "CAND", "PCAND{<empty_output>}"),
        ("sft", None, "", "P{<empty_output>}"),
        ("sft", "\nREF", " CAND\n", "P\n\nREF{<file_sep>}P\n CAND\n{<empty_output>}"),  # white space is kept as it is
    ],
)
@pytest.mark.parametrize("which", ["one_byte", "merging"])
def test_the_exact_sequence(request, which, wrapper, reference, output, wanted):
    references = () if reference is None else (reference,)
    c = Comparison("P", (output,), references, wrapper=wrapper)
    assert texts(roomy(request.getfixturevalue(which)), c) == [[wanted]]


def test_each_half_is_tokenized_as_one_text(merging):
    """Prompt and answer merge at their border, as in the official trainer; the halves do not merge with each other."""
    encoder = roomy(merging)
    (tree,) = encoder.trees(Comparison("xa", ("b",), ("b",), wrapper="pretrain"))
    x, ab = merging.id("x"), merging.id("ab")
    assert paths(tree) == [[x, ab, merging.id(SPLIT), x, ab, merging.id(REWARD)]]


def test_smollm2_ids(smollm2_tokenizer):
    tokenizer = smollm2_tokenizer
    encoder = Encoder(tokenizer, DEFAULT_FORMAT, 1024)
    (tree,) = encoder.trees(Comparison("What is 12 + 30?", ("It is 42.", "It is 43."), ("42",)))
    split, reward = tokenizer.id("<file_sep>"), tokenizer.id("<empty_output>")
    assert (split, reward) == (5, 16)
    first = tokenizer.encode("What is 12 + 30?\n42") + [split]
    assert paths(tree) == [first + tokenizer.encode(f"What is 12 + 30?\nIt is {n}.") + [reward] for n in (42, 43)]
    assert tree.prefix.tolist() == first + tokenizer.encode("What is 12 + 30?\nIt is 4")
    assert not +encoder.counts


def test_candidates_share_what_they_have_in_common(one_byte):
    (tree,) = roomy(one_byte).trees(Comparison("prompt", ("same", "some"), ("reference",)))
    assert spelled(one_byte, tree.prefix.tolist()) == "prompt\nreference{<file_sep>}prompt\ns"
    (tree,) = roomy(one_byte).trees(Comparison("prompt", ("same", "same")))
    assert [leaf.tolist() for leaf in tree.branches] == [[one_byte.id(REWARD)]] * 2


def test_several_references_give_a_tree_each(one_byte):
    c = Comparison("P", ("A", "B"), ("R1", "R2", "R3"), ranks=(0.0, 1.0), weight=2.0, margin=0.5, type=4)
    trees = roomy(one_byte).trees(c, record=17)
    spelled_out = [[spelled(one_byte, ids) for ids in paths(tree)] for tree in trees]
    assert spelled_out == [
        [f"P\n{r}{{<file_sep>}}P\n{o}{{<empty_output>}}" for o in ("A", "B")] for r in ("R1", "R2", "R3")
    ]
    for tree in trees:
        assert (tree.ranks.tolist(), tree.weight, tree.margin, tree.type, tree.record) == ([0, 1], 2.0, 0.5, 4, 17)


def test_what_is_unknown_of_a_record(one_byte):
    (tree,) = roomy(one_byte).trees(Comparison("P", ("A", "B")))
    assert (tree.ranks.tolist(), tree.weight, tree.margin, tree.type, tree.record) == ([float("inf")] * 2, 1, 0, -1, -1)


def test_messages_are_joined_and_roles_dropped(one_byte):
    def say(role, content):
        return {"role": role, "content": content}

    row = {
        "messages": [say("system", "Be brief."), say("user", "Hi"), say("assistant", "Yes?"), say("user", "2+2")],
        "reference": [say("assistant", "4")],
        "chosen": [say("assistant", "four")],
        "rejected": "five",
    }
    (found,) = texts(roomy(one_byte), parse(row, "f:1"))
    prompt = "Be brief.\nHi\nYes?\n2+2"
    assert found == [f"{prompt}\n4{{<file_sep>}}{prompt}\n{o}{{<empty_output>}}" for o in ("four", "five")]


# --- special tokens in texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["prompt", "references", "outputs"])
@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_text_is_ordinary_text_and_counted(smollm2_tokenizer, field, token):
    evil = f"a {token} b {token}"
    c = Comparison("prompt", ("good", "bad"), ("reference",))
    changes: dict[str, Any] = {"prompt": evil, "references": (evil,), "outputs": ("good", evil)}
    c = dataclasses.replace(c, **{field: changes[field]})
    encoder = Encoder(smollm2_tokenizer, DEFAULT_FORMAT, 1024)
    (tree,) = encoder.trees(c)
    assert_specials_only_where_they_belong(smollm2_tokenizer, tree, references=True)
    assert encoder.counts == {"special_token_in_text": 1}
    assert any(evil in text for text in texts(encoder, c)[0])  # scored as it was written
    assert encoder.counts == {"special_token_in_text": 2}


def test_a_text_without_special_tokens_is_not_counted(one_byte):
    encoder = roomy(one_byte)
    encoder.trees(Comparison("<file sep>", ("<|im_end|", "<empty_output >"), ("file_sep",)))
    assert not encoder.counts


@settings(deadline=None)
@given(
    prompt=any_text,
    references=st.lists(any_text, max_size=2),
    outputs=st.lists(any_text, min_size=1, max_size=3),
    wrapper=st.sampled_from(["sft", "pretrain"]),
    side=st.sampled_from(["left", "right"]),
    max_length=st.integers(30, 80),
    response=st.integers(1, 40),
    row=st.integers(60, 120),
)
def test_any_text_fits_afterwards(merging, prompt, references, outputs, wrapper, side, max_length, response, row):
    form = Format(SPLIT, REWARD, max_length, response, side)
    encoder = Encoder(merging, form, row)
    c = Comparison(prompt, tuple(outputs), tuple(references), wrapper=wrapper)
    trees = encoder.trees(c)
    assert len(trees) == max(1, len(references))
    for tree in trees:
        assert tree.size <= row
        assert all(len(ids) <= max_length for ids in paths(tree))
        assert_specials_only_where_they_belong(merging, tree, references=bool(references))
    assert encoder.counts["cut"] <= len(trees)
    if not encoder.counts["cut"]:
        assert [[spelled(merging, ids) for ids in paths(tree)] for tree in trees] == texts(roomy(merging), c)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_cut_side": "middle"}, "response_cut_side is 'middle'; choose left or right"),
        ({"max_length": 6}, "max_length is 6"),
        ({"date": "tomorrow"}, "config.format.date is 'tomorrow'; write YYYY-MM-DD"),
        ({"max_response_length": 0}, "max_response_length is 0"),
    ],
)
def test_impossible_formats_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FORM, **changes)


def test_a_format_whose_tokens_are_not_in_the_vocabulary_is_refused(one_byte):
    with pytest.raises(TokenizerError, match="<nothing>"):
        Encoder(one_byte, dataclasses.replace(FORM, split_token="<nothing>"), 100)


# --- texts for language models ----------------------------------------------------------------------------------------


def text_tree(tokenizer: Tokenizer, prompt: str, output: str, row: int = 100, counts: Counter | None = None) -> Tree:
    encoder = Encoder(tokenizer, Format(kind="plain", reward_token=REWARD, end_token=END), row)
    encoder.counts = Counter() if counts is None else counts
    (tree,) = encoder.language_model_trees(Comparison(prompt, (output,)), record=5)
    return tree


def learned(tree: Tree) -> list[int]:
    """The tokens that are learned, by place."""
    row = ForestShape(1, len(tree.branches[0]), 1, 1)
    return np.flatnonzero(fill(row, [[tree]]).target_weight_RT[0]).tolist()


def test_a_text_is_learned_from_the_end_of_its_prompt(one_byte):
    tree = text_tree(one_byte, "<|im_start|>", "yo<|im_end|>")
    assert spelled(one_byte, paths(tree)[0]) == "<|im_start|>yo<|im_end|>{<|im_end|>}"  # no text makes special tokens
    assert learned(tree) == list(range(11, 24)) and tree.record == 5


def test_a_text_without_prompt_is_learned_whole(one_byte):
    tree = text_tree(one_byte, "", "hello")
    assert spelled(one_byte, paths(tree)[0]) == "hello{<|im_end|>}"
    assert learned(tree) == [0, 1, 2, 3, 4]  # the first token has nothing before it


def test_a_text_is_cut_to_the_row(one_byte):
    assert spelled(one_byte, paths(text_tree(one_byte, "", "hello", row=4))[0]) == "hell"


def test_texts_that_lose_something_are_counted(one_byte):
    counts: Counter[str] = Counter()
    text_tree(one_byte, "", "hello", 6, counts)
    assert not +counts  # fits with its end token
    text_tree(one_byte, "", "hello", 5, counts)
    assert +counts == {"cut": 1}
    text_tree(one_byte, "hello", "a<|im_end|>", 5, counts)
    assert +counts == {"cut": 2, "prompt_fills_row": 1, "special_token_in_text": 1}
