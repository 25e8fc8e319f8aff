"""PPE: votes, drawn pairs of samples, and the highest sample."""

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result


def vote(name, a, b, winner):
    return {"question_id": name, "model_a": "a", "model_b": "b", "winner": winner, "language": "English", "prompt": name,
            "response_1": answer(a, "x"), "response_2": answer(b, "y")}  # fmt: skip


def samples(name, scores, marks, pairs):
    return {"question_id": name, "prompt": f"q{name}", "model_name": "m", "scores": marks, "sampled_conflict_pairs": pairs,
            **{f"response_{i + 1}": answer(score, f"s{i}") for i, score in enumerate(scores)}}  # fmt: skip


def test_both_halves(tmp_path):
    put(tmp_path / "PPE-Human-Preference-V1/test.jsonl",
        [vote("1", 2, 1, "model_a"), vote("2", 2, 1, "model_b"), vote("3", 1, 2, "tie (bothbad)")])  # fmt: skip
    for name, marks in [("MMLU-Pro", [1, 0, 0]), ("MATH", [0, 1, 0]), ("GPQA", [0, 0, 1]), ("IFEval", [1, 1, 0]),
                        ("MBPP-Plus", [False, True, False])]:  # fmt: skip
        pairs = [[0, 2], [2, 0]] if name != "MBPP-Plus" and name != "MATH" else [[1, 2]]
        put(tmp_path / f"PPE-{name}-Best-of-K/train.jsonl", [samples(name, [3, 2, 1], marks, pairs)])
    loaded, found = result("ppe", tmp_path)
    got = numbers(found)
    assert found["score"] == "human preference" and got["human preference"] == 0.5 and found["overall"]["n"] == 2
    assert found["skipped"] == {"all outputs ranked equal": 1}
    assert [got[f"{name} pairs"] for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")] == [1, 1, 0, 1, 1]
    assert got["correctness"] == pytest.approx(4 / 5) and got["correctness, best of K"] == pytest.approx(2 / 5)
    assert loaded.published["differ"] == {"human preference": {"found": 3, "published": 16038}}


def test_a_file_that_does_not_say_which_questions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say which questions"):
        result("ppe", put(tmp_path / "train.jsonl", [samples("1", [2, 1], [1, 0], [[0, 1]])]))


def test_a_pair_of_equal_marks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a pair of equal scores"):
        result("ppe", put(tmp_path / "gpqa.jsonl", [samples("1", [2, 1], [1, 1], [[0, 1]])]))
