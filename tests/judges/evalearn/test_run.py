"""EvaLearn's command: files in, figures out, nothing asked twice."""

import dataclasses
import json

import pytest

from rmjax.judges import generators
from rmjax.judges.evalearn.run import Options, evaluate, notes
from tests.judges.evalearn.test_data import problem, write
from tests.judges.scripted import Scripted


@pytest.fixture
def options(tmp_path):
    rows = [problem(n) for n in range(9)]
    sequences = [{"sequence_id": s, "question_ids": [3 * s, 3 * s + 1, 3 * s + 2]} for s in range(3)]
    return Options(
        "http://127.0.0.1:1/v1#student", tmp_path / "out", "http://127.0.0.1:1/v1#judge",
        str(write(tmp_path / "p.json", rows)), str(write(tmp_path / "s.json", sequences)), late=1,
    )  # fmt: skip


def use(monkeypatch, student, judge):
    made = {"student": Scripted(student, "student"), "judge": Scripted(judge, "judge")}
    monkeypatch.setattr(generators, "open_generator", lambda model, how: made[model.partition("#")[2]])
    return made


def grade(prompt, n):  # right from the second problem on, where it was told before
    return f'{{"answer_score": {int("told" in prompt)}}}'


def test_figures_and_files(options, monkeypatch):
    made = use(monkeypatch, lambda prompt, n: "told" if "[Grade of your answer]" in prompt else "guess", grade)
    result = evaluate(options)
    feedback = result["paradigms"]["feedback"]
    assert feedback["whole_sequences"] == 3 and feedback["curve"]["micro"] == [0.0, 1.0, 1.0]
    assert feedback["figures"]["offset"]["macro"]["value"] == 2.0
    assert result["differences"]["feedback"]["micro"]["value"] == pytest.approx(2 / 3)
    assert json.loads((options.out / "result.json").read_text())["paradigms"] == json.loads(
        json.dumps(result["paradigms"])
    )
    assert len((options.out / "feedback.jsonl").read_text().splitlines()) == 9
    said = "\n".join(notes(result))
    assert "first        +2.000" in said and "as published; chance" in said
    asked = len(made["student"].asked)
    evaluate(options)
    assert len(made["student"].asked) == asked == 18
    assert result["failures"] == {}


def test_toys_need_no_judge(tmp_path, monkeypatch):
    use(monkeypatch, lambda prompt, n: "red", grade)
    result = evaluate(Options("http://127.0.0.1:1/v1#student", tmp_path, toy=2, paradigms=("feedback",)))
    assert result["sequences"] == {"affine": 2, "labels": 2, "letters": 2}
    assert 0 < result["paradigms"]["feedback"]["figures"]["accuracy"]["micro"]["value"] < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toy": 1}, "give --problems and --sequences, or --toy"),
        ({"judge": ""}, "--judge is missing"),
        ({"paradigms": ("none",)}, "--paradigm=none does not exist"),
    ],
)
def test_options_that_contradict(options, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **change)
