"""Outputs of files as a generator: matched by id, else by prompt; what is missing is counted, what is ambiguous refused."""

import json

import pytest

from rmjax.data.messages import Conversation, Message
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison, RecordError
from rmjax.policy.recorded import NO_MATCH, TOO_FEW, open_recorded

ASKED = [
    Comparison("Why?", ("old",), ("Because.",), id="a", place="prompts.jsonl:1"),
    Comparison(Conversation((Message("system", "Be kind."), Message("user", "Who?"))), (), id="b"),
    Comparison("Where?", (), id="c"),
]
POOL = [
    {"prompt_id": "a", "prompt": "Why?", "policy": "p", "sample": 1, "output": "second", "truncated": 1},
    {"prompt_id": "a", "prompt": "Why?", "policy": "p", "sample": 0, "output": "first"},
    {"prompt_id": "b", "prompt": "Be kind.\nWho?", "policy": "p", "output": ""},
    {"prompt_id": "a", "prompt": "Why?", "policy": "q", "output": "other"},
]
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
RECORDS = [
    {"prompt": "Why?", "outputs": ["1", "2", "3"], "token_ids": [[1], [2], [3]], "rewards": [0.5, 1, 2], "weight": 3},
    {"messages": MESSAGES, "output": "me"},
]
ALPACA_EVAL = [{"instruction": "Why?", "output": "so", "generator": "gpt", "dataset": "d"}]


@pytest.fixture
def put(tmp_path):
    def write(rows, name="outputs.jsonl"):
        path = tmp_path / name
        path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_a_pool_s_rows_are_samples_in_their_order(put):
    found = open_recorded(put(POOL), "p")
    records, dropped = found(ASKED, 2, 0)
    assert [record.outputs for record in records] == [("first", "second"), ("",)]
    assert records[0].columns["truncated"] == (0.0, 1.0) and records[0].policies == ("p", "p")
    assert records[0].references == ("Because.",) and records[0].id == "a"
    assert dropped == {TOO_FEW: 1, NO_MATCH: 2}
    assert found(ASKED, 1, 5).records[0].outputs == ("first",)


def test_records_without_ids_are_found_by_their_prompts(put):
    found = open_recorded(put(RECORDS), name="mine")
    records, dropped = found(ASKED, 2, 0)
    assert [record.outputs for record in records] == [("1", "2"), ("me",)] and found.name == "mine"
    assert records[0].columns == {"token_ids": ((1,), (2,)), "rewards": (0.5, 1.0)} and records[0].weight == 1.0
    assert dropped == {TOO_FEW: 1, NO_MATCH: 2}


def test_a_prompt_of_other_messages_is_another_prompt(put):
    rows = [{"prompt": "Be kind.\nWho?", "output": "you"}, RECORDS[1]]
    assert open_recorded(put(rows))(ASKED[1:2], 1, 0).records[0].outputs == ("me",)


@pytest.mark.parametrize(("policy", "name"), [("", "gpt"), ("gpt", "gpt")])
def test_alpaca_eval_s_files(put, policy, name):
    found = open_recorded(put(ALPACA_EVAL, "outputs.json"), policy)
    assert found.name == name and found(ASKED[:1], 1, 0).records[0].outputs == ("so",)


def test_a_name_where_the_file_has_none(put):
    assert open_recorded(put(RECORDS, "model-7.v2.jsonl")).name == "model-7"


def test_what_one_generator_wrote_another_one_gives(put, tmp_path):
    first = open_recorded(put(RECORDS))(ASKED, 2, 0)
    write_records(tmp_path / "again.parquet", first.records)
    again = open_recorded(tmp_path / "again.parquet")(ASKED, 2, 0)
    assert again == first


@pytest.mark.parametrize(
    ("rows", "policy", "message"),
    [
        (POOL, "", r"outputs\.jsonl has outputs of several policies, p, q; name one"),
        (POOL, "r", r"outputs\.jsonl has no output of the policy 'r'; it has p, q"),
        ([*POOL, POOL[0] | {"prompt": "Whence?"}], "p", r"jsonl:5: .*`prompt`: differs from that of .*jsonl:2 with the id `a`"),
        ([POOL[0] | {"prompt": "Whence?"}], "", r"jsonl:1: .*`prompt`: differs from that of prompts\.jsonl:1 with the id `a`"),
        (
            [{"id": "x", "prompt": "Why?", "output": "1"}, {"id": "y", "prompt": "Why?", "output": "2"}], "",
            r"jsonl:2: .*`id`: is another one than in .*jsonl:1, which has the same prompt; give prompts\.jsonl:1 one",
        ),
        ([RECORDS[0], {"prompt": "Why?", "output": "4"}], "", r"jsonl:1: .*`token_ids`: is missing in some"),
        ([{"prompt": "Why?"}], "", r"jsonl:1: .*`outputs`: missing"),
        ([{"prompt_id": "a"}], "", r"jsonl:1: .*`prompt`: missing"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_broken_is_an_error(put, rows, policy, message):
    with pytest.raises((RecordError, ValueError), match=message):
        open_recorded(put(rows), policy)(ASKED, 4, 0)
