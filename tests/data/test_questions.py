"""Prompts that a policy is asked."""

import json
from types import SimpleNamespace

import pytest

from rmjax.data.messages import USER, messages_of
from rmjax.data.questions import parse_question, questions
from rmjax.data.record import RecordError


def section(path, **changes):
    return SimpleNamespace(**{"path": str(path), "layout": "records", "columns": (), "on_error": "raise"} | changes)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_s_answers_are_not_read_and_all_else_is_kept():
    row = {
        "prompt": "p", "chosen": "a", "rejected": ["b"], "reference": "r", "id": "x", "category": "c", "type": 2,
        "rewards": [1.0, 2.0], "token_ids": [[1], [2]],
    }  # fmt: skip
    found = parse_question(row, "f:1")
    assert (found.prompt, found.outputs, found.references, found.ranks) == ("p", (), ("r",), None)
    assert (found.id, found.category, found.type, found.place, found.columns) == ("x", "c", 2, "f:1", {})
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert [m.role for m in messages_of(parse_question({"messages": messages}, "f:1").prompt, USER)] == [
        "system",
        "user",
    ]


def test_a_file_of_prompts(tmp_path):
    rows = [{"id": str(i), "prompt": f"p{i}", "category": "ab"[i % 2], "answer": str(i)} for i in range(4)]
    path = write(tmp_path / "p.jsonl", rows)
    found = questions(section(path, columns=("id", "prompt", "category", "reference=answer")), "a")
    assert [c.references for c in found.each()] == [("0",), ("2",)] and found.skipped == {"another category": 2}
    assert found.identify(1) == "2" and found.digest() != questions(section(path)).digest()
    with pytest.raises(ValueError, match=r"there is no prompt \(4 × another category\)"):
        questions(section(path), "c")
    with pytest.raises(ValueError, match="config.evals.x.path is empty"):
        questions(section(""), section="evals.x")


def test_a_row_without_a_prompt_is_an_error_or_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "p"}, {"id": "1"}])
    with pytest.raises(RecordError, match="p.jsonl:2"):
        questions(section(path))
    assert sum(questions(section(path, on_error="skip")).skipped.values()) == 1
