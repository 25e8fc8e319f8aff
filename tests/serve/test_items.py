"""Items → sequences: a text that is laid out already has the tokens of its record; what cannot be scored says why."""

import dataclasses

import pytest

from rmjax.data.record import parse
from rmjax.data.turns import Turns
from rmjax.serve.engine import Engine
from rmjax.serve.items import Encoded, Record, Text, Tokens, key
from tests.serve.conftest import END, FORMATS, REWARD, SPECIAL, SPLIT, model_of

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def encode(engines):
    encodings = {kind: engine.encoding(cut=False) for kind, engine in engines.items()}
    return lambda kind, item: encodings[kind].encode(item)


def record(**row):
    return Record({"prompt": "2 + 2?", "output": "4", **row}, "it")


@pytest.mark.parametrize(
    ("kind", "text", "row"),
    [
        ("polar", f"2 + 2?\nfour{SPLIT}2 + 2?\n4{REWARD}", {"reference": "four"}),
        ("polar", f"2 + 2?\nfour{SPLIT}2 + 2?\n4", {"reference": "four"}),
        ("polar", f"2 + 2?\n4{REWARD}", {}),
        ("plain", "2 + 2?\n4", {}),
        ("plain", f"a{SPLIT}b\n4", {"prompt": f"a{SPLIT}b"}),
        ("chat", f"{USER}2 + 2?{END}\n{ASSISTANT}4{END}\n", {}),
        ("chat", f"{USER}2 + 2?{END}\n{ASSISTANT}4{END}", {}),
        ("chat", f"{USER}2 + 2?{END}\n{ASSISTANT}4", {}),
    ],
)
def test_a_text_in_the_models_format_is_its_record(encode, kind, text, row):
    assert encode(kind, Text(text, "it")).sequences == encode(kind, record(**row)).sequences


@pytest.mark.parametrize("given", [USER, USER.removeprefix("<|im_start|>")])
def test_a_bos_that_a_client_took_off_is_put_back(given):
    form = dataclasses.replace(FORMATS["chat"], bos_token="<|im_start|>")  # SmolLM2's; verl takes it off
    encoding = Engine.of(model_of(form, SPECIAL), batch_tokens=512).encoding(cut=False)
    text = f"{given}2 + 2?{END}\n{ASSISTANT}4{END}\n"
    assert encoding.encode(Text(text, "it")).sequences == encoding.encode(record()).sequences


@pytest.mark.parametrize("kind", ["polar", "plain", "chat"])
def test_token_ids_are_taken_as_they_are(encode, engines, kind):
    ids = engines[kind].encoder.scored(parse(record().row, ""))[0][0].ids
    assert encode(kind, Tokens(tuple(ids), "it")).sequences == ((key(ids),),)
    assert "does not end with the token" in str(encode(kind, Tokens(tuple(ids[:-1]), "it")))
    assert "token id 9999" in str(encode(kind, Tokens((9999, ids[-1]), "it")))


@pytest.mark.parametrize(
    ("kind", "item", "status", "said"),
    [
        ("polar", Text(f"a{SPLIT}b{SPLIT}c", "it"), 400, "it: the text has 2 separators '<file_sep>'"),
        ("chat", Text("2 + 2? 4", "it"), 400, "it: the text has none of the special tokens"),
        ("chat", Text("<s>[INST] 2 + 2? [/INST] 4", "it"), 400, "it: the text has none of the special tokens"),
        ("polar", Text("  ", "it"), 400, "it is empty"),
        ("polar", Text("x" * 200, "it"), 413, "it has 201 tokens, and the server takes 128"),
        ("polar", record(output="x" * 60), 413, "it has 68 tokens with one of its answers"),
        (
            "polar",
            Text("x" * 5000, "it"),
            413,
            "it has 5000 characters in 1 texts or turns, far more than the 128 tokens",
        ),
        ("chat", record(prompt="x" * 5000), 413, "it has 5001 characters in 2 texts"),
        ("polar", record(prompt=7), 400, "it: field `prompt`"),
        ("polar", Record({"prompt": "a"}, "it"), 400, "it: field `outputs`: missing"),
        ("polar", record(reference="a", references=["b"]), 400, "exclude each other"),
        (
            "chat",
            Record({"messages": [{"role": "user", "content": "a"}]}, "it"),
            400,
            "does not end with a turn of the",
        ),
    ],
)
def test_what_cannot_be_scored(encode, kind, item, status, said):
    refused = encode(kind, item)
    assert said in str(refused) and refused.status == status


TURNS = [{"role": role, "content": "a"} for _ in range(40) for role in ("user", "assistant")]


def test_how_to_cut_is_not_found_out_where_too_long_is_refused(encode, monkeypatch):
    monkeypatch.setattr(Turns, "cut", lambda *_: pytest.fail("cut"))
    assert encode("chat", Record({"messages": TURNS}, "it")).status == 413
    assert "has 160 characters in 160 texts or turns" in str(encode("chat", Record({"messages": TURNS * 2}, "it")))


def test_too_long_records_are_cut_where_the_server_may(engines):
    cut = engines["polar"].encoding(cut=True).encode(record(output="x" * 60))
    assert cut.truncated == (True,) and len(cut.sequences[0][0]) == 4 * cut.tokens[0]
    assert cut.tokens[0] < 68


def test_several_answers_and_references(encode):
    found = encode("polar", Record({"prompt": "a", "outputs": ["b", "cd"], "references": ["e", "fg"]}, "it"))
    assert [len(row) for row in found.sequences] == [2, 2]
    # a, newline, reference, separator, a, newline, answer, reward token: of both references
    assert found.tokens == (8 + 9, 9 + 10)


def test_an_answer_without_text_has_a_reward(encode):
    empty = encode("polar", record(output=""))
    assert isinstance(empty, Encoded) and empty.tokens == (len("2 + 2?") + 1,)
    both = encode("polar", Record({"prompt": "2 + 2?", "outputs": ["4", ""]}, "it"))
    assert both.sequences[0] == (encode("polar", record()).sequences[0][0], empty.sequences[0][0])


def test_what_was_not_read_is_noted(encode):
    found = encode("plain", record(reference="four", referense="four", prompt=f"a {REWARD} b"))
    assert found.notes == ("references_unread", "special_token_in_text", "field `referense` is not read")


def test_a_conversation_is_prompt_and_answer(encode):
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    assert encode("chat", Record({"messages": turns}, "it")).sequences == encode("chat", record()).sequences
