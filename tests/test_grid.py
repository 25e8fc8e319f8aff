"""Policies × prompts in shards: whatever their number and wherever they stopped, the same answers, each asked for once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from experiments import sample
from rmjax import generators, grid
from rmjax.data.readers import open_records, read_all
from rmjax.data.record import RecordError
from rmjax.data.samplerows import parse_sample
from rmjax.data.tokenizer import Tokenizer
from rmjax.locks import InUseError, locked
from rmjax.policy import transport
from rmjax.study.engines import InProcess
from rmjax.study.run import Options, run
from rmjax.study.study import run_cell
from tests.policy.stub import chat, choice, echo, serving

ROOT = Path(__file__).parents[1]
PROMPTS = 10


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(transport, "pause", lambda attempt, after, most: 0.0)


@pytest.fixture
def config(tmp_path):
    """Of one policy: 10 prompts, two answers to each, batches of three prompts."""
    rows = [{"id": f"p{i}", "prompt": f"why {i}?", "reference": "so", "category": "c"} for i in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = grid.get_config()
    made.prompts, made.samples, made.endpoint.model = str(tmp_path / "prompts.jsonl"), 2, "m"
    made.asking.batch_prompts, made.asking.tries, made.asking.seconds = 3, 2, 5.0
    made.asking.most_dropped = 0.5
    return made


def answered(config, workdir, shards=1):
    """Results of the cells, and the counts where all are done."""
    study = grid.study_of(config, "test", shards)
    engine = InProcess(lambda name: run_cell(study, name, workdir))
    found = run(study, workdir, engine, Options(lambda name: [], retries=0, every=0.0))
    done = all(result.status == "done" for result in found.values())
    return found, grid.gather(study, workdir, config.form) if done else {}


def asked_for(asked):
    """Prompt → how often."""
    return Counter(one["body"]["messages"][-1]["content"] for one in asked)


@pytest.fixture
def whole(config, tmp_path):
    """POLICY.jsonl of one shard without a stop."""
    with serving(echo) as (config.asking.url, _):
        answered(config, tmp_path / "whole")
    return (tmp_path / "whole/m.jsonl").read_bytes()


def test_the_answers_are_the_same_in_any_number_of_shards(config, whole, tmp_path):
    config.asking.batch_prompts = 4
    with serving(echo) as (config.asking.url, asked):
        _, counts = answered(config, tmp_path / "run", 3)
    assert (tmp_path / "run/m.jsonl").read_bytes() == whole
    assert set(asked_for(asked).values()) == {1}
    expected = {"prompts": PROMPTS, "answered": PROMPTS, "samples": 20, "distinct": 20, "truncated": 0, "dropped": {}}
    assert counts == {"m": expected}
    assert json.loads((tmp_path / "run/samples.json").read_text())["policies"] == counts
    records = list(open_records(tmp_path / "run/m.jsonl"))
    assert [c.id for c in records] == [f"p{i}" for i in range(PROMPTS)]
    assert records[0].references == ("so",) and records[0].policies == ("m", "m")


def test_what_is_done_is_not_asked_again_whatever_the_asking(config, whole, tmp_path):
    config.asking.connections, config.asking.tries, config.asking.batch_prompts = 1, 9, 1
    found, _ = answered(config, tmp_path / "whole")  # nobody listens at the address any longer
    assert [result.status for result in found.values()] == ["done"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 3}, {"endpoint.temperature": 0.5}])
def test_other_answers_are_asked_for_anew(config, whole, tmp_path, change):
    with serving(echo) as (url, asked):
        config.update_from_flattened_dict(change)
        config.asking.url = url
        answered(config, tmp_path / "whole")
    assert len(asked) == PROMPTS and (tmp_path / "whole/superseded/m-00000-of-00001-1/samples.jsonl").exists()


def _stopped_after(count):
    """Answers so many requests, and then none."""
    return lambda body, number: echo(body, number) if number < count else (503, b"")


def test_an_endpoint_that_ends_leaves_whole_batches(config, whole, tmp_path):
    config.asking.connections, config.asking.most_dropped = 1, 0.0  # requests come in order
    with serving(_stopped_after(4)) as (config.asking.url, asked):
        found, _ = answered(config, tmp_path / "run")
        (result,) = found.values()
        assert result.status == "failed"
        assert (
            "m: 2 of 6 samples of a batch were dropped (2 × HTTP 503), more than config.asking.most_dropped=0;"
            in result.why
        )
        before = asked_for(asked)
        assert before["why 1?"] == 1 and not before["why 9?"] and not (tmp_path / "run/m.jsonl").exists()
    with serving(echo) as (config.asking.url, asked):
        answered(config, tmp_path / "run")
    assert (tmp_path / "run/m.jsonl").read_bytes() == whole
    assert asked_for(asked) == {f"why {i}?": 1 for i in range(2, PROMPTS)}


@pytest.mark.parametrize("lost", [1, 100, 900, 100_000])
def test_a_shard_goes_on_behind_its_last_whole_batch(config, tmp_path, lost):
    with serving(echo) as (config.asking.url, asked):
        study = grid.study_of(config, "test", 1)
        (cell,) = study.cells
        folder = tmp_path / "cell"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grid, "_finish", lambda folder: None)  # as where it is killed before
            study.train(cell.config, folder)
        data = (folder / grid.BATCHES).read_bytes()
        os.truncate(folder / grid.BATCHES, max(0, len(data) - lost))
        kept = [
            name
            for line in (folder / grid.BATCHES).read_bytes().split(b"\n")[:-1]
            for name in json.loads(line)["prompts"]
        ]
        asked.clear()
        study.train(cell.config, folder)
        assert len(asked) == PROMPTS - len(kept)
        assert not {f"why {name[1:]}?" for name in kept} & asked_for(asked).keys()
        again = (folder / grid.SAMPLES).read_bytes()
        study.train(cell.config, folder)  # as where it is killed before the cell is measured
        assert len(asked) == PROMPTS - len(kept)
        assert (folder / grid.SAMPLES).read_bytes() == again and not (folder / grid.BATCHES).exists()
        assert [json.loads(line)["id"] for line in again.splitlines()] == [f"p{i}" for i in range(PROMPTS)]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "7", '{"prompts": ["p1"], "rows": [], "dropped": {}}', "{", '{"prompts": "p0"}']
)
def test_batches_of_another_shard_are_refused(config, tmp_path, line):
    config.asking.url = "http://h"
    (cell,) = grid.study_of(config, "test", 1).cells
    (tmp_path / grid.BATCHES).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"batches\.jsonl:1: no batch of this shard's prompts; remove the file"):
        grid.run_shard(grid.AskingSection(), cell.config, tmp_path)


def test_what_is_dropped_is_counted_over_all_shards(config, tmp_path):
    def answer(body, number):
        said = body["messages"][-1]["content"]
        if said == "why 3?":
            return 400, {"error": {"code": "too_long"}}
        return chat(choice(None), choice("yes", "length")) if said == "why 7?" else chat("a", "")

    with serving(answer) as (config.asking.url, _):
        found, counts = answered(config, tmp_path / "run", 2)
    dropped = {"HTTP 400 (too_long)": 2, "null content": 1}
    expected = {"prompts": 10, "answered": 9, "samples": 17, "distinct": 17, "truncated": 1, "dropped": dropped}
    assert counts == {"m": expected}
    assert "p3" not in {json.loads(line)["id"] for line in (tmp_path / "run/m.jsonl").read_bytes().splitlines()}
    metrics = Counter()
    for result in found.values():
        metrics.update({row.metric: row.value for row in result.rows})
    assert metrics["samples"] == 17 and metrics["dropped/null content"] == 1


def test_a_pool_s_rows(config, tmp_path):
    config.form = "pool"
    config.policies = ({"name": "cold", "endpoint.temperature": 0.1}, {"name": "org/hot", "endpoint.temperature": 1.5})
    with serving(echo) as (config.asking.url, asked):
        _, counts = answered(config, tmp_path / "run", 2)
    assert list(counts) == ["cold", "org/hot"] and len(asked) == 2 * PROMPTS
    assert {one["body"]["temperature"] for one in asked} == {0.1, 1.5}
    rows = read_all(tmp_path / "run/org-hot.jsonl", parse_sample)
    assert [(row.prompt_id, row.number) for row in rows[:3]] == [("p0", 0), ("p0", 1), ("p1", 0)]
    assert {row.policy for row in rows} == {"org/hot"} and rows[0].category == "c"
    assert rows[0].columns["truncated"] == (0.0,)


def test_recorded_outputs_beside_an_endpoint(config, whole, tmp_path):
    config.recorded.path = str(tmp_path / "whole/m.jsonl")
    config.policies = ({"generator": "recorded", "name": "then"}, {"name": "now"})
    with serving(echo) as (config.asking.url, _):
        answered(config, tmp_path / "run", 2)
    assert (tmp_path / "run/then.jsonl").read_bytes() == whole.replace(b'"m"', b'"then"')
    assert (tmp_path / "run/now.jsonl").exists()


@pytest.fixture
def tokens():
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def test_ids_by_a_format_and_plain_text(config, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "from_folder", lambda path: Tokenizer.from_bpe(tokens, [], tokens[:3]))
    (tmp_path / "tokenizer").mkdir()
    of_ids = {
        "endpoint.prompt": "ids",
        "endpoint.tokenizer": str(tmp_path / "tokenizer"),
        "endpoint.template": "chatml",
    }
    config.policies = ({"name": "ids", **of_ids}, {"name": "text", "endpoint.prompt": "text"})
    with serving(lambda *_: (200, {"choices": [{"text": "a"}, {"text": "b"}]})) as (config.asking.url, asked):
        answered(config, tmp_path / "run")
    assert {one["path"] for one in asked} == {"/v1/completions"}
    prompts = [one["body"]["prompt"] for one in asked]
    assert "why 0?" in prompts
    ids = min((prompt for prompt in prompts if isinstance(prompt, list)), key=len)
    assert ids[0] == tokens.index("<|im_start|>") and ids.count(tokens.index("<|im_end|>")) >= 1


@pytest.mark.slow
def test_a_model_that_is_here(config, tokens, tiny_config, random_params, tmp_path, monkeypatch):
    """Shards and batches change nothing of what it draws."""
    small = dataclasses.replace(tiny_config, vocab_size=len(tokens))
    loaded = small, random_params(small), Tokenizer.from_bpe(tokens, [], tokens[:3])
    monkeypatch.setattr(generators, "load_gguf", lambda path: loaded)
    monkeypatch.setattr(generators, "gguf_path", lambda name: name)
    config.generator, config.local.max_new_tokens, config.name = "local", 5, "here"
    answered(config, tmp_path / "one")
    config.asking.batch_prompts = 2
    _, counts = answered(config, tmp_path / "three", 3)
    assert counts["here"]["samples"] == 2 * PROMPTS
    assert (tmp_path / "one/here.jsonl").read_bytes() == (tmp_path / "three/here.jsonl").read_bytes()
    assert "log_probs" in json.loads((tmp_path / "one/here.jsonl").read_text().splitlines()[0])


def test_an_unknown_model_fails_with_the_server_s_words(config, tmp_path):
    with serving(lambda *_: (404, {"error": {"message": "The model `m` does not exist."}})) as (config.asking.url, _):
        found, _ = answered(config, tmp_path / "run", 2)
    assert all("HTTP 404: The model `m` does not exist.; correct" in result.why for result in found.values())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "remote"}, "config.generator is 'remote'; choose endpoint, recorded or local"),
        ({"samples": 0}, "config.samples is 0"),
        ({"asking.tries": 0}, "config.asking.tries is 0"),
        ({"asking.url": "ftp://h"}, "config.asking: url is 'ftp://h'; give an address"),
        ({"endpoint.model": ""}, "config.endpoint: model is empty"),
        ({"endpoint.more": "[1]"}, "config.endpoint: more is .*; give a JSON object"),
        ({"endpoint.more": "{"}, "config.endpoint: more is not JSON"),
        ({"endpoint.prompt": "ids"}, "config.endpoint.prompt is 'ids' and config.endpoint.tokenizer ''"),
        ({"asking.key_variable": "NO_SUCH_KEY"}, "config.asking: the environment variable NO_SUCH_KEY is not set"),
        ({"generator": "local", "local.init": "runs/none"}, "config.local.init=runs/none is not there; give smollm2"),
        ({"generator": "recorded"}, "config.recorded.path is empty"),
        ({"prompts": ""}, "config.prompts is empty"),
        ({"policies": ({"name": "a", "endpoint.temprature": 1.0},)}, "no key endpoint.temprature; did you mean `temperature`"),
        ({"policies": ({"name": "a/b"}, {"name": "a b"})}, "two policies have the file name 'a-b'"),
        ({"name": "/"}, "config.name is '/', which gives no name for a file"),
    ],
)  # fmt: skip
def test_what_no_run_can_have(config, change, message):
    config.asking.url = "http://h"
    config.update(change) if "policies" in change else config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        grid.study_of(config, "test", 1)


@pytest.mark.parametrize("shards", [0, PROMPTS + 1])
def test_more_shards_than_prompts(config, shards):
    config.asking.url = "http://h"
    with pytest.raises(ValueError, match=rf"--shards={shards}, and .*prompts\.jsonl has 10 prompts; give 1 to 10"):
        grid.study_of(config, "test", shards)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "p3", "prompt": "?"}, r"prompts\.jsonl:11: field `id`: occurs twice \('p3' is in .*prompts\.jsonl:4\)"),
        ({"prompt": "?"}, r"prompts\.jsonl:11: field `id`: missing"),
        ({"id": "q", "prompt": " "}, r"prompts\.jsonl:11: field `prompt`: empty text"),
    ],
)  # fmt: skip
def test_broken_prompts(config, row, message):
    with open(config.prompts, "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=message):
        grid.study_of(config, "test", 1)


def test_a_folder_holds_one_run(config, whole, tmp_path):
    config.asking.url = "http://h"
    with pytest.raises(ValueError, match="whole holds the study 'answers by test in 1 shards', not .* in 2 shards"):
        answered(config, tmp_path / "whole", 2)
    (tmp_path / "used").mkdir()
    with locked(tmp_path / "used"), pytest.raises(InUseError, match="used is in use by another run"):
        answered(config, tmp_path / "used")


def test_answers_of_outputs_before_do_not_count(config):
    rows = [
        {
            "id": "a",
            "prompt": "?",
            "outputs": ["x", "y"],
            "rewards": [1, 2],
            "ranks": [0, 1],
            "weight": 2,
            "policies": ["p", "q"],
        }
    ]
    Path(config.prompts).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = grid.read_asked(config.prompts)
    assert (found.outputs, found.ranks, found.policies, found.columns, found.weight) == ((), None, None, {}, 2.0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_was_dropped_is_on_the_terminal(capsys):
    known = {"prompts": 10, "answered": 9, "samples": 17, "distinct": 8, "truncated": 1}
    sample.show({"a": {**known, "dropped": {"null content": 1, "HTTP 400": 2}}, "b": {**known, "dropped": {}}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "10", "9", "17", "8", "1", "3"] and lines[2].split()[-1] == "0"
    assert lines[3:] == ["a dropped 2 × HTTP 400, 1 × null content"]


def _command(config_file, workdir, *flags):
    arguments = [f"--config={config_file}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sample", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def config_file(config, tmp_path):
    path = tmp_path / "sampled.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({config.to_dict()!r})\n"
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("waits", [0.05, 0.5])
def test_a_shard_that_is_killed_goes_on(config_file, whole, tmp_path, waits):
    """kill −9 of the cell's own process, at any of its requests; nothing that was kept is asked for again."""

    def slow(body, number):
        time.sleep(0.15)
        return echo(body, number)

    with serving(slow) as (url, asked):
        flags = [f"--config.asking.url={url}", "--shards=2", "--config.asking.connections=1"]
        name = "m-00000-of-00002"
        process = _command(config_file, tmp_path / "run", *flags, f"--cell={name}")
        while not asked:
            time.sleep(0.02)
        time.sleep(waits)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = [
            f"why {name[1:]}?"
            for batch in grid.whole_lines(tmp_path / f"run/{name}" / grid.BATCHES)
            for name in json.loads(batch)["prompts"]
        ]
        before = len(asked)
        output, errors = _command(config_file, tmp_path / "run", *flags, "--engine=local").communicate(timeout=120)
        assert "10        10       20        20" in output, errors
        assert set(asked_for(asked).values()) <= {1, 2}
        assert not set(kept) & asked_for(asked[before:]).keys()
    assert (tmp_path / "run/m.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_an_error_is_one_line(config_file, tmp_path):
    process = _command(config_file, tmp_path / "run", "--config.asking.url=ftp://h")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: config.asking: url is 'ftp://h'; give an address")
