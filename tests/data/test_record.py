"""The record: what is accepted, what is refused and how, and the way back to a row."""

import dataclasses
import json
import operator
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.data.messages import Conversation, Message, messages_of, text_of
from rmjax.data.record import (
    Comparison,
    RecordError,
    nearest_field,
    parse,
    parse_text,
    ranks_from_scores,
    require_order,
    require_reference,
    require_type,
    to_row,
    unknown_fields,
)
from rmjax.data.samplerows import parse_sample
from rmjax.data.texts import Notes

USER = {"role": "user", "content": "hi"}
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
GROUP = {"prompt": "p", "outputs": ["a", "b", "c"]}


def message(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_pair_is_ranked_and_carries_its_place():
    record = parse(PAIR, "f.jsonl:3")
    assert record == Comparison("p", ("good", "bad"), ranks=(0.0, 1.0), place="f.jsonl:3")


def said(*turns: tuple[str, str]) -> Conversation:
    return Conversation([Message(*turn) for turn in turns])


def test_messages_keep_their_roles_and_are_joined_by_newlines():
    turns = [USER, message("yes?"), {"content": [{"type": "text", "text": t} for t in "xy"]}]
    row = {"messages": turns, "reference": [message("r")], "output": [message("o"), message("o2")]}
    record = parse(row, "")
    assert record.prompt == said(("user", "hi"), ("assistant", "yes?"), ("user", "x\ny"))
    assert record.references == ("r",)
    assert (record.outputs, record.ranks) == ((said(("assistant", "o"), ("assistant", "o2")),), None)
    texts = [str.__str__(record.prompt), record.outputs[0].text]
    assert texts == ["hi\nyes?\nx\ny", "o\no2"] and len(record.prompt) == 11


@pytest.mark.parametrize(
    ("rejected", "outputs"),
    [
        (["b", "c"], ("a", "b", "c")),
        ([message("b"), message("c")], ("a", Conversation([Message("assistant", t) for t in "bc"]))),
        ([[message("b")], "c"], ("a", "b", "c")),
    ],
)
def test_several_rejected_are_several_negatives_but_messages_are_one_text(rejected, outputs):
    record = parse({"prompt": "p", "chosen": "a", "rejected": rejected}, "")
    assert record.outputs == outputs
    assert record.ranks == (0.0,) + (1.0,) * (len(outputs) - 1)


@pytest.mark.parametrize(
    ("chosen", "outputs", "ranks"),
    [
        (["a"], ("a", "x", "y"), (0.0, 1.0, 1.0)),
        (["a", "b", "c"], ("a", "b", "c", "x", "y"), (0.0, 0.0, 0.0, 1.0, 1.0)),
        (
            [message("a"), message("b")],
            (Conversation([Message("assistant", t) for t in "ab"]), "x", "y"),
            (0.0, 1.0, 1.0),
        ),
    ],
)
def test_several_chosen_are_tied_for_the_first_place(chosen, outputs, ranks):
    record = parse({"prompt": "p", "chosen": chosen, "rejected": ["x", "y"]}, "")
    assert (record.outputs, record.ranks) == (outputs, ranks)


@pytest.mark.parametrize("value", ["helpful", "1", 1.5, True, 2**31, 2**40, -(10**400), ["a"], {"b": 1}])
@pytest.mark.parametrize("parser", [parse, parse_text, parse_sample])
def test_a_type_that_is_no_label_is_ignored_and_counted(value, parser):
    row = {"prompt": "p", "output": "o"} | ({"prompt_id": "i", "policy": "q"} if parser is parse_sample else {})
    notes = Counter()
    assert parser({**row, "type": value}, "", notes) == parser(row, "", notes)
    ((note, count),) = notes.items()
    assert "`type` ignored" in note and count == 1
    assert parser({**row, "type": 2**31 - 1}, "", notes).type == 2**31 - 1 and notes.total() == 1


def test_candidates_lose_a_repeated_prompt():
    row = {"prompt": [USER], "chosen": [USER, message("a")], "rejected": [USER, message("b")]}
    assert parse(row, "").outputs == ("a", "b")


ASKED, OTHER = {"role": "user", "content": "Name fruit."}, {"role": "system", "content": "Be brief."}
SPACED, EARLIER = {"role": "user", "content": "Name fruit. "}, [{"role": "user", "content": "a"}, message("b")]


@pytest.mark.parametrize("prompt", ["Name fruit.", [ASKED], [OTHER, ASKED], [*EARLIER, ASKED]])
@pytest.mark.parametrize("copy", [[ASKED], [SPACED], [OTHER, ASKED]])
def test_whole_conversations_lose_exactly_the_prompt(prompt, copy):
    """UltraFeedback's form, and copies that differ by a blank or a system turn, on one side or on both."""
    earlier = EARLIER if len(prompt) == 3 else []
    own = [*earlier, *copy] if copy[0] is not OTHER else [OTHER, *earlier, ASKED]
    first = [ASKED] if isinstance(prompt, str) else prompt
    row = {"prompt": prompt, "chosen": [*own, message("A.")], "rejected": [*first, message("B.")]}
    notes = Counter()
    found = parse({**row, "reference": [*own, message("C.")]}, "", notes)
    assert found.outputs == ("A.", "B.") and found.references == ("C.",)
    assert notes == {"copy of the prompt taken off an answer": 3}
    assert parse(to_row(found), "") == found


@pytest.mark.parametrize("turns", [[{"role": "user", "content": "Name a fruit!"}], [OTHER], [USER, *EARLIER, ASKED]])
def test_turns_of_another_prompt_are_refused(turns):
    row = {"prompt": "Name fruit.", "chosen": [*turns, message("A.")], "rejected": "B."}
    with pytest.raises(
        RecordError, match="f:1: field `chosen`: begins with a turn that is not its own .of the (user|system)"
    ):
        parse(row, "f:1")


def test_an_answer_may_go_on_over_turns_of_others():
    turns = [message("Which?"), {"role": "user", "content": "Any."}, message("Apple.")]
    notes = Counter()
    found = parse({"prompt": "Name fruit.", "output": turns}, "", notes)
    assert found.outputs[0].messages == tuple(Message(t["role"], t["content"]) for t in turns)
    assert notes == {"answers with turns of the user or system inside": 1}


def test_a_continued_turn_of_the_assistant_keeps_what_is_new():
    asked = [ASKED, message("An app")]
    found = parse({"prompt": asked, "chosen": [ASKED, message("An apple")], "rejected": "ricot"}, "")
    assert found.outputs == ("le", "ricot")


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_an_answer_at_the_end_of_the_prompt_is_taken_off(field):
    notes = Counter()
    found = parse({field: [ASKED, message("Plum. ")], "chosen": "Plum.", "rejected": "Car."}, "", notes)
    assert found.prompt == "Name fruit." and notes == {"an answer taken off the end of the prompt": 1}
    kept = parse({field: [ASKED, message("Pl")], "chosen": "um.", "rejected": "ane."}, "")
    assert kept.prompt.messages[-1] == Message("assistant", "Pl")


@pytest.mark.parametrize(
    ("chosen", "rejected", "note"),
    [
        ("Human: Name fruit. Apple.", "Human: Name fruit. Pear.", "answers that begin with the whole prompt, kept"),
        ("Human: Name fruit. Apple.", "Pear.", "begin with the whole prompt and others do not"),
        ("Apple.", "Pear.", None),
    ],
)
def test_strings_that_begin_with_the_prompt_are_kept_and_counted(chosen, rejected, note):
    notes = Notes()
    row = {"prompt": "Human: Name fruit.", "chosen": chosen, "rejected": rejected}
    assert parse(row, "", notes).outputs == (chosen, rejected)
    assert [note in found for found in notes] == ([True] if note else [])


def test_what_contradicts_the_order_is_counted():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for more, field in (({"votes": [[0, 1]] * 2}, "votes"), ({"pair_target": [[-1, 0], [1, -1]]}, "pair_target")):
        notes = Notes()
        parse(row | more, "", notes)
        assert any(f"`{field}` contradicts" in note for note in notes)
    notes = Notes()
    parse(row | {"votes": [[1, 0], [1, 0], [0, 1]], "pair_target": [[-1, 0.5], [0.5, -1]]}, "", notes)
    assert not notes


def test_other_keys_of_messages_are_kept_and_counted():
    calls = [{"type": "function", "function": {"name": "price", "arguments": "{}"}}]
    given = {"role": "assistant", "content": None, "tool_calls": calls, "name": None}
    notes = Counter()
    found = parse({"prompt": "Price?", "output": [given]}, "", notes)
    (kept,) = found.outputs[0].messages
    assert (kept.content, kept.others) == ("", {"tool_calls": calls})  # a null is what files put where a key is absent
    assert notes == {"messages' `tool_calls` kept; only chat templates read it": 1}
    assert parse(to_row(found), "") == found
    assert parse({"prompt": "Price?", "output": [message("Let me see.")]}, "").outputs == ("Let me see.",)


@pytest.mark.parametrize("reference", ["", " ", None])
def test_an_empty_reference_is_none(reference):
    assert parse({**PAIR, "reference": reference}, "").references == ()


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"prompt_id": "q", "chosen": "a", "rejected": "b"},
            "add `messages` or `prompt`; the row has `prompt_id`, `chosen`",
        ),
        (
            {"prompt": "p", "output_1": "a", "output_2": "b"},
            "or `outputs`; the row has `prompt`, `output_1`, `output_2`",
        ),
        ({"prompt": "p", "\x1b[2J": 1}, r"the row has `prompt`, `\x1b[2J`"),
    ],
)
def test_what_is_missing_is_said_with_what_is_there(row, remedy):
    with pytest.raises(RecordError) as caught:
        parse(row, "f:1")
    assert remedy in str(caught.value) and "did you mean" not in str(caught.value)


