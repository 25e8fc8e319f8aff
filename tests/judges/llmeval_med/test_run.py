"""LLMEval-Med's command with scripted models: rounds, verdicts, aggregation, people."""

import json
import re

import pytest

from rmjax.data.errors import RecordError
from rmjax.judges import generators
from rmjax.judges.forms import Unread
from rmjax.judges.llmeval_med.data import read_items
from rmjax.judges.llmeval_med.judging import Prompts, Verdict, points, read_verdict
from rmjax.judges.llmeval_med.refine import Change
from rmjax.judges.llmeval_med.run import Options, evaluate, notes
from tests.judges.scripted import Scripted


def verdict(prompt, safe=True, core=True):
    c, s = map(int, re.search(r"its order \((\d+) and\s+(\d+)\)", prompt).groups())
    return json.dumps({"core": [core] * c, "secondary": [False] * s, "safe": safe})


def use(monkeypatch, student, judge):
    made = {"student": Scripted(student, "student"), "judge": Scripted(judge, "judge")}
    monkeypatch.setattr(generators, "open_generator", lambda model, how: made[model.partition("#")[2]])
    return made


@pytest.fixture
def options(tmp_path):
    return Options("http://127.0.0.1:1/v1#student", "http://127.0.0.1:1/v1#judge", tmp_path, runs=2)


def test_rounds_verdicts_and_rates(options, monkeypatch):
    made = use(
        monkeypatch,
        lambda prompt, n: f"answer {n}",
        lambda prompt, n: "fine" if "sunlight" in prompt else verdict(prompt, safe="headache" not in prompt),
    )
    result = evaluate(options)
    assert len(made["student"].asked) == len(set(made["judge"].asked)) == 18
    second = [prompt for prompt in made["student"].asked if "And a newborn?" in prompt]
    assert sorted("answer 0" in prompt for prompt in second) == [False, True]  # each run behind its own answer
    assert any("Earlier in this conversation" in prompt for prompt in made["judge"].asked)
    rates = {area: found["value"] for area, found in result["paper"]["areas"].items()}
    assert rates == {"MK": 1.0, "MLU": 1.0, "MR": 1.0, "MSE": 0.0, "MTG": 1.0}
    assert result["paper"]["overall"]["value"] == 0.8 and result["paper"]["unscored"] == 2
    assert result["released"]["areas"]["MK"]["value"] == pytest.approx(2 / 3)
    assert result["unread"] == {"no JSON object": 2}
    assert "runs without a score: 2" in "\n".join(notes(result))
    evaluate(options)
    assert len(made["student"].asked) == 18 and len(made["judge"].asked) == 18


def test_people(options, monkeypatch, tmp_path):
    use(monkeypatch, lambda prompt, n: "a", lambda prompt, n: verdict(prompt))
    said = [{"area": "MK", "group": "2", "round": r, "run": 0, "usable": r == 1} for r in (1, 2)]
    file = tmp_path / "human.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    found = evaluate(Options(options.model, options.judge, options.out, human=str(file), runs=2))["human"]
    assert found["areas"]["MK"]["agreement"]["value"] == 0.5 and found["areas"]["MK"]["only_judge"] == 1
    file.write_text(json.dumps({**said[0], "run": 7}) + "\n")
    with pytest.raises(RecordError, match="a verdict on no answer of this run"):
        evaluate(Options(options.model, options.judge, options.out, human=str(file), runs=2))


def test_the_judge_is_refined_by_a_file_of_changes(options, monkeypatch, tmp_path):
    """People want a warning; the judge learns to ask for one, and half of the questions are the test."""

    def judged(prompt, n):
        return verdict(prompt, core="Warns." not in prompt or "careful" in prompt.split("Answer to check:")[1][:20])

    use(monkeypatch, lambda prompt, n: "careful" if n == 0 else "go on", judged)
    file, library = tmp_path / "human.jsonl", tmp_path / "library.toml"
    rows = [
        {"area": i.area, "group": i.group, "round": i.round, "run": run, "usable": run == 0}
        for i in read_items("shipped") for run in (0, 1) if i.round == 1
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    library.write_text('[[changes]]\ntext = "Rhymes."\n[[changes]]\ntext = "Warns."\n')
    asked = Options(options.model, options.judge, options.out, human=str(file), library=str(library), runs=2)
    result = evaluate(asked)
    steps = result["refinement"]["refined"]
    assert [change["text"] for change in steps[-1]["changes"]] == ["Warns."]
    assert [step["test"]["agreement"]["value"] for step in steps] == [0.5, 1.0]
    assert "refined, round 1: agreement on the test 1.000" in "\n".join(notes(result))
    with pytest.raises(ValueError, match="there are none; give --human"):
        Options(options.model, options.judge, options.out, library=str(library))
    library.write_text("changes = 3")
    with pytest.raises(ValueError, match="changes is no list of tables with `text`"):
        evaluate(asked)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"core": [true], "secondary": [false, true], "safe": true}', Verdict((True,), (False, True), True)),
        ('{"core": [true], "secondary": [false], "safe": true}', Unread("another number of points")),
        ('{"core": [1], "secondary": [false, true], "safe": true}', Unread("no lists of true and false")),
        ('{"core": [true], "secondary": [false, true]}', Unread("nothing about safety")),
        ("[4]", Unread("no JSON object")),
    ],
)
def test_verdicts_are_read_strictly(reply, found):
    assert read_verdict(reply, 1, 2) == found


def test_points_of_each_area():
    prompts, items = Prompts.load(), {item.name: item for item in read_items("shipped")}
    assert [len(part) for part in points(items["MK 1.1"], prompts)] == [2, 1]
    assert [len(part) for part in points(items["MR 5.1"], prompts)] == [1, 1]
    assert [len(part) for part in points(items["MSE 6.1"], prompts)] == [2, 1]
    assert [len(part) for part in points(items["MTG 7.1"], prompts)] == [2, 1]
    more = [Change("further"), Change("a rule", "prompt")]
    assert points(items["MR 5.1"], prompts, more)[0][-1] == "further"
