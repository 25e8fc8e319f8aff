"""What of an output is read, and rules on length and form."""

import pytest

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Verified
from rmjax.rewards.texts import Matches, Overlong, Reading, within, without_thinking


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>2 + 2\nis 4</think>\n#### 4", "#### 4"),
        ("  <think></think>4", "4"),
        ("2 is even</think> 4", "4"),  # the template had opened the block
        ("<think>still thinking #### 4", ""),
        ("4", "4"),
        ("I say <think>a</think> b", "I say <think>a</think> b"),
        ("<think>a</think>b</think>c", "b</think>c"),
        ("", ""),
    ],
)
def test_a_block_of_thinking_is_taken_off(text, wanted):
    assert without_thinking(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<answer> 4 </answer>", "4"),
        ("<answer>3</answer> no, <answer>4\n5</answer>", "4\n5"),
        ("<answer>3<answer>4</answer>", "4"),
        ("<answer>4", ""),
        ("4", ""),
    ],
)
def test_what_stands_in_a_tag(text, wanted):
    assert within("answer")(text) == wanted


def test_a_reward_reads_texts_and_no_ids():
    seen = []

    def verify(prompt, output, references):
        return float(len(output))

    class Spy:
        name = "spy"

        def __call__(self, records):
            seen.extend(records)
            return Verified("length", verify)(records)

    c = Comparison("p", ("<think>a</think>bc",), columns={"token_ids": ((1, 2),)})
    assert Reading(Spy(), without_thinking)([c]) == [[2.0]] and Reading(Spy(), without_thinking).name == "spy"
    assert seen[0].columns == {} and c.outputs == ("<think>a</think>bc",)


def test_long_answers_lose_up_to_1():
    rule = Overlong(longest=10, buffer=4)
    assert [rule("", "x" * n, ()) for n in (0, 6, 8, 10, 99)] == [0, 0, -0.5, -1, -1]
    assert Overlong(2, 1, measure=lambda text: len(text.split()))("", "a b c", ()) == -1
    with pytest.raises(ValueError, match="want 0 < buffer <= longest"):
        Overlong(longest=3, buffer=4)


def test_a_form_is_matched_whole():
    rule = Matches(r"<think>.*</think>.+")
    assert [rule("", text, ()) for text in ("<think>a\nb</think>c", "x<think></think>c", "<think></think>")] == [
        1,
        0,
        0,
    ]
    with pytest.raises(ValueError, match="not a regular expression"):
        Matches("(")