@pytest.mark.parametrize("answer", [message("hi"), {"content": "hi"}])
def test_an_answer_that_echoes_the_prompt_is_kept(answer):
    prompt = {key: USER[key] for key in answer}
    assert parse({"prompt": [prompt], "output": [answer]}, "").outputs == ("hi",)


def test_best_ranks_and_scores_give_the_order():
    assert parse({**GROUP, "best": 1}, "").ranks == (1.0, 0.0, 1.0)
    assert parse({**GROUP, "ranks": [2, 0, 0.5]}, "").ranks == (2.0, 0.0, 0.5)
    scored = parse({**GROUP, "scores": [0.5, 7, 0.5]}, "")
    assert (scored.ranks, scored.scores) == ((1.0, 0.0, 1.0), (0.5, 7.0, 0.5))
    both = parse({**GROUP, "scores": [1, 2, 3], "best": 0}, "")
    assert (both.ranks, both.scores) == ((0.0, 1.0, 1.0), (1.0, 2.0, 3.0))


def test_optional_fields():
    row = {
        **GROUP,
        "references": ["r", [message("s")]],
        "votes": [[1, 0, 0], [0, 1, 0.5]],
        "policies": ["x", "y", "z"],
        "category": "chat",
        "source": "set",
        "type": 2,
        "wrapper": "pretrain",
        "weight": 0.5,
        "margin": 1,
        "id": 17,
        "ranks": None,
    }
    record = parse(row, "")
    assert record.references == ("r", "s")
    assert record.votes == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.5))
    assert (record.policies, record.category) == (("x", "y", "z"), "chat")
    assert (record.source, record.type, record.wrapper) == ("set", 2, "pretrain")
    assert (record.weight, record.margin, record.id, record.ranks) == (0.5, 1.0, "17", None)


