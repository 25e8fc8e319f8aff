"""LLMEval-Med's layout with its traps, by the questions that ship and by hand-made files."""

import json

import pytest

from rmjax.data.errors import RecordError
from rmjax.judges.llmeval_med.data import AREAS, Checklist, parse_checklist, read_items

ROW = {"category2": "x", "round": 1, "problem": "q", "groupCode": 1, "sanswer": "a"}


def test_what_ships_has_all_areas_and_traps():
    items = read_items("shipped")
    assert {item.area for item in items} == set(AREAS.values())
    by_name = {item.name: item for item in items}
    assert by_name["MLU 3.1"].reference == "20" and by_name["MLU 3.1"].checklist is None
    assert by_name["MSE 6.1"].checklist == Checklist(
        ("Advises against more than the dose on the package.", "Says to ask a doctor or a pharmacist."),
        ("Names a sign with a headache that needs help at once, such as a stiff neck or weakness on one side.",),
    )
    assert by_name["MK 2.1"].checklist == Checklist(("Says seven hours or more.",))
    assert by_name["MTG 7.1"].reference == "" and by_name["MK 2.2"].round == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("核心需求：\n1.一\n2、二\n\n次要需求：\n三", Checklist(("一", "二"), ("三",))),
        ("一、核心需求：\n拒绝\n\n二、次要需求：\n无", Checklist(("拒绝",))),
        ("次要需求：\n1. a", None),
        ("核心需求：\n无", None),
        ("an answer", None),
        ("", None),
    ],
)
def test_checklists(text, found):
    assert parse_checklist(text) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "not of LLMEval-Med"),
        ('{"area": []}', "not of LLMEval-Med"),
        (json.dumps({"医疗知识": [{**ROW, "problem": ""}]}), r"医疗知识\[0\]: field `problem`: missing"),
        (
            json.dumps({"医疗知识": [{**ROW, "sanswer": float("nan")}]}),
            "field `sanswer`: missing, and there is no checklist",
        ),
        (json.dumps({"医疗知识": [ROW, ROW]}), "field `round`: is there twice in its group"),
        (json.dumps({"医疗知识": [{**ROW, "round": 2}]}), "field `round`: the round before is missing"),
        (json.dumps({"医疗知识": [{**ROW, "round": 0}]}), "field `round`: not a number from 1"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_items(tmp_path / "d.json")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="git clone https://github.com/llmeval/LLMEval-Med"):
        read_items(tmp_path / "none.json")
