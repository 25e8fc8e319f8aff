"""Every layout: recognized by its first row, and what its rows become."""

import json
import logging

import pytest

from rmjax.data.layouts import LAYOUTS, RECORDS, recognized
from rmjax.data.layouts.preferences import transcript
from rmjax.data.readers import open_records, read_all
from rmjax.data.record import RecordError, known_fields, parse, parse_text

USER = [{"role": "user", "content": "Why?"}]
GPT = [{"from": "human", "value": "Why?"}]


def say(text, role="assistant"):
    return {"role": role, "content": text}


# Layout → a row of it, and the prompt, outputs and ranks of the record that it becomes.
ROWS = {
    "rmb_pairwise": (
        {
            "pair_uid": "1",
            "category_path": "Pairwise_set/Harmlessness/S1",
            "conversation_input": [{**USER[0], "language": "English"}],
            "chosen": {"answer": "a", "llm_name": "m"},
            "reject": {"answer": "b", "llm_name": "n"},
        },
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "rmb_bon": (
        {
            "bon_uid": "1",
            "category_path": "BoN_set/Harmlessness/S1",
            "conversation_input": USER,
            "bon_best": {"answer": "a", "llm_name": "m"},
            "loser_list": [{"answer": x, "llm_name": "n"} for x in "bc"],
        },
        "Why?",
        ("a", "b", "c"),
        (0, 1, 1),
    ),
    "reward_bench_2": (
        {"id": "1", "prompt": "Why?", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1, "subset": "Math"},
        "Why?",
        ("a", "b", "c"),
        (0, 1, 1),
    ),
    "reward_bench": (
        {
            "id": 1,
            "prompt": "Why?",
            "chosen": "a",
            "chosen_model": "m",
            "rejected": "b",
            "rejected_model": "n",
            "subset": "hep-go",
        },
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "rm_bench": (
        {"id": 1, "prompt": "Why?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"},
        "Why?",
        tuple("abcdef"),
        (0, 0, 0, 1, 1, 1),
    ),
    "judge_bench": (
        {
            "pair_id": "1",
            "source": "mmlu-pro-law",
            "question": "Why?",
            "response_A": "a",
            "response_B": "b",
            "label": "B>A",
        },
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "labeled": ({"prompt": "Why?", "output_1": "a", "output_2": "b", "label": 2}, "Why?", ("a", "b"), (1, 0)),
    "llmbar": ({"input": "Why?", "output_1": "a", "output_2": "b", "label": 2}, "Why?", ("a", "b"), (1, 0)),
    "ppe_human": (
        {"question_id": "1", "prompt": "Why?", "response_1": "a", "response_2": "b", "winner": "tie"},
        "Why?",
        ("a", "b"),
        (0, 0),
    ),
    "ppe_correctness": (
        {
            "question_id": 1,
            "prompt": "Why?",
            "response_1": "a",
            "response_2": "b",
            "scores": [0, 1],
            "sampled_conflict_pairs": [[0, 1]],
        },
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "hh": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: a", "rejected": "\n\nHuman: Why?\n\nAssistant: b"},
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "helpsteer": ({"prompt": "Why?", "response": "a", "helpfulness": 4, "verbosity": 2}, "Why?", ("a",), (0,)),
    "helpsteer2_preference": (
        {"split": "train", "prompt": "Why?", "response_1": "a", "response_2": "b", "preference_strength": -2},
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "helpsteer3": (
        {"domain": "code", "context": USER, "response1": "a", "response2": "b", "overall_preference": 1},
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "shp": (
        {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "domain": "askhr_test"},
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "ultrafeedback": (
        {
            "source": "flan",
            "instruction": "Why?",
            "completions": [
                {"model": "m", "response": "a", "overall_score": 3},
                {"model": "n", "response": "b", "fine-grained_score": "4.5"},
            ],
        },
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Why?",
            "prompt_id": "1",
            "chosen": [*USER, say("a")],
            "rejected": [*USER, say("b")],
            "score_chosen": 8.0,
            "score_rejected": 6.0,
        },
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "sharegpt_pair": (
        {"conversations": GPT, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        "Why?",
        ("a", "b"),
        (0, 1),
    ),
    "sharegpt": ({"conversations": [*GPT, {"from": "gpt", "value": "a"}]}, "Why?", ("a",), None),
    "llama_factory": ({"instruction": "Why?", "input": "", "chosen": "a", "rejected": "b"}, "Why?", ("a", "b"), (0, 1)),
    "alpaca": ({"instruction": "Why?", "input": "1", "output": "a"}, "Why?\n1", ("a",), None),
    "arena": (
        {
            "model_a": "m",
            "model_b": "n",
            "winner": "model_b",
            "conversation_a": [*USER, say("a")],
            "conversation_b": [*USER, say("b")],
        },
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "openassistant_tree": (
        {
            "message_tree_id": "t",
            "prompt": {
                "role": "prompter",
                "text": "Why?",
                "replies": [
                    {"role": "assistant", "text": "a", "rank": 1},
                    {"role": "assistant", "text": "b", "rank": 0},
                    {"role": "assistant", "text": "c", "rank": None},
                ],
            },
        },
        "Why?",
        ("a", "b"),
        (1, 0),
    ),
    "trl_implicit": ({"chosen": [*USER, say("a")], "rejected": [*USER, say("b")]}, "Why?", ("a", "b"), (0, 1)),
    "pointwise": ({"prompt": "Why?", "output": "a", "score": 0.5}, "Why?", ("a",), (0,)),
}
OF_SEVERAL = {
    "openassistant": [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Why?", "rank": None},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "rank": 1},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "b", "rank": 0},
    ]
}


def write(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_layout_has_a_row_here():
    assert LAYOUTS.keys() == ROWS.keys() | OF_SEVERAL.keys()


@pytest.mark.parametrize("name", ROWS)
def test_recognized_and_read(tmp_path, caplog, name):
    row, prompt, outputs, ranks = ROWS[name]
    with caplog.at_level(logging.WARNING):
        (found,) = open_records(write(tmp_path, row), layout="auto")
    assert recognized(row) == name and f"(--layout={name})" in caplog.text
    assert (found.prompt, found.outputs, found.ranks) == (prompt, outputs, ranks)
    assert found.place.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": 1, "source": "x", "id": 3},
        {"messages": USER, "outputs": ["a", "b"], "scores": [1, 2]},
        {"prompt": "p", "outputs": ["a", "b"], "best": 0, "subset": "x"},
        {"prompt": USER, "chosen": [say("a")], "rejected": [say("b")]},
        {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"]},
        {"prompt": "p", "output": "a"},
        {"messages": [*USER, say("a")]},
    ],
)
def test_rows_of_ours_stay_as_they_are(tmp_path, caplog, row):
    assert recognized(row) == RECORDS
    with caplog.at_level(logging.WARNING):
        outcome = [_outcome(write(tmp_path, row), layout) for layout in ("auto", RECORDS)]
    assert outcome[0] == outcome[1] and "taken for" not in caplog.text


def _outcome(path, layout):
    try:
        return [(c.prompt, c.outputs, c.ranks) for c in open_records(path, layout=layout)]
    except RecordError as error:
        return str(error)


def test_scored_answers_are_joined_by_their_prompt(tmp_path):
    rows = [
        {"prompt": p, "output": o, "score": s}
        for p, o, s in [("p", "a", 1), ("q", "b", 1), ("p", "c", 2), ("q", "d", 0)]
    ]
    found = list(open_records(write(tmp_path, *rows), layout="auto"))
    assert [(c.prompt, c.outputs, c.ranks) for c in found] == [("p", ("a", "c"), (1, 0)), ("q", ("b", "d"), (0, 1))]


def test_rows_under_different_system_texts_are_different_prompts(tmp_path):
    rows = [
        {"prompt": "q", "system": system, "output": answer, "score": score}
        for system, answer, score in (("a", "x", 1), ("b", "y", 2), ("a", "z", 3))
    ]
    found = open_records(write(tmp_path, *rows), layout="auto")
    assert [c.outputs for c in found] == [("x", "z"), ("y",)]
    assert [c.prompt.messages[0].content for c in found] == ["a", "b"]


def test_fields_that_a_layout_does_not_read_are_counted(tmp_path, caplog):
    row = {**ROWS["shp"][0], "weight": 2.0, "seconds": None}
    with caplog.at_level(logging.WARNING):
        found = open_records(write(tmp_path, row, ROWS["shp"][0], {**row, "seconds": 3}), layout="auto")
    assert found.unknown == {"weight": 2, "seconds": 1}
    assert "fields that are not read as SHP: `seconds` in 1 of 3 rows, `weight` in 2 of 3 rows" in caplog.text


def test_other_keys_of_messages_stay(tmp_path):
    calls = [{"function": {"name": "f"}}]
    asked = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "", "tool_calls": calls}, GPT[0]]
    row = {"conversations": asked, "chosen": say("a"), "rejected": say("b")}
    (found,) = open_records(write(tmp_path, row), layout="auto")
    assert found.prompt.messages[1].others == {"tool_calls": calls}


def test_trees_of_messages(tmp_path):
    rows = [*OF_SEVERAL["openassistant"], {"message_id": "4", "parent_id": "3", "role": "prompter", "text": "So?"},
            {"message_id": "5", "parent_id": "4", "role": "assistant", "text": "x", "rank": 0},
            {"message_id": "6", "parent_id": "4", "role": "assistant", "text": "y", "rank": 1},
            {"message_id": "7", "parent_id": "lost", "role": "assistant", "text": "z", "rank": 1}]  # fmt: skip
    assert recognized(rows[0]) == "openassistant"
    with pytest.raises(RecordError, match="parent_id`: no message of the file"):
        open_records(write(tmp_path, *rows), layout="auto")
    source = open_records(write(tmp_path, *rows), "skip", "auto")
    assert source.skipped == {"parent_id: no message of the file": 1}
    first, second = source
    assert (first.outputs, first.ranks) == (("a", "b"), (1, 0))
    assert [(m.role, m.content) for m in second.prompt.messages] == [
        ("user", "Why?"),
        ("assistant", "b"),
        ("user", "So?"),
    ]
    assert (second.outputs, second.ranks) == (("x", "y"), (0, 1))


def test_messages_that_are_in_no_tree_are_errors(tmp_path):
    one, two = (
        {"role": "prompter", "text": "a", "parent_id": "y", "message_id": "x"},
        {"role": "assistant", "text": "b"},
    )
    rows = [*OF_SEVERAL["openassistant"], OF_SEVERAL["openassistant"][-1] | {"text": "again"}, one,
            {**two, "message_id": "y", "parent_id": "x"},
            {"message_id": "n", "parent_id": None, "role": "narrator", "text": "c"}]  # fmt: skip
    source = open_records(write(tmp_path, *rows), "skip", "auto")
    assert [c.outputs for c in source] == [("a", "b")]
    assert source.skipped == {
        "message_id: is another message's too": 1, "parent_id: leads back to the message itself": 2,
        "prompt: message with an unknown role": 1,
    }  # fmt: skip


def test_a_tree_may_be_deeper_than_python_s_stack(tmp_path):
    rows = [
        {
            "message_id": str(i),
            "parent_id": str(i - 1) if i else None,
            "text": "t",
            "role": ("prompter", "assistant")[i % 2],
        }
        for i in range(2000)
    ]
    last = [
        {"message_id": f"a{i}", "parent_id": "1998", "role": "assistant", "text": f"{i}", "rank": i} for i in (0, 1)
    ]
    (found,) = open_records(write(tmp_path, *rows, *last), layout="openassistant")
    assert len(found.prompt.messages) == 1999 and found.outputs == ("0", "1")


def test_a_system_text_beside_a_conversation_is_its_first_turn(tmp_path):
    row = {"conversations": [*GPT, {"from": "gpt", "value": "a"}], "system": "In French."}
    (found,) = read_all(write(tmp_path, row), parse_text, known_fields(), layout="auto")
    assert [(m.role, m.content) for m in found.prompt.messages][0] == ("system", "In French.")


def test_a_file_none_of_whose_rows_gives_a_record(tmp_path):
    rows = [row | {"rank": None} for row in OF_SEVERAL["openassistant"]]
    with pytest.raises(RecordError, match=r"none of its \d rows gives a record \(messages of OpenAssistant's trees\)"):
        open_records(write(tmp_path, *rows), "skip", "auto")


def test_an_implicit_prompt_of_text_ends_at_a_blank(tmp_path):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (found,) = open_records(write(tmp_path, row), layout="auto")
    assert (found.prompt, found.outputs) == ("The sky is ", ("blue.", "black."))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("hh", {"rejected": "\n\nHuman: Who?\n\nAssistant: b"}, "another conversation before the last turn"),
        ("hh", {"rejected": "\n\nHuman: Why?\n\nAssistant: b\n\nHuman: No"}, "without a last turn of the assistant"),
        ("judge_bench", {"label": "A"}, "label`: unknown label ('A')"),
        ("shp", {"labels": 2}, "labels`: unknown label (2); give one of 1, 0"),
        ("rmb_bon", {"loser_list": []}, "loser_list`: not a list of answers"),
        ("rmb_pairwise", {"reject": {"text": "b"}}, "reject`: not an object with a string `answer`"),
        ("reward_bench_2", {"num_correct": 2}, "num_correct`: not the number of right answers"),
        ("ppe_correctness", {"sampled_conflict_pairs": [[0, 5]]}, "not a list of pairs of samples"),
        ("ppe_human", {"winner": None}, "winner`: unknown label (None)"),
        (
            "ultrafeedback",
            {"completions": [{"response": "a", "overall_score": "N/A"}]},
            "overall_score`: not a number ('N/A')",
        ),
        ("sharegpt", {"conversations": [*GPT, {"from": "x", "value": "a"}]}, "message with an unknown role ('x')"),
        ("llama_factory", {"history": [["q"]]}, "history`: not a list of pairs"),
        ("trl_implicit", {"rejected": [say("b")]}, "the two sides begin differently"),
        ("pointwise", {"score": "high"}, "score`: not a number ('high')"),
        ("helpsteer3", {"context": []}, "context`: not a list of messages"),
    ],
)
def test_broken_rows_name_their_field(tmp_path, name, change, says):
    good = ROWS[name][0]
    path = write(tmp_path, good, {**good, **change})
    with pytest.raises(RecordError) as caught:
        open_records(path, layout=name)
    assert says in str(caught.value) and "rows.jsonl:2" in str(caught.value)
    source = open_records(path, "skip", name)
    assert len(source) == 1 and sum(source.skipped.values()) == 1


def test_a_row_of_another_layout_is_an_error(tmp_path):
    path = write(tmp_path, ROWS["llmbar"][0], ROWS["shp"][0])
    with pytest.raises(RecordError, match="rows.jsonl:2: field `input`: missing, and LLMBar has it"):
        open_records(path, layout="auto")


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout is 'hhh'; choose auto, records, rmb_pairwise"):
        open_records(write(tmp_path, ROWS["hh"][0]), layout="hhh")


def test_turns_of_llama_factory():
    row = {"instruction": "Why?", "input": "", "output": "x", "chosen": "a", "rejected": "b", "system": "Be brief.",
           "history": [["Hm?", "Well."]]}  # fmt: skip
    (fields,) = LAYOUTS["llama_factory"].convert(row, "f:1")
    assert [m.role for m in parse(fields, "f:1").prompt.messages] == ["system", "user", "assistant", "user"]


def test_a_transcript_keeps_its_blank_lines():
    found = transcript("\n\nHuman: a\n\nb\n\nAssistant: c", "chosen", "f:1")
    assert [m["content"] for m in found] == ["a\n\nb", "c"]
