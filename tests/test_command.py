"""The console command: what it prints, writes and refuses, with a tiny model in place of the shipped one."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmjax import command, guard
from rmjax.hub import shipped
from rmjax.light import save_light
from rmjax.reward_model import RewardModel
from rmjax.train.metrics import read_metrics
from tests.experiments.running import newest
from tests.experiments.starting import save_adapted, save_start

ROOT = Path(__file__).parents[1]
ANSWERS = [
    {"prompt": "1 + 1?", "reference": "2", "output": "It is 2.", "note": "kept\n\x1b[31m"},
    {"prompt": "2 + 2?", "reference": "4", "outputs": ["It is 4.", "No."], "id": "b"},
    {"prompt": "1 + 1?", "reference": "2", "output": "No."},
]
PAIRS = [
    {"prompt": f"{i} + {i}?", "reference": f"{2 * i}", "chosen": f"It is {2 * i}.", "rejected": "No."}
    for i in range(14)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The default model, answers and preferences."""
    home = tmp_path_factory.mktemp("command")
    save_start(home / "start")
    save_light(save_adapted(home / "run", home / "start"), home / "models" / "polar-smollm2")
    write(home / "answers.jsonl", ANSWERS)
    write(home / "pairs.jsonl", PAIRS)
    return home


@pytest.fixture(autouse=True)
def quiet(home, monkeypatch):
    """The tiny model by the shipped one's name; the logging of this process stays as it is."""
    monkeypatch.setattr(shipped, "FOLDER", home / "models")
    monkeypatch.setattr(guard, "prepare", lambda: None)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(capsys, *argv):
    """The one line of the error."""
    assert command.run([str(word) for word in argv]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_scores_are_shown_and_all_fields_are_written(home, tmp_path, capsys):
    out = tmp_path / "scored.jsonl"
    assert command.run(["score", str(home / "answers.jsonl"), f"--out={out}"]) == 0
    shown, model = capsys.readouterr().out, RewardModel.load("shipped:polar-smollm2")
    singles = [
        {"prompt": r["prompt"], "reference": r["reference"], "output": o} for r in ANSWERS for o in answers_of(r)
    ]
    rewards = model.score(singles)
    found = lines(out)
    assert [{k: v for k, v in row.items() if not k.startswith("reward")} for row in found] == ANSWERS
    assert [found[0]["reward"], *found[1]["reward"], found[2]["reward"]] == pytest.approx(rewards, abs=1e-5)
    assert sorted([found[0]["reward_rank"], found[2]["reward_rank"]]) == [1, 2] == sorted(found[1]["reward_rank"])
    assert (found[0]["reward_rank"] == 1) == (rewards[0] > rewards[3])
    report = json.loads((tmp_path / "scored.jsonl.report.json").read_text())
    assert (report["model"], report["rows"], report["answers"]) == ("shipped:polar-smollm2", 3, 4)
    assert report["fields_not_read"] == {"note": 1} and "fields that no model reads: 1 × note" in shown
    best = next(line for line in shown.splitlines() if line.startswith("2 + 2?"))
    assert best.split()[-1] == "1" and f"{max(rewards[1:3]):.4f}" in best


def answers_of(row):
    return row.get("outputs", [row.get("output")])


def test_a_csv_has_a_line_for_each_answer(home, tmp_path):
    out = tmp_path / "scored.csv"
    assert command.run(["score", str(home / "answers.jsonl"), f"--out={out}", "--field=r"]) == 0
    first, *rest = csv.reader(io.StringIO(out.read_text()))
    assert first == ["prompt", "reference", "output", "note", "outputs", "id", "candidate", "r", "r_rank"]
    assert [row[:7] for row in rest[:2]] == [
        ["1 + 1?", "2", "It is 2.", "kept\n\x1b[31m", "", "", "0"],
        ["2 + 2?", "4", "", "", '["It is 4.", "No."]', "b", "0"],
    ]
    assert len(rest) == 4 and all(float(row[7]) for row in rest)


def test_scores_are_written_before_they_are_shown(home, tmp_path, monkeypatch):
    def closed(*_):
        raise BrokenPipeError("the terminal is gone")

    monkeypatch.setattr(command, "_say", closed)
    assert command.run(["score", str(home / "answers.jsonl"), f"--out={tmp_path / 's.csv'}"]) == 1
    assert len((tmp_path / "s.csv").read_text().splitlines()) > 4 and (tmp_path / "s.csv.report.json").is_file()


def test_a_second_command_leaves_the_data_of_a_run_alone(home, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "train.jsonl").write_text("mine\n")
    said = refused(capsys, "train", home / "pairs.jsonl", f"--workdir={tmp_path / 'w'}")
    assert "w holds a run on other preferences (train.jsonl differs); use a new workdir" in said
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["train.jsonl"]
    assert (tmp_path / "w" / "train.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("form", ["%s\n\n%s", "[%s, %s]"])
def test_lines_or_an_array_from_a_pipe_and_conversations(monkeypatch, capsys, form):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    text = form % (json.dumps({"messages": talk}), json.dumps({"prompt": "Hi", "output": "Go."}))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert command.run(["score", "-"]) == 0
    shown = capsys.readouterr().out
    assert "Hello." in shown and "2 of 2 rows have NO REFERENCE" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "none.jsonl"], "none.jsonl: no such file"),
        (["score", "answers.jsonl", "--out=out.txt"], "--out=out.txt ends in .txt; write .jsonl or .csv"),
        (["score", "answers.jsonl", "--out=answers.jsonl"], "is the file that is read"),
        (
            ["score", "answers.jsonl", "--out=s.jsonl", "--field=note"],
            "answers.jsonl:1: has a field `note`, which",
        ),
        (["score", "broken.jsonl"], "broken.jsonl:2: broken JSON"),
        (["score", "answers.jsonl", "--model=shipped:large"], "there are: shipped:polar-smollm2"),
        (["score", "answers.jsonl", "--model=gone"], "gone/model.json: not there"),
        (["evaluate", "answers.jsonl", "--model=gone"], "--model=gone does not exist"),
        (
            ["evaluate", "answers.jsonl"],
            "none of its 3 rows has an order to measure against (2 × one output, 1 × order",
        ),
        (["score", "table.csv"], "tfds:NAME:SPLIT; write one JSON object a line"),
        (["score", "list.json"], "list.json:2: broken JSON"),
        (["train", "pairs.jsonl", "--workdir=w", "--start=gone"], "gone: no such model; give smollm2"),
        (["evaluate", "none.jsonl"], "none.jsonl: no such file"),
        (["train", "none.py", "--workdir=w"], "none.py: no such file"),
        (["train", "empty.py", "--workdir=w"], "empty.py: has no function get_config"),
        (
            ["train", "pairs.jsonl", "--workdir=w", "run.step=3"],
            "there is no config key run.step; did you mean `steps`?",
        ),
        (["train", "pairs.jsonl", "run.steps=many", "--workdir=w"], "run.steps is 'many'; it must be of type int"),
        (["train", "answers.jsonl", "--workdir=w"], "answers.jsonl:1: field `outputs`: only one candidate"),
        (["train", "empty.py", "--workdir=w", "--start=smollm2"], "go with a file of preferences"),
        (["report", "bare"], "bare has neither report.json nor metrics.jsonl"),
        (["report", "answers.jsonl"], "answers.jsonl is not JSON"),
    ],
)
def test_errors_are_one_line(home, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    for name in ("answers.jsonl", "pairs.jsonl"):
        (tmp_path / name).write_text((home / name).read_text())
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "output": "b"}\n{"prompt"\n')
    (tmp_path / "list.json").write_text('[{"prompt": "a", "output": "b"},\n{"prompt"}]')
    for name in ("empty.py", "table.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "bare").mkdir()
    assert message in refused(capsys, *argv)
    assert not (tmp_path / "s.jsonl").exists() and not list(tmp_path.glob("w/*"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required: COMMAND"),
        (["scores"], "invalid choice: 'scores'"),
        (["train", "pairs.jsonl"], "required: --workdir"),
        (["score", "a.jsonl", "--outs=b"], "unrecognized arguments: --outs=b"),
        (["score", "a.jsonl", "--rows=-3"], "-3 is no number of lines; give 1 or more, or 0 for all"),
        (["train", "pairs.jsonl", "--workdir=w", "steps"], "steps is no KEY=VALUE"),
    ],
)
def test_wrong_usage_is_code_2(capsys, argv, said):
    with pytest.raises(SystemExit) as stop:
        command.run(argv)
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["score", "--help"], ["train", "--help"], ["--version"]])
def test_help_has_an_example(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (command.EXAMPLES.get(argv[0], "rmjax") if argv != ["--version"] else "rmjax 0.") in shown


def test_evaluate_train_report(home, tmp_path, monkeypatch, capsys):
    """The way of a user: preferences in, a fine-tuned model, its accuracy on held-out prompts, pages."""
    monkeypatch.chdir(tmp_path)
    small = ["data.row_tokens=128", "data.rows=1", "data.groups=2"]
    train = ["train", str(home / "pairs.jsonl"), "--workdir=mine", "run.steps=2", "run.log_every=1", *small]
    assert command.run(train) == 0
    assert "rmjax evaluate mine/held_out.jsonl --model=mine" in capsys.readouterr().out
    sides = [{row["prompt"] for row in lines(tmp_path / "mine" / f"{name}.jsonl")} for name in ("train", "held_out")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == len(PAIRS)
    config = json.loads((tmp_path / "mine/config.json").read_text())
    assert (config["model"]["init"], config["adapter"]["kind"], config["format"]["kind"]) == (
        "shipped:polar-smollm2", "lora", "polar",
    )  # fmt: skip
    assert [line["step"] for line in read_metrics(tmp_path / "mine/metrics.jsonl")] == [1, 2]
    assert command.run(["evaluate", "mine/held_out.jsonl", "--model=mine", "--out=mine/evaluation"]) == 0
    shown = capsys.readouterr().out
    assert "Which answer is better?" in shown and "word overlap" in shown and "shorter" in shown
    found = json.loads((tmp_path / "mine/evaluation/report.json").read_text())
    assert found["rows"] == len(sides[1]) == len(lines(tmp_path / "mine/evaluation/scores.jsonl"))
    assert "Learning curves" in (tmp_path / "mine/evaluation/report.html").read_text()
    assert command.run(["report", "mine"]) == 0 and (tmp_path / "mine/report.html").is_file()
    assert command.run(["report", "mine/evaluation/report.json", "--out=page"]) == 0
    assert (
        f"{found['overall']['accuracy']:.3f}" in capsys.readouterr().out and (tmp_path / "page/report.html").is_file()
    )
    assert command.run(["evaluate", str(home / "pairs.jsonl")]) == 0  # without --out nothing is written
    assert not list(tmp_path.glob("*.json*"))


@pytest.fixture
def listening():
    """A process that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_asks_a_run_to_stop_and_a_second_one_ends_it(capsys, listening):
    def job():
        with guard.interruptible():
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
            raise AssertionError("went on")

    assert guard.guarded(job, resumes=True) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "asked to stop; run the same command to go on"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def twice():
        signal.signal(signal.SIGTERM, lambda *_: None)  # as while a step is under way
        with guard.interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        guard.guarded(twice, resumes=True)


@pytest.mark.slow
def test_ctrl_c_in_training_saves_and_the_same_command_goes_on(home, tmp_path):
    code = f"from rmjax.hub import shipped; from pathlib import Path; shipped.FOLDER = Path({str(home / 'models')!r}); "
    keys = [
        "data.row_tokens=128",
        "data.rows=1",
        "data.groups=2",
        "run.steps=400",
        "run.save_every=50",
        "run.log_every=1",
    ]
    words = ["train", str(home / "pairs.jsonl"), f"--workdir={tmp_path / 'w'}", *keys]
    argv = [sys.executable, "-c", code + "from rmjax.command import main; main()", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    first = subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and newest(tmp_path / "w") < 50:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=600)[1]
    assert first.returncode == 0 and "asked to stop: saved step" in told and "Traceback" not in told
    stopped = newest(tmp_path / "w")
    assert 50 <= stopped < 400
    again = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0 and f"going on from step {stopped}" in again.stderr