BAD_ROWS = [
    ({"chosen": "a", "rejected": "b"}, "prompt", "missing"),
    ({**PAIR, "prompt": None}, "prompt", "missing"),
    ({**PAIR, "prompt": ""}, "prompt", "empty text"),
    ({**PAIR, "prompt": []}, "prompt", "neither text nor messages"),
    ({**PAIR, "prompt": [{"role": "user", "content": ""}]}, "prompt", "empty text"),
    ({**PAIR, "prompt": 7}, "prompt", "neither text nor messages"),
    ({**PAIR, "prompt": ["a", "b"]}, "prompt", "neither text nor messages"),
    ({**PAIR, "prompt": [{"role": "user"}]}, "prompt", "message without text content"),
    ({**PAIR, "prompt": [{"content": [{"type": "image_url"}]}]}, "prompt", "message part that is not text"),
    ({**PAIR, "prompt": [{"from": "human", "value": "q"}]}, "prompt", "message with `from` instead of `role`"),
    (
        {**PAIR, "prompt": [USER, {"role": "assistant", "value": "lost"}, USER]},
        "prompt",
        "message without text content",
    ),
    ({**PAIR, "prompt": [{"role": "human", "content": "q"}]}, "prompt", "message with a role by another name"),
    ({**PAIR, "chosen": [{"role": "Assistant", "content": "a"}]}, "chosen", "message with a role by another name"),
    ({**PAIR, "prompt": "\ud800"}, "prompt", "lone surrogate"),
    ({**PAIR, "messages": [USER]}, "prompt", "exclude each other"),
    ({"prompt": "p"}, "outputs", "missing"),
    ({"prompt": "p", "chosen": "a"}, "rejected", "missing"),
    ({**PAIR, "output": "c"}, "output", "exclude each other"),
    ({**PAIR, "chosen": " \n"}, "chosen", "empty text"),
    ({**PAIR, "rejected": []}, "rejected", "empty list"),
    ({**PAIR, "rejected": ["b", ""]}, "rejected[1]", "empty text"),
    ({**PAIR, "chosen": []}, "chosen", "empty list"),
    ({**PAIR, "chosen": ["a", ""]}, "chosen[1]", "empty text"),
    ({**PAIR, "chosen": [["a"]]}, "chosen[0]", "neither text nor messages"),
    ({**PAIR, "chosen": ["a", "bad"]}, "rejected", "identical candidates ranked differently"),
    ({**PAIR, "rejected": "good"}, "rejected", "identical candidates ranked differently"),
    ({**PAIR, "best": 0}, "best", "both give the order"),
    ({**PAIR, "prompt": [USER], "chosen": [USER]}, "chosen", "empty text"),
    ({"prompt": "p", "outputs": []}, "outputs", "empty list"),
    ({"prompt": "p", "outputs": "a"}, "outputs", "not a list of texts"),
    ({"prompt": "p", "outputs": ["a", "a"], "best": 0}, "outputs", "identical candidates"),
    ({**GROUP, "best": 3}, "best", "out of range"),
    ({**GROUP, "best": -1}, "best", "out of range"),
    ({**GROUP, "best": True}, "best", "not an integer"),
    ({**GROUP, "best": 0, "ranks": [0, 1, 2]}, "ranks", "both give the order"),
    ({**GROUP, "ranks": [0, 1]}, "ranks", "length differs"),
    ({**GROUP, "ranks": 1}, "ranks", "not a list of numbers"),
    ({**GROUP, "ranks": [0, float("nan"), 1]}, "ranks[1]", "not finite"),
    ({**GROUP, "scores": [0, 1, 10**400]}, "scores[2]", "not finite"),
    ({**GROUP, "ranks": [0, "1", 2]}, "ranks[1]", "not a number"),
    ({**GROUP, "votes": [1, 2, 3]}, "votes[0]", "not a list of numbers"),
    ({**GROUP, "votes": []}, "votes", "not a list of lists"),
    ({**GROUP, "votes": [[1, 2]]}, "votes[0]", "length differs"),
    ({**GROUP, "policies": ["x"]}, "policies", "not one name per output"),
    ({**PAIR, "references": ["r", ""]}, "references[1]", "empty text"),
    ({**PAIR, "references": [message("r")]}, "references", "not a list of texts"),
    ({**PAIR, "reference": "r", "references": ["s"]}, "references", "exclude each other"),
    ({**PAIR, "wrapper": "chat"}, "wrapper", "unknown wrapper"),
    ({**PAIR, "wrapper": ["sft"]}, "wrapper", "unknown wrapper"),
    ({**PAIR, "weight": -1}, "weight", "out of range"),
    ({**PAIR, "weight": 1e39}, "weight", "beyond the range of float32"),
    ({**PAIR, "weight": float("inf")}, "weight", "not finite"),
    ({**PAIR, "category": 3}, "category", "not a string"),
    ({**PAIR, "category": ["food", "short"]}, "category", "not a string"),
    (["prompt"], "", "not a JSON object"),
]


