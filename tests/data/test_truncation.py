"""POLAR's truncation against the rule written out again and numbers by hand, for training and for scoring."""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rmjax.data.formats import SCORED_TOGETHER, Encoder, Format
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from tests.data.encoding import (
    DEFAULT_FORMAT,
    FORM,
    REWARD,
    SPLIT,
    any_text,
    assert_specials_only_where_they_belong,
    paths,
    roomy,
    spelled,
    texts,
)

# --- truncation -------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def cut(tokenizer: Tokenizer, c: Comparison, row: int = 1000, **changes) -> list[str]:
    encoder = Encoder(tokenizer, dataclasses.replace(FORM, **changes), row)
    (found,) = texts(encoder, c)
    assert encoder.counts["cut"] == 1
    return found


def test_truncation_by_hand(one_byte):
    # Answers to 8; 40 − 4 − 8 − 8 = 20 for the prompt, which occurs twice: its last 10.
    c = Comparison(LETTERS, ("ABCDE", "ABCDEFGHIJKLMNOPQRST"), ("QRSTUVWXYZAB",))
    tail = "0123456789"
    assert cut(one_byte, c) == [
        f"{tail}\nQRSTUVWX{{<file_sep>}}{tail}\nABCDE{{<empty_output>}}",
        f"{tail}\nQRSTUVWX{{<file_sep>}}{tail}\nABCDEFGH{{<empty_output>}}",
    ]


def test_truncation_of_the_other_side_by_hand(one_byte):
    c = Comparison(LETTERS, ("ABCDE", "ABCDEFGHIJKLMNOPQRST"), ("QRSTUVWXYZAB",))
    tail = "0123456789"
    assert cut(one_byte, c, response_cut_side="left") == [
        f"{tail}\nUVWXYZAB{{<file_sep>}}{tail}\nABCDE{{<empty_output>}}",
        f"{tail}\nUVWXYZAB{{<file_sep>}}{tail}\nMNOPQRST{{<empty_output>}}",
    ]


def test_truncation_without_a_reference_by_hand(one_byte):
    # 40 − 4 − 8 = 28 for the prompt, which occurs once.
    assert cut(one_byte, Comparison(LETTERS, ("ABCDEFGHI",))) == [f"{LETTERS[-28:]}\nABCDEFGH{{<empty_output>}}"]


def test_long_answers_are_cut_where_the_whole_would_fit(one_byte):
    assert cut(one_byte, Comparison("P", ("ABCDEFGHI",), ("R",))) == ["P\nR{<file_sep>}P\nABCDEFGH{<empty_output>}"]


def test_one_long_and_one_short_answer_keep_their_length_where_the_prompt_has_room(one_byte):
    # 40 − 4 − 15 − 5 = 16: the prompt's last 8. Nothing of the answers has to go, however unequal they are.
    c = Comparison(LETTERS, ("ABCDE",), ("QRSTUVWXYZABCDE",))
    assert cut(one_byte, c, max_response_length=30) == [
        "23456789\nQRSTUVWXYZABCDE{<file_sep>}23456789\nABCDE{<empty_output>}"
    ]


@pytest.mark.parametrize(
    ("reference", "output", "kept"),
    [
        (LETTERS[:30], LETTERS[:30], (10, 10)),  # 36 − 2·8 = 20 for both
        (LETTERS[:30], LETTERS[:4], (16, 4)),  # a short one leaves its share to the long one
        (LETTERS[:4], LETTERS[:30], (4, 16)),
        (LETTERS[:18], LETTERS[:18], (10, 10)),  # 36: exactly the budget, where the official slice is [-0:]
    ],
)
def test_answers_that_exceed_the_budget_leave_some_of_the_prompt(one_byte, reference, output, kept):
    found = cut(one_byte, Comparison("#" * 20 + LETTERS, (output,), (reference,)), max_response_length=30)
    R, C = kept
    assert found == [f"23456789\n{reference[:R]}{{<file_sep>}}23456789\n{output[:C]}{{<empty_output>}}"]


def test_a_short_prompt_is_kept_whole_under_long_answers(one_byte):
    found = cut(one_byte, Comparison("P", (LETTERS[:30],), (LETTERS[:30],)), max_response_length=30)
    assert found == [f"P\n{LETTERS[:17]}{{<file_sep>}}P\n{LETTERS[:17]}{{<empty_output>}}"]  # (36 − 2) / 2


