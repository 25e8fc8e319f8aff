"""A judge in place of a reward model: the command's numbers, what was not scored, going on after a stop."""

import json

import pytest

from rmjax.evaluate.evaluation import Options, evaluate, notes
from rmjax.judges import generators
from tests.judges.scripted import Scripted

MODEL = "http://127.0.0.1:1/v1#stub"


def rows(count=6):
    return [
        {"id": f"r{i}", "prompt": f"prompt {i}", "chosen": "good" * (i + 1), "rejected": "bad"} for i in range(count)
    ]


@pytest.fixture
def options(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return Options(MODEL, str(tmp_path / "data.jsonl"), tmp_path / "out.json", rows_per_save=2, judge="pairwise")


def use(monkeypatch, answer):
    generator = Scripted(answer)
    monkeypatch.setattr(generators, "open_generator", lambda model, how: generator)
    return generator


def fair(prompt, n):
    return "[[A]]" if prompt.index("good") < prompt.index("bad") else "[[B]]"


def test_a_judge_is_evaluated_as_a_model_is(options, monkeypatch):
    generator = use(monkeypatch, fair)
    result = evaluate(options)
    assert result["overall"]["accuracy"] == 1.0 and result["overall"]["n"] == 6 and result["resumed_rows"] == 0
    assert result["baselines"]["longer" if "longer" in result["baselines"] else "length"]["overall"]["n"] == 6
    assert json.loads(options.out.read_text())["judge"]["position"]["consistent"]["value"] == 1.0
    assert len(generator.asked) == 12
    again = evaluate(options)
    assert len(generator.asked) == 12 and again["resumed_rows"] == 6
    assert again["overall"] == result["overall"] and again["sha256"] == result["sha256"]
    assert any("two orders agree: 1.000" in line for line in notes(result))


def test_rows_without_a_score_are_in_no_accuracy(options, monkeypatch):
    def answer(prompt, n):
        if "prompt 0" in prompt:
            return None
        return "I like both." if "prompt 1" in prompt else fair(prompt, n)

    generator = use(monkeypatch, answer)
    result = evaluate(options)
    assert (result["overall"]["accuracy"], result["overall"]["n"], result["rows"]) == (1.0, 4, 4)
    assert result["judge"]["unread"] == {"no verdict": 2} and result["judge"]["failures"] == {"HTTP 500": 2}
    assert result["judge"]["bounds"] == pytest.approx({"low": 4 / 6, "high": 1.0})
    said = "\n".join(notes(result))
    assert "rows without a score, in no accuracy: 1 (a question without a reply)" in said
    assert "all wrong: 0.667; if all right: 1.000" in said
    asked = len(generator.asked)
    use(monkeypatch, fair)
    assert evaluate(options)["overall"]["n"] == 5  # what failed is asked again, what could not be read is not
    assert asked == 12


def test_a_judge_that_says_nothing_readable(options, monkeypatch):
    use(monkeypatch, lambda prompt, n: "I like both.")
    with pytest.raises(
        ValueError,
        match=r"gave none of 6 rows a score \(6 × a question without a readable reply; replies: 12 × no verdict\)",
    ):
        evaluate(options)


def test_a_suite_is_judged(tmp_path, monkeypatch):
    use(monkeypatch, lambda prompt, n: "[[A]]" if prompt.index("right") < prompt.index("wrong") else "[[B]]")
    rows = [{"input": f"q{i}", "output_1": "right", "output_2": "wrong", "label": 1} for i in range(3)]
    folder = tmp_path / "LLMBar" / "Natural"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(rows))
    result = evaluate(Options(MODEL, str(tmp_path / "LLMBar"), tmp_path / "o.json", suite="llmbar", judge="pairwise"))
    assert result["overall"]["accuracy"] == 1.0 and result["judge"]["replies"] == 6
