"""HH, HelpSteer, SHP, UltraFeedback, and POLAR's protocol on any ranking."""

import gzip
import json

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result


def transcript(last, asked="Why?"):
    return f"\n\nHuman: {asked}\n\nAssistant: Well.\n\nHuman: And?\n\nAssistant: {last}"


def test_hh(tmp_path):
    rows = [
        {"chosen": transcript(answer(2)), "rejected": transcript(answer(1))},
        {"chosen": transcript(answer(1)), "rejected": transcript(answer(2))},
        {"chosen": transcript(answer(1)), "rejected": transcript(answer(2), "Who?")},
    ]
    folder = tmp_path / "harmless-base"
    folder.mkdir()
    (folder / "test.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    loaded, found = result("hh", tmp_path)
    assert numbers(found) == {"pairs": 0.5, "harmless-base test": 0.5}
    assert loaded.dropped == {"rejected: another conversation before the last turn": 1}
    assert loaded.published["differ"] == {"harmless-base test": {"found": 2, "published": 2312}}
    assert [m.role for m in loaded.records[0].prompt.messages] == ["user", "assistant", "user"]
    assert loaded.records[0].outputs == (answer(2), answer(1))


def test_helpsteer(tmp_path):
    rows = [("p", 3, 4), ("p", 2, 3), ("p", 5, 3), ("q", 1, 0), ("q", 2, 0)]  # prompt, own score, helpfulness
    put(tmp_path / "validation.jsonl", [
        {"prompt": p, "response": answer(s, f"{i}"), "helpfulness": h, "correctness": 1, "coherence": 1, "complexity": 1,
         "verbosity": 1} for i, (p, s, h) in enumerate(rows)])  # fmt: skip
    loaded, found = result("helpsteer", tmp_path)
    assert numbers(found) == {"helpfulness": 0.5} and found["overall"]["n"] == 2  # 4 > 3 twice
    assert found["skipped"] == {"all outputs ranked equal": 1}
    assert loaded.published["differ"] == {"helpfulness validation of HelpSteer": {"found": 5, "published": 1789}}


def test_helpsteer_preferences(tmp_path):
    def row(strength, domain="code"):
        return {"domain": domain, "language": "c", "context": [{"role": "user", "content": f"{strength}"}],
                "response1": answer(2, "x"), "response2": answer(1, "y"), "overall_preference": strength}  # fmt: skip

    put(tmp_path / "three/validation.jsonl", [row(-3), row(-1, "stem"), row(2), row(0)])
    two = {"split": "validation", "prompt": "p", "response_1": answer(1, "x"), "response_2": answer(2, "y")}
    two["preference_strength"] = 1
    put(tmp_path / "two/validation.jsonl", [two])
    _, found = result("helpsteer", tmp_path)
    assert numbers(found) == pytest.approx({
        "HelpSteer3 preferences": 2 / 3, "HelpSteer2 preferences": 1, "HelpSteer3 preferences: code": 0.5,
        "HelpSteer3 preferences: stem": 1, "HelpSteer2 preferences: validation": 1,
    })  # fmt: skip
    with pytest.raises(ValueError, match="overall_preference`: unknown label"):
        result("helpsteer", put(tmp_path / "other.jsonl", [row(5)]))


def test_shp(tmp_path):
    rows = [
        {"post_id": str(i), "domain": domain, "history": f"h{i}", "human_ref_A": answer(2, "a"), "human_ref_B": answer(1, "b"),
         "labels": label, "score_A": 2, "score_B": 1}
        for i, (domain, label) in enumerate([("askbaking_test", 1), ("askbaking_test", 0), ("explainlikeimfive_test", 1)])
    ]  # fmt: skip
    put(tmp_path / "askbaking/test.json", rows, lines=True)
    loaded, found = result("shp", tmp_path)
    assert numbers(found) == pytest.approx({"pairs": 2 / 3, "askbaking": 0.5, "explainlikeimfive": 1.0})
    assert loaded.published["differ"] == {"test": {"found": 3, "published": 18409}}


def completions(*two):
    return [{"model": f"m{i}", "response": answer(own, f"c{i}"), "fine-grained_score": rated, "overall_score": 9 - rated}
            for i, (own, rated) in enumerate(two)]  # fmt: skip


def test_ultrafeedback(tmp_path):
    rows = [
        {
            "source": "flan",
            "instruction": "i",
            "models": [],
            "completions": completions((4, 5), (3, 4), (9, 2), (1, 2)),
        },
        {"source": "flan", "instruction": "none", "models": [], "completions": []},
    ]
    put(tmp_path / "flan.jsonl", rows)
    asked = [{"role": "user", "content": "p"}]
    said = [[*asked, {"role": "assistant", "content": answer(x, "z")}] for x in (2, 1)]
    row = {"prompt": "p", "prompt_id": "1", "chosen": said[0], "rejected": said[1], "messages": said[0]}
    put(tmp_path / "binarized.jsonl", [{**row, "score_chosen": 8.0, "score_rejected": 7.0}])
    loaded, found = result("ultrafeedback", tmp_path)
    assert numbers(found) == pytest.approx({"pairs": 3 / 5, "binarized": 1.0, "flan": 3 / 5})  # 9 beats 5 and 4 wrongly
    assert loaded.records[0].outputs == (answer(2, "z"), answer(1, "z"))  # the copy of the prompt is off


def test_polar_protocol(tmp_path, caplog):
    rows = [
        {"prompt": "a", "outputs": [answer(0, "best"), answer(1, "third"), answer(2, "second")], "ranks": [0, 2, 1]},
        {"prompt": "b", "outputs": [answer(0, "best"), answer(1, "second"), answer(1, "third")], "ranks": [0, 1, 2]},
        {"prompt": "c", "outputs": [answer(0, "best"), answer(1, "b"), answer(2, "c")], "ranks": [0, 1, 1]},
        {"prompt": "d", "outputs": [answer(0, "best"), answer(1, "b")], "ranks": [0, 1]},
    ]
    loaded, found = result("polar", put(tmp_path / "ranked.jsonl", rows))
    assert numbers(found) == {"second above third": 0.5} and found["overall"]["ties"] == 1
    assert loaded.records[0].references == (answer(0, "best"),) and found["without_reference"] == 0
    assert loaded.records[0].outputs == (answer(2, "second"), answer(1, "third"))
    assert loaded.dropped == {"no strict first, second and third answer": 2}
    with pytest.raises(ValueError, match="none of its 1 records has three answers in strict order"):
        result("polar", put(tmp_path / "two.jsonl", rows[3:]))
