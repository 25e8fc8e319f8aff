"""LLMBar: the folder says the subset."""

import pytest

from tests.evaluate.suites.handmade import answer, numbers, put, result


def row(first, second, label):
    return {
        "input": f"{first} {second}",
        "output_1": answer(first, "x"),
        "output_2": answer(second, "y"),
        "label": label,
    }


def test_averages_over_subsets(tmp_path):
    right, wrong = row(2, 1, 1), row(2, 1, 2)
    put(tmp_path / "Natural/dataset.json", [right])
    put(tmp_path / "Adversarial/Neighbor/dataset.json", [right, wrong, wrong, row(1, 1, 1)])
    for name in ("GPTInst", "GPTOut", "Manual"):
        put(tmp_path / f"Adversarial/{name}/dataset.json", [wrong] if name == "Manual" else [right])
    put(tmp_path / "Natural/evaluators/result.json", [{"other": 1}])
    loaded, found = result("llmbar", tmp_path)
    expected = {"Natural": 1, "Neighbor": 0.25, "GPTInst": 1, "GPTOut": 1, "Manual": 0}
    assert numbers(found) == pytest.approx({"average": 3.25 / 5, "Adversarial": 2.25 / 4, **expected})
    repeated = {"the same prompt and answers once more": 1, "the same prompt and answers, and another label": 1}
    assert loaded.kept == repeated and loaded.published["published"] == 419