def test_a_group_longer_than_the_row_by_hand(one_byte):
    # 40 − 1 newline − 3 read-outs = 36, of which 8 are the prompt's: 11 + 11 + 5 of the answers, and 9 are left.
    c = Comparison(LETTERS[:30], ("A" * 20, "B" * 20, "C" * 5))
    prompt = LETTERS[21:30]
    assert cut(one_byte, c, row=40, max_length=1000, max_response_length=1000) == [
        f"{prompt}\n{answer}{{<empty_output>}}" for answer in ("A" * 11, "B" * 11, "C" * 5)
    ]


def test_a_group_with_reference_longer_than_the_row_by_hand(one_byte):
    # 60 − 2 − 2 = 56, less 16 for the prompt: 13 of each of three answers; (56 − 39) // 2 = 8.
    c = Comparison(LETTERS[:30], ("A" * 20, "B" * 20), ("R" * 20,))
    prompt = LETTERS[22:30]
    assert cut(one_byte, c, row=60, max_length=1000, max_response_length=1000) == [
        f"{prompt}\n{'R' * 13}{{<file_sep>}}{prompt}\n{answer * 13}{{<empty_output>}}" for answer in "AB"
    ]


@pytest.mark.parametrize(("row", "counted"), [(28, 0), (27, 1)])
def test_a_group_that_just_fits_its_row_is_left_whole(one_byte, row, counted):
    c = Comparison("prompt", ("abcd", "wxyz"), ("ref",))  # shared: 7 + 3 + 1 + 7; then twice 4 + 1
    encoder = Encoder(one_byte, dataclasses.replace(FORM, max_length=100, max_response_length=50), row)
    (tree,) = encoder.trees(c)
    assert encoder.counts["cut"] == counted
    assert tree.size <= row
    assert (tree.size == 28) == (not counted)


