"""rmjax/evaluate/evaluation.py and its command, with a scorer that needs no model; reports made again."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rmjax.data import sources
from rmjax.data.preferences import PREFERENCE_SETS
from rmjax.data.record import RecordError
from rmjax.evaluate import evaluation as command
from rmjax.evaluate import report as report_command
from rmjax.evaluate import table
from rmjax.evaluate.scorers import ScoreError
from rmjax.locks import InUseError, locked
from rmjax.train.checkpoint import CheckpointError

ROOT = Path(__file__).resolve().parents[2]

# Runs the command with a scorer in place of a model; KILL_AFTER: chunks, then SIGKILL.
DRIVER = """
import os, signal, sys, types
from absl import app

from collections import Counter

class RewardModel:
    chunks = 0
    counts = Counter()
    @classmethod
    def load(cls, path, mesh):
        return cls()
    @property
    def scorer(self):
        return self
    def score(self, comparisons, progress=False):
        if self.chunks == int(os.environ.get("KILL_AFTER", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        self.chunks += 1
        self.counts["cut"] += self.chunks == 2
        return [[float(len(o)) for o in c.outputs] for c in comparisons]

module = types.ModuleType("rmjax.reward_model")
module.RewardModel, module.has_measures = RewardModel, lambda directory: False
sys.modules["rmjax.reward_model"] = module
from experiments import evaluate
evaluate.define_flags()
app.run(evaluate.main)
"""


class LengthScorer:
    name = "length"

    def __init__(self, fail_after=None):
        self.fail_after, self.seen, self.counts = fail_after, [], Counter()

    def score(self, comparisons, progress=False):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += [comparison.id for comparison in comparisons]
        self.counts["cut"] += len(comparisons)
        return [[float(len(output)) for output in c.outputs] for c in comparisons]


def rows(count=10):
    return [
        {
            "id": f"r{i}",
            "prompt": f"p{i}",
            "reference": "ref",
            "chosen": "x" * (i % 3 + 1),
            "rejected": "yy",
            "category": "ab"[i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture
def options(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    write_rows(tmp_path / "data.jsonl", rows())
    return command.Options(
        model=tmp_path / "model",
        data=str(tmp_path / "data.jsonl"),
        out=tmp_path / "out" / "result.json",
        scores=tmp_path / "out" / "scores.jsonl",
        rows_per_save=3,
    )


def write_rows(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def use(monkeypatch, scorer):
    monkeypatch.setattr(command, "load_scorer", lambda path, mesh: scorer)
    return scorer


def test_two_evaluations_into_one_file(options, monkeypatch):
    scorer = use(monkeypatch, LengthScorer())
    options.out.parent.mkdir()
    with (
        locked(options.out),
        pytest.raises(InUseError, match="is in use by another run .*name another file with --out"),
    ):
        command.evaluate(options)
    assert not scorer.seen
    command.evaluate(options)
    assert not [path for path in options.out.parent.iterdir() if path.name.startswith(".")]


def test_files_and_numbers(options, monkeypatch):
    use(monkeypatch, LengthScorer())
    result = command.evaluate(options)
    on_disk = json.loads(options.out.read_text())
    assert on_disk == json.loads(json.dumps(result))
    # Lengths 1, 2, 3 against 2: lose (4 rows), tie (3), win (3).
    assert on_disk["overall"]["accuracy"] == pytest.approx(4.5 / 10)
    assert on_disk["overall"]["ties"] == 3
    assert set(on_disk["categories"]) == {"a", "b"}
    for name in ("length", "longer", "shorter", "word_overlap"):
        assert set(on_disk["baselines"][name]["overall"]) == set(on_disk["overall"])
    for field in ("model", "data", "rows", "without_reference", "seconds", "device", "versions"):
        assert field in on_disk
    lines = [json.loads(line) for line in options.scores.read_text().splitlines()]
    assert len(lines) == 10
    assert lines[1] == {
        "id": "r1",
        "scores": [2.0, 2.0],
        "correct": 0.5,
        "category": "b",
        "line": f"{options.data}:2",
    }
    assert sorted(file.name for file in options.out.parent.iterdir()) == [
        "result.json",
        "scores.jsonl",
    ]


def test_a_stopped_run_continues_with_the_rows_that_are_missing(options, monkeypatch):
    use(monkeypatch, LengthScorer(fail_after=6))
    with pytest.raises(KeyboardInterrupt):
        command.evaluate(options)
    assert not options.out.exists()
    second = use(monkeypatch, LengthScorer())
    result = command.evaluate(options)
    assert second.seen == ["r6", "r7", "r8", "r9"]
    assert result["resumed_rows"] == 6
    assert result["encoding"] == {"cut": 10}  # those of the stopped run too
    assert result["overall"]["accuracy"] == pytest.approx(4.5 / 10)
    third = use(monkeypatch, LengthScorer())
    command.evaluate(options)
    assert len(third.seen) == 10  # a finished run leaves nothing to continue


@pytest.mark.parametrize("change", ["model", "data", "reference"])
def test_scores_of_another_model_data_or_option_are_not_reused(options, monkeypatch, change):
    ranked = {"prompt": "p", "outputs": ["a", "bb", "ccc"], "ranks": [0, 1, 2], "id": "x"}
    write_rows(Path(options.data), [*rows(), ranked])
    use(monkeypatch, LengthScorer(fail_after=6))
    with pytest.raises(KeyboardInterrupt):
        command.evaluate(options)
    if change == "model":
        (options.model / "weights").write_bytes(b"v")
    elif change == "data":
        write_rows(Path(options.data), rows()[1:])
    else:
        options = command.Options(**{**vars(options), "reference": "best"})
    second = use(monkeypatch, LengthScorer())
    assert command.evaluate(options)["resumed_rows"] == 0
    assert len(second.seen) >= 9


def test_results_inside_the_model_folder_do_not_hide_the_partial_scores(options, monkeypatch):
    inside = command.Options(**{**vars(options), "out": options.model / "result.json"})
    use(monkeypatch, LengthScorer(fail_after=6))
    with pytest.raises(KeyboardInterrupt):
        command.evaluate(inside)
    use(monkeypatch, LengthScorer())
    assert command.evaluate(inside)["resumed_rows"] == 6


def test_the_best_output_as_reference(options, monkeypatch):
    ranked = {"prompt": "p", "outputs": ["a", "bb", "ccc"], "ranks": [1, 0, 2]}
    pair = {"prompt": "p", "chosen": "a", "rejected": "bb"}
    write_rows(Path(options.data), [ranked, pair])
    use(monkeypatch, LengthScorer())
    best = command.evaluate(command.Options(**{**vars(options), "reference": "best"}))
    assert (best["reference_from_ranks"], best["without_reference"]) == (1, 1)
    lines = [json.loads(line) for line in options.scores.read_text().splitlines()]
    assert lines[0]["scores"] == [1.0, 3.0]


def test_rows_without_a_reference_are_counted_and_warned_of(options, monkeypatch, caplog):
    write_rows(Path(options.data), [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    use(monkeypatch, LengthScorer())
    with caplog.at_level(logging.WARNING):
        assert command.evaluate(options)["without_reference"] == 1
    assert "1 of 1 rows have NO REFERENCE" in caplog.text


def test_broken_rows_can_be_skipped_and_are_counted(options, monkeypatch):
    with open(options.data, "a") as file:
        file.write('{"prompt": "p", "chosen": ""\n')
    use(monkeypatch, LengthScorer())
    with pytest.raises(RecordError, match=r"data\.jsonl:11"):
        command.evaluate(options)
    result = command.evaluate(command.Options(**{**vars(options), "on_error": "skip"}))
    assert sum(result["unreadable"].values()) == 1
    assert result["rows"] == 10


def test_what_a_file_says_that_is_not_read_is_counted_where_there_is_any(options, monkeypatch):
    use(monkeypatch, LengthScorer())
    assert not {"contradicting", "unknown"} & command.evaluate(options).keys()
    row = {"prompt": "p", "outputs": ["a", "b"], "ranks": [0, 1], "scores": [0.0, 1.0], "colour": "red"}
    write_rows(Path(options.data), [row, {**rows(1)[0], "colour": "blue"}])
    result = command.evaluate(options)
    assert (result["contradicting"], result["unknown"]) == (1, {"colour": 2})


def test_a_score_that_is_not_finite_stops_and_is_not_kept(options, monkeypatch):
    class Broken(LengthScorer):
        def score(self, comparisons, progress=False):
            return [[float("nan"), 0.0] for _ in comparisons]

    use(monkeypatch, Broken())
    with pytest.raises(ScoreError, match=r"data\.jsonl:1: a score is not finite"):
        command.evaluate(options)
    use(monkeypatch, LengthScorer())
    assert command.evaluate(options)["resumed_rows"] == 0


def test_a_real_set_s_split_can_be_named(options, monkeypatch, tmp_path):
    write_rows(tmp_path / "fake.jsonl", [*rows(50), {**rows(1)[0], "chosen": ""}])
    entry = dataclasses.replace(PREFERENCE_SETS["hh_harmless"], file="fake.jsonl")
    monkeypatch.setitem(PREFERENCE_SETS, "fake", entry)
    use(monkeypatch, LengthScorer())
    changes = {"data": "fake", "root": str(tmp_path)}
    counts = {}
    for split in ("all", "train", "test"):
        changed = command.Options(**{**vars(options), **changes, "split": split})
        result = command.evaluate(changed)
        assert (result["data"], result["split"], result["unreadable"]) == ("fake", split, {})
        assert result["dropped"] == {
            "empty output": 1
        } and "rows of the set left out when it was read: 1 (empty output)" in list(command.notes(result))
        counts[split] = result["rows"]
    assert counts["train"] + counts["test"] == counts["all"] == 50
    assert 0 < counts["test"] < 25


def test_a_part_of_the_shipped_corpus_can_be_named(options, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "shipped", lambda name: tmp_path / f"{name}.jsonl")
    use(monkeypatch, LengthScorer())
    assert command.evaluate(dataclasses.replace(options, data="shipped:data"))["rows"] == 10
    with pytest.raises(ValueError, match="split 'test' of shipped:data: only the real sets have it"):
        command.evaluate(dataclasses.replace(options, data="shipped:data", split="test"))


def test_a_model_without_an_intact_checkpoint_is_one_clear_error(options, monkeypatch):
    class Damaged:
        @classmethod
        def load(cls, path, mesh):
            raise CheckpointError(f"{path}/checkpoints: no intact checkpoint")

    monkeypatch.setattr("rmjax.reward_model.RewardModel", Damaged)
    with pytest.raises(OSError, match=r"cannot load --model=.*model: .*no intact checkpoint"):
        command.evaluate(options)


@pytest.mark.parametrize(
    ("field", "path", "message"),
    [
        ("out", "model", "is a folder"),
        ("out", "data.jsonl/result.json", "cannot write"),
        ("scores", "data.jsonl", "different files"),
        ("out", "model/model.json", "is a part of --model itself"),
        ("scores", "pipe", "is a device or a pipe"),
        ("model", "absent", "--model=.*absent does not exist"),
        ("data", "absent.jsonl", "absent.jsonl"),
    ],
)
def test_bad_paths_are_refused_before_the_model_is_loaded(options, monkeypatch, tmp_path, field, path, message):
    def load(path, mesh):
        raise AssertionError("loaded")

    monkeypatch.setattr(command, "load_scorer", load)
    os.mkfifo(tmp_path / "pipe")
    value = tmp_path / path
    changed = {**vars(options), field: str(value) if field == "data" else value}
    with pytest.raises(OSError, match=message):
        command.evaluate(command.Options(**changed))


def run_driver(options, *extra, kill_after=-1):
    arguments = [f"--model={options.model}", f"--data={options.data}", f"--out={options.out}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "KILL_AFTER": str(kill_after),
    }
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments, "--rows_per_save=3", *extra],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_command_survives_kill_9(options):
    killed = run_driver(options, kill_after=2)
    assert killed.returncode == -signal.SIGKILL
    assert not options.out.exists()
    done = run_driver(options)
    assert done.returncode == 0, done.stderr
    assert json.loads(options.out.read_text())["resumed_rows"] == 6
    assert "0.450" in done.stdout
    assert "scoring" in done.stderr
    assert "while encoding: 2 × cut" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "p", "chosen": "a"}\n', "data.jsonl:1: field `rejected`"),
        ("", "data.jsonl"),
        (None, "data.jsonl"),
    ],
)
def test_errors_are_one_line_without_a_traceback(options, content, message):
    data = Path(options.data)
    data.unlink()
    if content is not None:
        data.write_text(content)
    got = run_driver(options)
    assert got.returncode == 1
    assert "Traceback" not in got.stderr
    (line,) = [line for line in got.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_seed_that_the_bootstrap_refuses_is_refused_before_scoring(options):
    got = run_driver(options, "--seed=-1")
    assert got.returncode != 0 and "--seed" in got.stderr and "scoring" not in got.stderr
    assert not options.out.exists() and not options.partial.exists()


def test_measures_are_printed_once(options, monkeypatch):
    use(monkeypatch, LengthScorer())
    result = {**command.evaluate(options), "measures": {"disagreement": 0.25}}
    assert [line for line in command.notes(result) if "disagreement" in line] == [
        "disagreement: 0.25, a mean over candidates"
    ]


def test_the_page_is_made_again_from_a_run_folder(tmp_path):
    leaf = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 10}
    (tmp_path / "report.json").write_text(json.dumps({"policy_accuracy": {"seen": leaf}}))
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n')
    report_command.rebuild(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "0.900" in page
    assert "Learning curves, pretrain" in page


def test_a_run_folder_without_a_report_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"report\.json"):
        report_command.rebuild(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json is not JSON .*run the job again"):
        report_command.rebuild(tmp_path)


def test_a_published_benchmark_by_the_same_command(options, monkeypatch):
    folder = Path(options.data).parent / "LLMBar" / "Natural"
    folder.mkdir(parents=True)
    pair = {"input": "i", "output_1": "long", "output_2": "s", "label": 1}
    (folder / "dataset.json").write_text(
        json.dumps([pair, {**pair, "input": "j", "label": 2}, {**pair, "input": "k", "output_2": "even"}])
    )
    use(monkeypatch, LengthScorer())
    asked = dataclasses.replace(options, data=str(folder.parent), suite="llmbar")
    result = command.evaluate(asked)
    assert (result["suite"], result["score"]) == ("llmbar", "Natural")
    assert result["overall"]["accuracy"] == pytest.approx(1 / 3) and result["overall"]["ties"] == 1  # a tie fails
    assert result["encoding"] == {"cut": 3} and result["published"]["found"] == 3
    assert [json.loads(line)["correct"] for line in options.scores.read_text().splitlines()] == [1.0, 0.0, 0.0]
    said = list(command.notes(result))
    assert said[0].startswith("llmbar, Natural: 0.333 (0.000 to 1.000), n = 3, 1 tied in score; best baseline: ")
    assert "counts differ from the published ones: Natural 3 instead of 100" in said
    assert " q" in table.format_table({**result, "multiplicity": {"a": {"q": 0.5}}, "categories": {"a": result["overall"]},
                                       "baselines": {}}).splitlines()[2]  # fmt: skip
    with pytest.raises(ValueError, match="--suite=lmbar is no benchmark; choose rmb, reward_bench"):
        command.evaluate(dataclasses.replace(asked, suite="lmbar"))
    with pytest.raises(ValueError, match="do not go with --suite"):
        command.evaluate(dataclasses.replace(asked, reference="best"))


def test_another_layout_is_recognized_and_said(options, monkeypatch, caplog):
    said = [
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: long", "rejected": f"\n\nHuman: {q}\n\nAssistant: s"} for q in "ab"
    ]
    write_rows(Path(options.data), said)
    use(monkeypatch, LengthScorer())
    with caplog.at_level(logging.WARNING):
        result = command.evaluate(dataclasses.replace(options, layout="auto"))
    assert result["overall"]["accuracy"] == 1.0 and result["rows"] == 2
    assert "taken for transcripts of HH-RLHF (--layout=hh)" in caplog.text
    with pytest.raises(RecordError, match="prompt`: missing"):
        command.evaluate(options)
