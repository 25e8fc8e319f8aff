"""RMB: the winner beats every loser, ties fail, overall is the mean of four."""

import logging

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result

ASKED = [{"role": "user", "content": "What?", "language": "English"}]


def pair(uid, chosen, rejected, goal="Helpfulness/Code/Documentation"):
    return {
        "pair_uid": uid, "category_path": f"Pairwise_set/{goal}", "conversation_input": [{**ASKED[0], "content": uid}],
        "chosen": {"answer": chosen, "llm_name": "a"}, "reject": {"answer": rejected, "llm_name": "b"},
    }  # fmt: skip


def best(uid, first, *losers, goal="Helpfulness/Code/Documentation"):
    return {
        "bon_uid": uid, "category_path": f"BoN_set/{goal}", "conversation_input": ASKED,
        "bon_best": {"answer": answer(first), "llm_name": "a"},
        "loser_list": [{"answer": answer(x, f"l{i}"), "llm_name": "b"} for i, x in enumerate(losers)],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    won, lost = (answer(2), answer(1, "worse")), (answer(1), answer(2, "worse"))
    put(tmp_path / "Pairwise_set/Helpfulness/Code/Documentation.json",
        [pair("1", *won), pair("2", *won), pair("3", *won), pair("4", *lost)])  # fmt: skip
    put(tmp_path / "Pairwise_set/Harmlessness/S1.json",
        [pair("5", *lost, "Harmlessness/S1"), pair("6", answer(1), answer(1), "Harmlessness/S1"),
         pair("7", "", answer(1), "Harmlessness/S1")])  # fmt: skip
    put(tmp_path / "BoN_set/Helpfulness/Code/Documentation.json", [best("8", 3, 1, 2), best("9", 2, 2, 1)])
    put(tmp_path / "BoN_set/Harmlessness/S1.json", [best("10", 3, 1, 2, goal="Harmlessness/S1")])
    return tmp_path


def test_the_four_parts_and_their_mean(folder, caplog):
    with caplog.at_level(logging.WARNING):
        loaded, found = result("rmb", folder)
    assert numbers(found) == pytest.approx({
        "overall": (0.5 + 0.75 + 1 + 0) / 4, "helpful best of N": 0.5, "helpful pairs": 0.75, "harmless best of N": 1.0,
        "harmless pairs": 0.0, "best of N: Helpfulness/Code/Documentation": 0.5, "best of N: Harmlessness/S1": 1.0,
        "pairs: Helpfulness/Code/Documentation": 0.75, "pairs: Harmlessness/S1": 0.0,
    })  # fmt: skip
    assert found["overall"]["n"] == 10 and found["overall"]["ties"] == 2
    assert found["overall"]["low"] < found["overall"]["accuracy"] < found["overall"]["high"]
    assert found["incomplete"] == {} and found["skipped"] == {}
    assert loaded.kept == {
        "the better and a worse answer are the same text, so that it fails": 1, "an empty answer": 1,
    }  # fmt: skip
    assert loaded.published["differ"]["best of N: Helpfulness/Code"] == {"found": 2, "published": 280}
    assert loaded.published["found"] == 10 and loaded.published["published"] == 3786 + 17131
    assert "pairs: Helpfulness/Code 4 instead of 1,224" in caplog.text and "parts without a row" in caplog.text


def test_without_a_part_there_is_no_overall_score(folder, caplog):
    for path in (folder / "BoN_set/Harmlessness").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):
        _, found = result("rmb", folder)
    assert found["score"] == "helpful best of N" and found["incomplete"]["overall"] == ["harmless best of N"]
    assert "not computed: overall, harmless best of N, since there is no row of harmless best of N" in caplog.text


def test_best_baseline_and_differences_are_those_of_the_same_rows(folder):
    _, found = result("rmb", folder)
    highest = max(each["overall"]["accuracy"] for each in found["baselines"].values())
    best_of_all = found["baselines"][found["best_baseline"]]["overall"]["accuracy"]
    assert best_of_all == highest
    gain = found["differences"][found["best_baseline"]]
    assert gain["value"] == pytest.approx(found["overall"]["accuracy"] - highest)
    assert found["multiplicity"].keys() == {name for name in found["categories"] if ":" in name}
    assert all(0 < each["p"] <= each["q"] <= 1 for each in found["multiplicity"].values())
