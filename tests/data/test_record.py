"""The record: what is accepted, what is refused and how, and the way back to a row."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.data.messages import Conversation, Message
from rmjax.data.record import (
    Comparison,
    RecordError,
    nearest_field,
    parse,
    ranks_from_scores,
    require_order,
    require_reference,
    require_type,
    to_row,
    unknown_fields,
)

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


def test_candidates_lose_a_repeated_prompt():
    row = {"prompt": [USER], "chosen": [USER, message("a")], "rejected": [USER, message("b")]}
    assert parse(row, "").outputs == ("a", "b")


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
    ({**PAIR, "prompt": "\ud800"}, "prompt", "lone surrogate"),
    ({**PAIR, "messages": [USER]}, "prompt", "exclude each other"),
    ({"prompt": "p"}, "outputs", "missing"),
    ({"prompt": "p", "chosen": "a"}, "rejected", "missing"),
    ({**PAIR, "output": "c"}, "output", "exclude each other"),
    ({**PAIR, "chosen": " \n"}, "chosen", "empty text"),
    ({**PAIR, "rejected": []}, "rejected", "empty list"),
    ({**PAIR, "rejected": ["b", ""]}, "rejected[1]", "empty text"),
    ({**PAIR, "chosen": ["a", "b"]}, "chosen", "neither text nor messages"),
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
    ({**PAIR, "type": 2**40}, "type", "beyond 32 bits"),
    ({**PAIR, "weight": float("inf")}, "weight", "not finite"),
    ({**PAIR, "type": "math"}, "type", "not an integer"),
    ({**PAIR, "category": 3}, "category", "not a string"),
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
        (None, 2, "f.jsonl:3: field `type`: missing, and the balancing constraint needs it; give 0 or 1"),
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
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def comparisons(draw) -> Comparison:
    """Any record that `parse` can return."""
    outputs = tuple(draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True)))
    per_output = st.tuples(*[FINITE] * len(outputs))
    ranks, scores = draw(st.none() | per_output), draw(st.none() | per_output)
    if ranks is None and scores is not None:
        ranks = ranks_from_scores(scores)
    votes = draw(st.none() | st.lists(per_output, min_size=1, max_size=3).map(tuple))
    return Comparison(
        prompt=draw(TEXTS),
        outputs=outputs,
        references=tuple(draw(st.lists(TEXTS, max_size=2))),
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
    assert parse(to_row(record), record.place) == record


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["wrapper", "best", "ranks", *PAIR, *GROUP]), JSON))
def test_any_json_gives_a_record_or_a_record_error(row):
    try:
        record = parse(row, "f:1")
    except RecordError:
        return
    assert parse(to_row(record), "f:1") == record