@pytest.mark.parametrize(("row", "field", "problem"), BAD_ROWS)
def test_bad_rows_are_refused_by_place_field_and_remedy(row, field, problem):
    with pytest.raises(RecordError) as caught:
        parse(row, "data/x.jsonl:12")
    error = caught.value
    assert (error.place, error.field) == ("data/x.jsonl:12", field)
    assert problem in error.problem
    assert error.remedy
    assert str(error).startswith("data/x.jsonl:12: ") and str(error).endswith(error.remedy)


def test_a_field_with_another_meaning_may_be_renamed():
    with pytest.raises(
        RecordError, match=r"`category`: not a string \(list\); give a string, or rename or remove the field"
    ):
        parse({**PAIR, "category": ["food"]}, "")


def test_identical_candidates_may_be_tied():
    assert parse({"prompt": "p", "outputs": ["a", "b", "b"], "best": 0}, "").ranks == (0.0, 1, 1)


def test_a_misspelled_field_is_named_in_the_error():
    with pytest.raises(RecordError, match="did you mean `chosen` by `choosen`"):
        parse({"prompt": "p", "choosen": "a", "rejected": "b"}, "")
    with pytest.raises(RecordError, match="did you mean `prompt` by `promt`"):
        parse({"promt": "p", "output": "a"}, "")


