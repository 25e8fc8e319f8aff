"""JudgeBench: two sets, four kinds of questions."""

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result


def row(name, a, b, label, source="mmlu-pro-math", model="gpt-4o-2024-05-13"):
    return {"pair_id": name, "original_id": "1", "source": source, "question": name, "response_model": model,
            "response_A": answer(a, "a"), "response_B": answer(b, "b"), "label": label}  # fmt: skip


ROWS = [
    row("1", 2, 1, "A>B"), row("2", 2, 1, "B>A"), row("3", 1, 1, "A>B"), row("4", 1, 2, "B>A", "livecodebench"),
    row("5", 1, 2, "B>A", "livebench-math", "claude-3-5-sonnet-20240620"),
]  # fmt: skip


def test_each_set_by_itself(tmp_path):
    put(tmp_path / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl", ROWS)
    loaded, found = result("judge_bench", tmp_path)
    assert numbers(found) == pytest.approx({
        "GPT-4o": 0.5, "Claude-3.5-Sonnet": 1.0, "GPT-4o: knowledge": 1 / 3, "GPT-4o: coding": 1.0,
        "Claude-3.5-Sonnet: math": 1.0,
    })  # fmt: skip
    assert found["overall"]["ties"] == 1
    assert loaded.published["differ"]["GPT-4o: knowledge"] == {"found": 3, "published": 154}


@pytest.mark.parametrize(
    ("broken", "says"), [({"label": "A=B"}, "unknown label"), ({"source": "aime"}, "unknown source")]
)
def test_unknown_labels_and_sources_are_named_and_counted(tmp_path, broken, says):
    path = put(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], **broken}])
    with pytest.raises(ValueError, match=rf"rows.jsonl:6: field `\w+`: {says}"):
        result("judge_bench", path)
    loaded, _ = result("judge_bench", path, "skip")
    assert list(loaded.unreadable.values()) == [1] and len(loaded.records) == 5
