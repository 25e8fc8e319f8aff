"""EvaLearn's files, hand-made in their layout."""

import json
import logging

import pytest

from rmjax.data.errors import RecordError
from rmjax.judges.evalearn.data import read_problems, read_series
from rmjax.judges.evalearn.toy import says_it, toy_series


def problem(n, **more):
    return {
        "id": n, "type": "Extraction", "source": "own", "level": 1, "prompt": [f"question {n}"], "rubric": f"has {n}",
        "canonical_answer": "", **more,
    }  # fmt: skip


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_the_published_layout(tmp_path, caplog):
    problems = read_problems(write(tmp_path / "p.json", [problem(1), problem(2, prompt=["a", "b", "c"])]))
    assert problems["1"].rubric == "has 1" and problems["1"].standard == ""
    assert [turn["role"] for turn in problems["2"].turns] == ["user", "assistant", "user"]
    rows = [{"sequence_id": 5, "type": "Extraction", "question_ids": [2, 1]}]
    with caplog.at_level(logging.WARNING):
        (series,) = read_series(write(tmp_path / "s.json", rows), problems)
    assert (series.id, [p.id for p in series.problems]) == ("5", ["2", "1"])
    assert "Extraction 1 instead of 17" in caplog.text


def test_later_files_have_two_rubrics(tmp_path):
    row = {k: v for k, v in problem(1).items() if k != "rubric"} | {"rubric_zh": "甲", "rubric_en": "A"}
    file = write(tmp_path / "p.json", [row])
    assert read_problems(file)["1"].rubric == "甲" and read_problems(file, "rubric_en")["1"].rubric == "A"
    with pytest.raises(RecordError, match=r"p.json:1: field `rubric`: missing"):
        read_problems(file, "rubric")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "field `prompt`: not a list of texts"),
        ({"prompt": ["a", "b"]}, "field `prompt`: ends with the assistant's turn"),
        ({"rubric": ""}, "field `rubric`: missing; give one of rubric, rubric_zh, rubric_en"),
        ({"id": None}, "field `id`: missing"),
        ({"id": 2}, r"field `id`: is there twice \(2\)"),
    ],
)
def test_broken_problems(tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        read_problems(write(tmp_path / "p.json", [problem(2), problem(1, **change)]))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 9], "no problem has the id .9."),
        ([1, 1], "twice"),
        ([1, 3], "several types"),
        ([1], "another length"),
        ("1", "not a list"),
    ],
)
def test_broken_sequences(tmp_path, ids, message):
    problems = read_problems(write(tmp_path / "p.json", [problem(1), problem(2), problem(3, type="Other")]))
    rows = [{"sequence_id": 1, "question_ids": [1, 2]}, {"sequence_id": 2, "question_ids": ids}]
    with pytest.raises(RecordError, match=message):
        read_series(write(tmp_path / "s.json", rows), problems)


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="git clone https://github.com/ByteDance-Seed/EvaLearn"):
        read_problems(tmp_path / "none.json")


def test_toys():
    series = toy_series(2)
    assert [each.type for each in series] == ["letters"] * 2 + ["affine"] * 2 + ["labels"] * 2
    assert series == toy_series(2) and series != toy_series(2, seed=1)
    for each in series:
        assert len({p.prompt for p in each.problems}) == 7
        assert all(says_it("", f"So it is {p.standard}.", (p.standard,)) == 1 for p in each.problems)
    assert says_it("", "", ("x",)) == 0