def test_unknown_fields_are_listed_and_kept_out():
    row = {**PAIR, "zebra": 1, "choosen": 2}
    assert unknown_fields(row) == ["choosen", "zebra"]
    assert (nearest_field("choosen"), nearest_field("zebra")) == ("chosen", None)
    assert parse(row, "") == parse(PAIR, "")


def test_errors_survive_a_process_border_and_count_without_index():
    with pytest.raises(RecordError) as caught:
        parse({**PAIR, "rejected": ["b", ""]}, "f:1")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.reason == "rejected: empty text"


def test_ranks_from_scores_are_dense():
    assert ranks_from_scores([3, 9, 3, -1]) == (1.0, 0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (Comparison("p", ("a", "b"), place="f:2"), "`ranks`: no order known"),
        (Comparison("p", ("a",), ranks=(0.0,), place="f:2"), "`outputs`: only one candidate"),
        (Comparison("p", ("a",), place="f:2"), "`outputs`: only one candidate"),
        (Comparison("p", ("a", "b"), ranks=(1.0, 1.0), place="f:2"), "`ranks`: all candidates are tied"),
    ],
)
def test_require_order(record, problem):
    with pytest.raises(RecordError, match=f"^f:2: field {problem}"):
        require_order(record)
    require_order(Comparison("p", ("a", "b", "c"), ranks=(1.0, 0.0, 1.0)))


