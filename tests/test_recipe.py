"""The ready recipe and keys that are set by text; training by it is in tests/test_command.py."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmjax import recipe
from rmjax.config import get_config, settle
from rmjax.data.record import RecordError
from rmjax.data.sources import is_test
from rmjax.locks import InUseError
from rmjax.recipe import HELD_OUT, TRAIN, fine_tuning, read_config, set_keys
from rmjax.reward_model import load_description
from tests.experiments.starting import save_start
from tests.tools.docs.saying import write

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("run.steps=7", "run.steps", 7),
        ("config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("data.path=12", "data.path", "12"),
        ("run.tensorboard=true", "run.tensorboard", True),
        ("adapter.expert_types=0,1", "adapter.expert_types", (0, 1)),
        ("adapter.expert_types=", "adapter.expert_types", ()),
        ("optimizer.rates=head=2,norm=3", "optimizer.rates", ("head=2", "norm=3")),
        ("trainable=head|a=b", "trainable", "head|a=b"),
    ],
)
def test_a_key_keeps_its_type(change, key, value):
    config = get_config()
    set_keys(config, [change])
    found = config
    for name in key.split("."):
        found = found[name]
    assert (type(found), found) == (type(value), value)
    settle(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.steps", "is no change of a key; write KEY=VALUE"),
        ("run.step=3", "there is no config key run.step; did you mean `steps`"),
        ("runs.steps=3", "there is no config key runs.steps; did you mean `run`"),
        ("run.steps.more=3", "there is no config key run.steps.more"),
        ("run=3", "run is a section; set one of its keys"),
        ("run.steps=1.5", "run.steps is '1.5'; it must be of type int"),
        ("run.steps=true", "it must be of type int"),
        ("run.tensorboard=1", "it must be of type bool"),
        ("optimizer.clip=much", "it must be of type float"),
    ],
)
def test_what_no_key_can_be(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        set_keys(get_config(), [change])


def pairs(count, **more):
    return [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", **more} for i in range(count)]


def test_a_recipe_is_a_config_that_holds_prompts_out(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(
        tmp_path / "pairs.jsonl", {"prompt": "q", "outputs": ["a", "b", "c"], "ranks": [0, 1, 2]}, *pairs(2000)
    )
    config = fine_tuning(str(path), tmp_path / "w")
    assert (config.model.init, config.format.kind, config.data.candidates) == ("smollm2", "chat", 3)
    kept, held = ((tmp_path / "w" / name).read_text().splitlines() for name in (TRAIN, HELD_OUT))
    assert len(kept) + len(held) == 2001 and 300 < len(held) < 500 and not set(kept) & set(held)
    assert config.run.steps == math.ceil(2 * len(kept) / 16)  # two passes, 8 groups in each of 2 rows
    assert f"{config.run.steps} steps of about 16 records are 2 passes over them" in caplog.text
    before = (tmp_path / "w" / TRAIN).read_bytes()
    assert fine_tuning(str(path), tmp_path / "w") == config and (tmp_path / "w" / TRAIN).read_bytes() == before
    settle(config)


@pytest.mark.parametrize(
    ("count", "words", "keys", "in_a_step", "steps"),
    [
        (1000, 700, [], 2, 300),  # a pair fills a row: one pass would be some 400 steps
        (30, 1, [], 16, 20),  # one pass is two steps
        (30, 1, ["run.steps=3"], 16, 3),
    ],
)
def test_the_log_says_how_many_passes_the_steps_are(tmp_path, caplog, count, words, keys, in_a_step, steps):
    caplog.set_level("INFO")
    rows = [{"prompt": f"p{i}" + " word" * words, "chosen": "a", "rejected": "b"} for i in range(count)]
    config = fine_tuning(str(write(tmp_path / "pairs.jsonl", *rows)), tmp_path / "w", "smollm2", keys=keys)
    kept = len((tmp_path / "w" / TRAIN).read_text().splitlines())
    said = f"{steps} steps of about {in_a_step} records are {steps * in_a_step / kept:.2g} passes over them"
    assert config.run.steps == steps and said in caplog.text


def split_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(
    "changed", [pairs(30)[:-1], pairs(30, reference="r"), [p for p in pairs(30) if not is_test(p["prompt"])]]
)
def test_the_data_of_a_run_are_never_replaced(tmp_path, changed):
    fine_tuning(str(write(tmp_path / "pairs.jsonl", *pairs(30))), tmp_path / "w")
    assert sorted(split_files(tmp_path / "w")) == [HELD_OUT, TRAIN]
    (tmp_path / "w" / "config.json").write_text("{}")  # what a run writes as it begins
    before = split_files(tmp_path / "w")
    write(tmp_path / "pairs.jsonl", *changed)
    with pytest.raises(ValueError, match="w holds a run on other preferences .*; use a new workdir"):
        fine_tuning(str(tmp_path / "pairs.jsonl"), tmp_path / "w", "smollm2")
    assert split_files(tmp_path / "w") == before


@pytest.mark.parametrize("changed", [pairs(30)[:-1], [p for p in pairs(30) if not is_test(p["prompt"])]])
def test_a_split_that_no_run_has_read_is_replaced_when_the_data_were_corrected(tmp_path, caplog, changed):
    fine_tuning(str(write(tmp_path / "pairs.jsonl", *pairs(30))), tmp_path / "w")
    path = str(write(tmp_path / "pairs.jsonl", *changed))
    fine_tuning(path, tmp_path / "w")
    assert "no run had begun on the preferences that were split here before; they are replaced" in caplog.text
    found = [json.loads(line)["prompt"] for text in split_files(tmp_path / "w").values() for line in text.splitlines()]
    assert sorted(found) == sorted(pair["prompt"] for pair in changed)
    (tmp_path / "w" / TRAIN).write_text("mine\n")  # somebody else's now
    with pytest.raises(ValueError, match=r"holds a run on other preferences \(train.jsonl differs\)"):
        fine_tuning(path, tmp_path / "w")


def test_nothing_is_written_before_all_is_checked(tmp_path):
    path, work = str(write(tmp_path / "pairs.jsonl", *pairs(30))), tmp_path / "w"
    with pytest.raises(FileNotFoundError, match="gone: no such model"):
        fine_tuning(path, work, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="no config key run.step"):
        fine_tuning(path, work, keys=["run.step=3"])
    work.mkdir()
    code = (
        "import sys; from pathlib import Path; from rmjax.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(work)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match="w is in use by another run"):
            fine_tuning(path, work)
        other.stdin.close()
    assert split_files(work) == {}
    assert fine_tuning(path, work, keys=["run.steps=7"]).run.steps == 7 and sorted(split_files(work)) == [
        HELD_OUT,
        TRAIN,
    ]


def test_a_small_language_model_is_trained_at_its_own_depth(tmp_path, monkeypatch):
    path, start = write(tmp_path / "pairs.jsonl", *pairs(9)), save_start(tmp_path / "start")
    monkeypatch.setattr(recipe, "is_language_model", lambda folder: True)
    monkeypatch.setattr(recipe, "records_in_a_step", lambda *given: 1.0)  # it has no chat template
    config = fine_tuning(str(path), tmp_path / "w", str(start))
    depth = load_description(start)[0].depth
    assert depth < 18 and (config.model.layers, config.model.frozen_layers) == (depth, max(0, depth - 2))
    assert config.format.kind == "chat"


def test_a_reward_model_goes_on_in_its_own_format(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *pairs(9))
    config = fine_tuning(str(path), tmp_path / "w", str(save_start(tmp_path / "start")))
    assert (config.format.kind, config.model.layers, config.model.frozen_layers, config.run.steps) == (
        "polar",
        0,
        0,
        20,
    )


def test_records_without_an_order_stop_or_are_counted(tmp_path, caplog):
    path = write(tmp_path / "pairs.jsonl", *pairs(9), {"prompt": "p", "output": "a"})
    with pytest.raises(RecordError, match="pairs.jsonl:10: .*only one candidate"):
        fine_tuning(str(path), tmp_path / "w")
    fine_tuning(str(path), tmp_path / "w", on_error="skip")
    assert "left out 1 × outputs: only one candidate" in caplog.text


@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_few_prompts_each_side_has_one(tmp_path, caplog, count, side):
    """Wherever the hash puts them; a record more of a prompt is on its side."""
    alike = [pair for pair in pairs(99) if is_test(pair["prompt"]) == side][:count]
    path = write(tmp_path / "few.jsonl", *alike, alike[0] | {"rejected": "c"})
    fine_tuning(str(path), tmp_path / "w")
    found = [
        {json.loads(line)["prompt"] for line in (tmp_path / "w" / name).read_text().splitlines()}
        for name in (TRAIN, HELD_OUT) if (tmp_path / "w" / name).exists()
    ]  # fmt: skip
    assert [len(prompts) for prompts in found] == {1: [1], 2: [1, 1], 3: [1, 2] if side else [2, 1]}[count]
    assert len(set.union(*found)) == count
    held = [f"0 of its {count} prompts are", f"1 of its {count} prompts is", f"2 of its {count} prompts are"]
    assert f"few.jsonl: {held[len(found[1]) if len(found) > 1 else 0]} held out, too few" in caplog.text


def test_a_config_file_gets_its_argument(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(name='none'): return ConfigDict({'name': name})\n"
    )
    assert [read_config(f"{tmp_path / 'c.py'}{end}").name for end in ("", ":mine")] == ["none", "mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", "c.py: SyntaxError: invalid syntax (c.py, line 1)"),
        ("def get_config(): return 3", "c.py: TypeError: get_config() takes 0 positional arguments but 1 was given"),
        ("def get_config(x): return None", "c.py: get_config returns NoneType; return a ConfigDict"),
        ("import gone_away", "c.py:1: ModuleNotFoundError: No module named 'gone_away'"),
        ("def get_config(x):\n  raise ValueError(f'{x} is odd')", "c.py:2: x is odd"),
        ("\n", "c.py: has no function get_config"),
    ],
)
def test_a_wrong_config_file_is_one_error(tmp_path, text, said):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_config(f"{tmp_path / 'c.py'}:x")


def test_a_config_may_import_what_lies_in_the_present_folder_when_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_it_1.py").write_text("from rmjax.config import get_config")
    (tmp_path / "c.py").write_text("def get_config():\n  import beside_it_1\n  return beside_it_1.get_config()\n")
    assert read_config("c.py") == get_config() and str(tmp_path) not in sys.path