def official(c: Comparison, form: Format) -> tuple[int, list[str]]:
    """xtuner's truncation, written out again for one token a character: (room for the prompt, sequences)."""
    (reference,), m = c.references, form.max_response_length
    keep = (lambda text: text[:m]) if form.response_cut_side == "right" else (lambda text: text[-m:])
    reference, outputs = keep(reference), [keep(output) for output in c.outputs]
    room = min((form.max_length - 4 - len(reference) - len(output)) // 2 for output in outputs)
    prompt = c.prompt if len(c.prompt) <= room else c.prompt[-room:]
    return room, _sequences(prompt, reference, outputs, c.wrapper)


def _sequences(prompt: str, reference: str, outputs, wrapper: str) -> list[str]:
    def half(answer: str) -> str:
        return prompt + "\n" + answer if wrapper == "sft" and answer else prompt + answer

    return [f"{half(reference)}{{{SPLIT}}}{half(output)}{{{REWARD}}}" for output in outputs]


plain = st.integers(0, 45).flatmap(lambda n: st.text(st.sampled_from("abc \n"), min_size=n, max_size=n))


@settings(deadline=None, max_examples=300)
@given(
    prompt=plain,
    reference=plain,
    outputs=st.lists(plain, min_size=1, max_size=3),
    wrapper=st.sampled_from(["sft", "pretrain"]),
    side=st.sampled_from(["left", "right"]),
    max_length=st.integers(20, 120),
    response=st.integers(1, 45),
)
def test_truncation_is_the_official_one(one_byte, prompt, reference, outputs, wrapper, side, max_length, response):
    form = Format(SPLIT, REWARD, max_length, response, side)
    c = Comparison(prompt, tuple(outputs), (reference,), wrapper=wrapper)
    room, wanted = official(c, form)
    assume(room >= min(8, len(prompt)))  # less room is the guard's case
    whole = _sequences(prompt, reference, outputs, wrapper)
    overhead = len(f"{{{SPLIT}}}{{{REWARD}}}") - 2
    fits = max(map(len, whole)) - overhead <= max_length and max(map(len, (reference, *outputs))) <= response
    encoder = Encoder(one_byte, form, 1000)
    # Ours leaves whole what fits. Where newlines take their places of the 4 set aside, so does the official rule.
    assert texts(encoder, c) == [whole if fits else wanted]
    assert encoder.counts["cut"] == (not fits)
    if fits and wrapper == "sft" and reference and all(outputs):
        assert whole == wanted


def test_characters_of_several_bytes_are_not_cut_apart(one_byte):
    """What a cut would leave of a character goes as well (the official decoding leaves U+FFFD); the result still fits."""
    # "aé€🎉" has 1 + 2 + 3 + 4 bytes: 8 bytes would keep two of the last character's four.
    assert cut(one_byte, Comparison("P", ("aé€🎉",), ("R",)), max_length=60) == [
        "P\nR{<file_sep>}P\naé€{<empty_output>}"
    ]
    for room in range(20, 80):
        encoder = Encoder(one_byte, Format(SPLIT, REWARD, room, 16), 200)
        (tree,) = encoder.trees(Comparison("🎉€é" * 10, ("é€🎉" * 5, "x"), ("🎉" * 9,)))
        assert max(map(len, paths(tree))) <= room
        assert_specials_only_where_they_belong(one_byte, tree, references=True)
        assert not any("\ufffd" in spelled(one_byte, ids) for ids in paths(tree))


def test_smollm2_truncation_keeps_heads_of_answers_and_the_tail_of_the_prompt(smollm2_tokenizer):
    words = [f"word{i}" for i in range(2000)]
    form = dataclasses.replace(DEFAULT_FORMAT, max_length=256, max_response_length=64)
    prompt, reference, output = " ".join(words), " ".join(words[:200]), " ".join(words[100:300])
    (text,) = cut(smollm2_tokenizer, Comparison(prompt, (output,), (reference,)), **dataclasses.asdict(form))
    first, second = text.removesuffix("{<empty_output>}").split("{<file_sep>}")
    (before, ours), (again, theirs) = first.split("\n"), second.split("\n")
    assert before == again and prompt.endswith(before) and reference.startswith(ours) and output.startswith(theirs)
    lengths = [len(smollm2_tokenizer.encode(part)) for part in (before, ours, theirs)]
    assert lengths[1:] == [64, 64]
    assert 256 - 16 < 2 * lengths[0] + 128 <= 256


def test_candidates_that_can_never_fit_a_row_are_an_error_that_names_the_place(one_byte):
    encoder = Encoder(one_byte, FORM, row_tokens=10)
    with pytest.raises(ValueError, match=r"file.jsonl:7: 9 candidates cannot fit a row of 10 tokens; raise row_tokens"):
        encoder.trees(Comparison("P", tuple(LETTERS[:9]), place="file.jsonl:7"))


# --- scoring ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    prompt=any_text,
    references=st.lists(any_text, max_size=2),
    outputs=st.lists(any_text, min_size=1, max_size=20),
    wrapper=st.sampled_from(["sft", "pretrain"]),
    max_length=st.integers(30, 80),
    response=st.integers(1, 40),
    row=st.integers(80, 200),
)
def test_for_scoring_each_candidate_is_as_if_alone(
    merging, prompt, references, outputs, wrapper, max_length, response, row
):
    """Cut or not, and however many candidates there are: the sequence depends on nothing else in the record."""
    encoder = Encoder(merging, Format(SPLIT, REWARD, max_length, response), row)
    c = Comparison(prompt, tuple(outputs), tuple(references), wrapper=wrapper)
    found = []
    for members, tree in encoder.scoring_trees(c, record=3):
        assert tree.size <= row and len(members) == len(tree.branches) <= SCORED_TOGETHER and tree.record == 3
        found += [(n, ids) for outputs, ids in zip(members, paths(tree), strict=True) for n in outputs]
    alone = [
        (n, paths(encoder.trees(dataclasses.replace(c, outputs=(output,), references=given))[0])[0])
        for given in ([(reference,) for reference in references] or [()])
        for n, output in enumerate(outputs)
    ]
    assert sorted(found) == sorted(alone)


def test_for_scoring_candidates_share_what_they_can(one_byte):
    encoder = roomy(one_byte)
    c = Comparison("prompt", tuple(LETTERS[:20]), ("reference",))
    assert [members for members, _ in encoder.scoring_trees(c)] == [
        [[n] for n in range(16)],
        [[n] for n in range(16, 20)],
    ]
    assert not +encoder.counts


def test_for_scoring_one_cut_candidate_leaves_the_others_whole(one_byte):
    encoder = Encoder(one_byte, FORM, 200)
    trees = encoder.scoring_trees(Comparison("prompt", ("short", "a long answer", "fine"), ("ref",)))
    found = {
        n: spelled(one_byte, ids) for members, tree in trees for (n,), ids in zip(members, paths(tree), strict=True)
    }
    halves = ("prompt\nshort", "prompt\na long a", "prompt\nfine")
    assert found == {n: f"prompt\nref{{<file_sep>}}{half}{{<empty_output>}}" for n, half in enumerate(halves)}
    assert [members for members, _ in trees] == [[[0], [1], [2]]]  # cut alone, run together
    assert encoder.counts == {"cut": 1}
