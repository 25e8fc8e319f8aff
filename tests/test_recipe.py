"""The ready recipe and keys that are set by text; training by it is in tests/test_command.py."""

import pytest

from rmjax.config import get_config, settle
from rmjax.data.record import RecordError
from rmjax.data.sources import is_test
from rmjax.recipe import HELD_OUT, LONGEST, TRAIN, fine_tuning, read_config, set_keys
from tests.experiments.starting import save_start
from tests.tools.docs.saying import write


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("run.steps=7", "run.steps", 7),
        ("config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("data.path=12", "data.path", "12"),
        ("run.tensorboard=true", "run.tensorboard", True),
        ("adapter.expert_types=0,1", "adapter.expert_types", (0, 1)),
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


def test_a_recipe_is_a_config_that_holds_prompts_out(tmp_path):
    path = write(
        tmp_path / "pairs.jsonl", {"prompt": "q", "outputs": ["a", "b", "c"], "ranks": [0, 1, 2]}, *pairs(2000)
    )
    config = fine_tuning(str(path), tmp_path / "w")
    assert (config.model.init, config.format.kind, config.data.candidates) == ("smollm2", "chat", 3)
    assert config.run.steps == LONGEST
    kept, held = ((tmp_path / "w" / name).read_text().splitlines() for name in (TRAIN, HELD_OUT))
    assert len(kept) + len(held) == 2001 and 300 < len(held) < 500 and not set(kept) & set(held)
    before = (tmp_path / "w" / TRAIN).read_bytes()
    assert fine_tuning(str(path), tmp_path / "w") == config and (tmp_path / "w" / TRAIN).read_bytes() == before
    settle(config)


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


def test_no_prompt_to_train_on(tmp_path):
    held = next(i for i in range(99) if is_test(f"p{i}"))
    path = write(tmp_path / "one.jsonl", {"prompt": f"p{held}", "chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="one.jsonl: all of its 1 records are held out"):
        fine_tuning(str(path), tmp_path / "w")


def test_a_config_file_gets_its_argument(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(name='none'): return ConfigDict({'name': name})\n"
    )
    assert [read_config(f"{tmp_path / 'c.py'}{end}").name for end in ("", ":mine")] == ["none", "mine"]
