"""rmjax/judges/spec.py and templates.py: prompts are files, and what is wrong in one is named."""

import pytest

from rmjax.data.messages import Conversation, Message
from rmjax.judges.spec import FIELDS, load_spec
from rmjax.judges.templates import Template, conversation, turns

PAIRWISE = 'prompt = "{{ prompt }} {{ answer_a }} {{ answer_b }}"\n[form]\nchoices = ["A=first", "B=second"]\n'


@pytest.mark.parametrize("kind", FIELDS)
def test_a_judge_of_each_kind_ships(kind):
    spec = load_spec(kind)
    assert spec.rules.kind == kind and spec.name == kind
    criteria = [{"name": c.name, "text": c.text} for c in spec.criteria]
    fields = dict.fromkeys(FIELDS[kind], "X") | {"turns": turns("p"), "criteria": criteria, "reference": ""}
    assert "X" in spec.prompt.render(**fields) and "comparison" not in spec.prompt.render(**fields)
    assert "comparison" in spec.prompt.render(**{**fields, "reference": "r"})


def test_what_an_answer_says_is_never_rendered():
    assert Template("{{ answer }}").render(answer="{{ 7 * 6 }} {% if x %}") == "{{ 7 * 6 }} {% if x %}"


def test_a_file_is_read(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('votes = 3\ninconsistent = "votes"\n' + PAIRWISE)
    spec = load_spec(file)
    assert (spec.rules.votes, spec.rules.inconsistent, spec.name) == (3, "votes", str(file))
    assert spec.form.meanings == {"A": "first", "B": "second"}
    file.write_text("votes = 4\n" + PAIRWISE)
    assert load_spec(file).fingerprint != spec.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt = ", "no TOML"),
        ("votes = 1", "`prompt` is missing; give a template"),
        ("prompt = 3", "`prompt` is no text"),
        ('prompt = "{{ answer_a }}"', "prompt does not read `answer_b`; write {{ answer_b }}"),
        ('prompt = "{{ answer }}"', "prompt reads `answer`, which does not exist; there are answer_a, answer_b, "),
        ('prompt = "{% if %}"', "prompt, line 1: "),
        (PAIRWISE.replace("second", "third"), "form.choices mean 'third'; write first, second or equal"),
        (PAIRWISE.replace(', "B=second"', ""), "form.choices lack first or second"),
        ("vote = 1\n" + PAIRWISE, "vote does not exist; did you mean `votes`?"),
        ("votes = 0\n" + PAIRWISE, "votes is 0; it must be 1 or more"),
        ('kind = "rubric"\nprompt = "{{ answer }}"', "criteria have the names []; give one [[criteria]] or more"),
        ('kind = "rubric"\nprompt = "{{ answer }}"\ncriteria = 3', "criteria is no list of tables"),
        (PAIRWISE.replace("[form]", '[form]\nplace = "top"'), "form.place is 'top'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        load_spec(file)
    assert message in str(error.value) and "mine.toml" in str(error.value)


def test_a_name_that_does_not_ship():
    with pytest.raises(FileNotFoundError, match="one that ships: checklist, .*pairwise"):
        load_spec("nothing")


def test_conversations():
    assert conversation("", "hello") == "hello"
    asked = Conversation([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    assert [turn["role"] for turn in turns(asked)] == ["user", "assistant", "user"]
    assert conversation("be fair", "hello") == Conversation([Message("system", "be fair"), Message("user", "hello")])
