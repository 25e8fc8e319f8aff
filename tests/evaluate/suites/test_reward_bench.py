"""RewardBench: sections weight subsets by their rows, math-prm by 984."""

import pytest

from rmjax.evaluate.suites.reward_bench import BENCHMARK, SECTIONS
from tests.evaluate.suites.handmade import answer, numbers, put, result

WRONG = ("alpacaeval-easy", "mt-bench-hard", "math-prm")


def row(subset, number):
    chosen, rejected = (answer(1), answer(2, "no")) if subset in WRONG else (answer(2), answer(1, "no"))
    return {"prompt": f"{subset}?", "chosen": chosen, "chosen_model": "a", "rejected": rejected, "rejected_model": "b",
            "subset": subset, "id": number}  # fmt: skip


SUBSETS = [subset for subsets in SECTIONS.values() for subset in subsets]


def test_section_weights(tmp_path):
    path = put(tmp_path / "filtered.jsonl", [row(subset, i) for i, subset in enumerate(SUBSETS)])
    loaded, found = result("reward_bench", tmp_path)
    chat, hard, reasoning = 1 - 100 / 358, 1 - 37 / 456, 1 - 984 / 1968
    expected = {
        "overall": (chat + hard + 1 + reasoning) / 4,
        "Chat": chat,
        "Chat Hard": hard,
        "Safety": 1.0,
        "Reasoning": reasoning,
    }
    assert numbers(found) == pytest.approx(expected | {subset: float(subset not in WRONG) for subset in SUBSETS})
    assert path.name == "filtered.jsonl" and loaded.published["published"] == 2985 == sum(BENCHMARK.published.values())


def test_the_raw_file_beside_the_filtered_one_is_not_read(tmp_path):
    put(tmp_path / "data/raw-00000.jsonl", [row("extra", 1)])
    put(tmp_path / "data/filtered-00000.jsonl", [row("donotanswer", 1)])
    loaded, found = result_of_safety(tmp_path)
    assert [c.source for c in loaded.records] == ["donotanswer"] and found is None


def result_of_safety(path):
    loaded = BENCHMARK.load(path)
    with pytest.raises(ValueError, match="none of its scores can be computed of 1 records, since there is no row of"):
        result("reward_bench", path)
    return loaded, None
