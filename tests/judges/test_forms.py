"""rmjax/judges/forms.py: replies are read strictly, and why one cannot be read has a name."""

import pytest

from rmjax.judges.forms import EQUAL, Form, Unread, json_objects

LETTERS = ("A=first", "B=second", f"C={EQUAL}")
BRACKETS = Form(choices=LETTERS)
LAST = Form("last_line", "Verdict:", LETTERS)
JSON = Form("json", "better", LETTERS)


@pytest.mark.parametrize(
    ("form", "reply", "said"),
    [
        (BRACKETS, "The first is right. [[A]]", "first"),
        (BRACKETS, "[[B]] … so again [[B]]", "second"),
        (BRACKETS, "[[C]]", EQUAL),
        (BRACKETS, "<think>[[A]] or [[B]]?</think>\n[[ B ]]", "second"),
        (LAST, "A is long.\n\nVerdict: B\n\n", "second"),
        (JSON, 'So:\n```json\n{"better": "A", "why": "{brief}"}\n```', "first"),
    ],
)
def test_a_choice_is_read(form, reply, said):
    assert form.choice(reply) == said


@pytest.mark.parametrize(
    ("form", "reply", "reason"),
    [
        (BRACKETS, "", "empty reply"),
        (BRACKETS, "<think>[[A]]", "empty reply"),
        (BRACKETS, "The first answer is better.", "no verdict"),
        (BRACKETS, "[A]", "no verdict"),
        (BRACKETS, "[[A]] or rather [[B]]", "several verdicts"),
        (BRACKETS, "[[both]]", "says both"),
        (BRACKETS, "[[Neither]]", "says neither"),
        (BRACKETS, "[[A>B]]", "a verdict that is no choice"),
        (BRACKETS, "[[a]]", "a verdict that is no choice"),
        (LAST, "Verdict: A\nThat is all.", "no verdict"),
        (LAST, "Verdict: A because it is short", "a verdict that is no choice"),
        (JSON, "A", "no JSON object"),
        (JSON, '{"better": "A"} {"better": "B"}', "several JSON objects"),
        (JSON, '{"worse": "A"}', "a JSON object without the field"),
        (JSON, '{"better": ["A"]}', "a verdict that is no choice"),
        (JSON, '{"better": "A", "better": "B"}', "no JSON object"),
    ],
)
def test_what_is_no_choice_has_a_reason(form, reply, reason):
    assert form.choice(reply) == Unread(reason)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[7]]", 7.0),
        ("[[ 7.5 ]]", 7.5),
        ("[[11]]", Unread("number out of range")),
        ("[[-1]]", Unread("number out of range")),
        ("[[nan]]", Unread("no number")),
        ("[[1e1]]", Unread("no number")),
        ("[[7/10]]", Unread("no number")),
        ("[[7]] and [[8]]", Unread("several verdicts")),
        ("7", Unread("no verdict")),
    ],
)
def test_numbers(reply, value):
    assert Form().number(reply) == value


def test_whole_numbers_and_json_numbers():
    form = Form("json", "score", low=0, high=1, whole=True)
    assert form.number('{"score": 1}') == 1.0
    assert form.number('{"score": 0.5}') == Unread("not a whole number")
    assert form.number('{"score": true}') == Unread("no number")
    assert form.number('{"score": "1"}') == 1.0


def test_json_objects_are_the_outermost_ones():
    assert json_objects('x {"a": {"b": 1}} {broken {"c": 2}} {"d": 3}') == [{"a": {"b": 1}}, {"d": 3}]
    assert json_objects('{"why": {"better": "A"}, "better": ') == []
    assert json_objects('{"a": NaN}') == []


@pytest.mark.parametrize("form", [BRACKETS, LAST, JSON])
@pytest.mark.parametrize("meaning", ["first", "second", EQUAL])
def test_a_written_choice_is_read_again(form, meaning):
    assert form.choice(form.written(meaning)) == meaning


def test_forms_that_cannot_be():
    with pytest.raises(ValueError, match=r"form.place is 'top'; choose brackets, last_line, json"):
        Form("top")
    with pytest.raises(ValueError, match="low < high"):
        Form(low=5, high=5)
    with pytest.raises(ValueError, match="form.choices has 'A'; write WRITTEN=MEANING"):
        Form(choices=("A",))
