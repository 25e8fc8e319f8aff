import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.data.record import Comparison
from rmjax.evaluate.baselines import jaccard, length, longer, of_preferences, shorter, word_overlap, words


def test_words_are_lower_cased_runs_of_word_characters():
    assert words("It's 3.5 MÜNCHEN-west, it_s") == {"it", "s", "3", "5", "münchen", "west", "it_s"}


def test_jaccard():
    assert jaccard(words("a b c"), words("b c d")) == pytest.approx(2 / 4)
    assert jaccard(words("..."), words("")) == 1.0
    assert jaccard(words("a"), words("")) == 0.0


def test_length_prefers_the_reference_length_if_there_is_one():
    outputs = ("x" * 10, "x" * 100)
    assert length(Comparison("p", outputs)) == [10, 100]
    assert length(Comparison("p", outputs, references=("y" * 12,))) == [-2, -88]
    assert length(Comparison("p", outputs, references=("y" * 12, "y" * 99))) == [-2, -1]
    assert longer(Comparison("p", outputs, references=("y" * 12,))) == [10, 100]
    assert shorter(Comparison("p", outputs, references=("y" * 12,))) == [-10, -100]


def test_longer_is_shown_where_length_is_something_else():
    rows = [Comparison("p", ("a", "b")), Comparison("p", ("a", "b"), references=("r",))]
    assert of_preferences(rows[:1]) == ("word_overlap", "length", "shorter")
    assert of_preferences(rows) == ("word_overlap", "length", "longer", "shorter")


def test_word_overlap_is_with_the_nearest_reference_else_with_the_prompt():
    outputs = ("red blue", "green")
    assert word_overlap(Comparison("green?", outputs)) == [0, 1]
    one = Comparison("green?", outputs, references=("Blue, red!",))
    assert word_overlap(one) == [1, 0]
    two = Comparison("green?", outputs, references=("nothing", "red"))
    assert word_overlap(two) == [0.5, 0]


@given(st.text(max_size=30), st.text(max_size=30))
def test_jaccard_properties(first, second):
    score = jaccard(words(first), words(second))
    assert 0 <= score <= 1
    assert score == jaccard(words(second), words(first))
    assert jaccard(words(first), words(first)) == 1