def test_require_reference():
    record = parse(PAIR, "f:2")
    with pytest.raises(RecordError, match="^f:2: field `reference`: missing"):
        require_reference(record)
    require_reference(dataclasses.replace(record, references=("r",)))


@pytest.mark.parametrize(
    ("value", "types", "message"),
    [
        (
            None,
            2,
            "f.jsonl:3: field `type`: missing or not an integer of 32 bits, and the balancing constraint needs it; give 0 or 1",
        ),
        (2, 2, "out of range (2); give 0 or 1, or set adapter.expert_types"),
        (-1, 5, "out of range (-1); give 0 to 4"),
        (True, 2, "out of range (True)"),
        ("1", 2, "out of range ('1')"),
    ],
)
def test_require_type(value, types, message):
    with pytest.raises(RecordError) as raised:
        require_type(value, types, "f.jsonl:3")
    assert message in str(raised.value)
    require_type(1, 2, "f.jsonl:3")


TEXTS = st.text(min_size=1, max_size=20).filter(str.strip)
ROLES = st.sampled_from(["assistant", "tool"])
KEYS = st.just({}) | st.dictionaries(
    st.text(max_size=5).map("x".__add__), st.text(max_size=5) | st.integers(), max_size=2
)


def conversations(roles: st.SearchStrategy[str], role: str) -> st.SearchStrategy[str]:
    more = KEYS.map(lambda keys: json.dumps(keys, ensure_ascii=False) if keys else "")
    turns = st.lists(st.builds(Message, roles, TEXTS, more), min_size=1, max_size=3)
    return turns.map(lambda messages: text_of(messages, role))


ANSWERS = TEXTS | conversations(ROLES, "assistant")
PROMPTS = TEXTS | conversations(st.sampled_from(["system", "user", "tool"]), "user")
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def comparisons(draw) -> Comparison:
    """Any record that `parse` can return."""
    outputs = tuple(draw(st.lists(ANSWERS, min_size=1, max_size=4, unique=True)))
    per_output = st.tuples(*[FINITE] * len(outputs))
    ranks, scores = draw(st.none() | per_output), draw(st.none() | per_output)
    if ranks is None and scores is not None:
        ranks = ranks_from_scores(scores)
    votes = draw(st.none() | st.lists(per_output, min_size=1, max_size=3).map(tuple))
    return Comparison(
        prompt=draw(PROMPTS),
        outputs=outputs,
        references=tuple(draw(st.lists(ANSWERS, max_size=2))),
        ranks=ranks,
        scores=scores,
        votes=votes,
        policies=draw(st.none() | st.tuples(*[TEXTS] * len(outputs))),
        category=draw(st.none() | TEXTS),
        source=draw(st.none() | TEXTS),
        type=draw(st.none() | st.integers(0, 9)),
        wrapper=draw(st.sampled_from(["sft", "pretrain"])),
        weight=draw(st.floats(0, 1e9)),
        margin=draw(st.floats(-1e38, 1e38)),
        id=draw(st.just("") | TEXTS),
        place="f:1",
    )


@given(comparisons())
def test_to_row_is_the_inverse_of_parse(record):
    assert parse(json.loads(json.dumps(to_row(record))), record.place) == record
    assert pickle.loads(pickle.dumps(record)) == record


@given(PROMPTS, PROMPTS)
def test_texts_are_equal_if_their_messages_are(one, other):
    assert (one == other) == (messages_of(one, "user") == messages_of(other, "user"))
    assert operator.ne(one, other) is not operator.eq(one, other) and (one != other or hash(one) == hash(other))
    assert str.__str__(one) == "\n".join(message.content for message in messages_of(one, "user"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["wrapper", "type", "best", "ranks", *PAIR, *GROUP]), JSON))
def test_any_json_gives_a_record_or_a_record_error(row):
    try:
        record = parse(row, "f:1")
    except RecordError:
        return
    assert parse(to_row(record), "f:1") == record
