"""Configs that lack keys or have strangers, and run directories of an older version."""

import importlib.util
import inspect
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.polar import pretrain
from rmjax import config as base
from rmjax.config import complete, keep_config


def without(*paths: str) -> ConfigDict:
    """The pre-training config without these keys or sections."""
    config = pretrain.get_config()
    for path in paths:
        *sections, name = path.split(".")
        place = config
        for section in sections:
            place = place[section]
        del place[name]
    return config


def test_a_config_of_an_older_version_gets_the_keys_that_came_later():
    config = complete(without("gradient", "meta_data", "adapter.top_k", "evals.seen.wrapper").lock())
    assert config.to_dict() == pretrain.get_config().to_dict()


def test_the_given_config_is_left_as_it_is():
    config = without("gradient")
    complete(config).run.steps = 7
    assert "gradient" not in config and config.run.steps == pretrain.get_config().run.steps


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("optimiser", "config.optimiser does not exist; did you mean `optimizer`?"),
        ("optimizer.learing_rate", "config.optimizer.learing_rate does not exist; did you mean `learning_rate`?"),
        ("evals.seen.per_promt", "config.evals.seen.per_promt does not exist; did you mean `per_prompt`?"),
        ("run.zzz", "config.run.zzz does not exist; there are compiler_options, keep, "),
    ],
)
def test_a_key_that_a_config_file_invents_is_an_error(path, message):
    config = pretrain.get_config()
    *sections, name = path.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[name] = 1
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("?", r"\?")):
        complete(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "evals",
            {"x": 3},
            r"config\.evals\.x is 3; it must be an entry made by pool_eval, comparisons_eval, .* or answers_eval",
        ),
        ("evals", 3, r"config\.evals is 3; it must be a section of keys"),
        ("model", 3, r"config\.model is 3; it must be a section of keys"),
        ("adapter.expert_types", ("a",), r"config\.adapter\.expert_types has 'a'; all of its entries must be integers"),
        ("optimizer.rates", (3,), r"config\.optimizer\.rates has 3; all of its entries must be strings"),
    ],
)
def test_a_value_of_another_kind_is_named(path, value, message):
    values = pretrain.get_config().to_dict()
    *sections, name = path.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[name] = value
    with pytest.raises(ValueError, match=message):
        base.settle(ConfigDict(values))


def keep(tmp_path, stored: ConfigDict, now: ConfigDict) -> None:
    path = tmp_path / "config.json"
    path.write_text(stored.to_json())
    keep_config(now, path)


def test_a_run_of_an_older_version_goes_on_under_newer_keys(tmp_path):
    keep(tmp_path, without("gradient", "meta_data", "adapter", "evals"), pretrain.get_config())
    assert json.loads((tmp_path / "config.json").read_text())["gradient"]["name"] == "plain"


def test_a_run_of_an_older_version_did_without_what_came_later(tmp_path):
    now = pretrain.get_config()
    now.gradient.name = "meta"
    with pytest.raises(ValueError, match="another config .gradient.name: 'plain' then, 'meta' now.; use a new workdir"):
        keep(tmp_path, without("gradient"), now)


def test_what_may_change_and_what_may_not(tmp_path):
    now = pretrain.get_config()
    now.run.log_every, now.evals.seen.every, now.mesh.fsdp = 3, 7, 2
    now.model.attention, now.model.attention_block, now.model.remat, now.optimizer.microbatches = (
        "blockwise",
        64,
        "full",
        4,
    )
    keep(tmp_path, pretrain.get_config(), now)
    constrained = pretrain.get_config()
    constrained.adapter.kind, constrained.adapter.dropout = "lora", 0.1
    parted = constrained.copy_and_resolve_references()
    parted.optimizer.microbatches = 4
    (tmp_path / "constrained").mkdir()
    with pytest.raises(ValueError, match="optimizer.microbatches: 1 then, 4 now"):
        keep(tmp_path / "constrained", constrained, parted)
    now.optimizer.learning_rate = 1.0
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.0005 then, 1.0 now"):
        keep(tmp_path, pretrain.get_config(), now)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_broken_stored_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: not the config of a run"):
        keep_config(base.get_config(), tmp_path / "config.json")


def test_a_key_of_an_older_config_is_taken_under_its_new_name(caplog):
    config = base.get_config()
    with config.unlocked():
        config.data.leaves = 7
        del config.data.candidates
    assert complete(config).data.candidates == 7
    assert "config.data.leaves is called config.data.candidates now" in caplog.text


CONFIGS = Path(base.__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.py")))
def test_every_config_of_a_run_settles(path):
    spec = importlib.util.spec_from_file_location("config_file", CONFIGS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    takes = [p.default for p in inspect.signature(getattr(module, "get_config", print)).parameters.values()]
    if not hasattr(module, "get_config") or inspect.Parameter.empty in takes:
        pytest.skip("takes what only its study gives it")
    config = module.get_config()
    if "optimizer" not in config:
        pytest.skip("not a training run")
    assert base.settle(config).run.steps == config.run.steps


def test_an_older_run_that_decayed_everything_does_not_go_on_with_less(tmp_path):
    now = pretrain.get_config()
    now.optimizer.weight_decay = 0.1
    older = now.copy_and_resolve_references()
    del older.optimizer["decayed"]
    with pytest.raises(ValueError, match="optimizer.decayed: '.' then"):
        keep(tmp_path, older, now)
    now.optimizer.decayed = "."
    keep(tmp_path, older, now)
