"""`config.adapter`: runs with an adapter, what they leave, and what bad input says."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import loramoe
from experiments import export
from experiments import train as command
from rmjax import config as base
from rmjax.data.packing import ForestShape
from rmjax.data.record import Comparison
from rmjax.evaluate import evaluation, scorers
from rmjax.evaluate.language import LanguageModel, score_texts
from rmjax.methods import adapters
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import flat, nested, split
from rmjax.reward_model import CHECKPOINTS, RewardModel, load_params
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.metrics import read_metrics
from tests.experiments.starting import save_start

pytestmark = pytest.mark.slow  # whole runs

ROWS = [{"prompt": "Say 3.", "output": "It is 3."}, {"prompt": "Say 3.", "output": "No."}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny reward model to start from, ranked answers and texts with types."""
    home = tmp_path_factory.mktemp("adapters")
    save_start(home / "start")
    ranked = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No.", "type": i % 2} for i in range(8)]
    texts = [{"prompt": f"Q{i}:", "output": f"A{i}", "type": i % 2} for i in range(8)]
    for name, rows in {"ranked": ranked, "texts": texts}.items():
        write(home / f"{name}.jsonl", rows)
    return home


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configured(home, objective="preference", **changes):
    config = loramoe.get_config(objective)
    values = {
        "model.init": str(home / "start"), "data.path": str(home / ("ranked" if objective == "preference" else "texts")) +
        ".jsonl", "data.rows": 4, "data.row_tokens": 128, "data.groups": 2, "run.steps": 3, "run.log_every": 1,
        "optimizer.learning_rate": 1e-2, "adapter.experts": 4, "adapter.rank": 2,
    }  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict(values | {name.replace("__", "."): value for name, value in changes.items()})
    return config.lock()


def execute(config, workdir) -> int:
    return command.guarded(functools.partial(command.run, config, Path(workdir)))


def error(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def trained(home):
    assert execute(configured(home), home / "trained") == 0
    return home / "trained"


def test_a_run_trains_adapter_and_head_only(home, trained):
    start, end = flat(load_params(home / "start")), flat(load_params(trained))
    new = end.keys() - start.keys()
    assert {path.split("/")[-1] for path in new} == {"lora_a", "lora_b", "lora_router"} and len(new) == 9
    assert [path for path in start if not np.array_equal(start[path], end[path])] == ["head/kernel"]
    with Checkpoints(trained / CHECKPOINTS) as saved:
        moments = saved.restore_subtree("optimizer")[1]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(moments)[0]]
    assert not [path for path in paths if "embedding" in path or ("kernel" in path and "head" not in path)]


def test_routing_is_in_the_metrics(trained):
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if "train/loss" in line]
    assert len(lines) == 3
    for line in lines:
        shares = [[line[f"train/routing/type{t}/expert{n}"] for n in range(4)] for t in range(2)]
        np.testing.assert_allclose(np.sum(shares, axis=1), 1, atol=1e-4)
        assert line["train/balance"] > 0 and line["train/routing/variation"] > 0
    assert lines[0]["train/loss"] == pytest.approx(np.log(2) + 0.1 * lines[0]["train/balance"], rel=1e-5)
    assert lines[-1]["train/retraces"] == 1


def test_the_routing_of_a_run_is_shown_by_layer(home, trained, tmp_path):
    options = evaluation.Options(trained, str(home / "ranked.jsonl"), tmp_path / "out.json", routing=tmp_path / "maps")
    evaluation.evaluate(options)
    found = json.loads((tmp_path / "out.json").read_text())["routing"]
    assert found["types"] == ["type 0", "type 1"] and set(found["shares"]) == {"mlp/gate", "mlp/up", "mlp/down"}
    share_ZLN = np.array(found["shares"]["mlp/up"])
    assert share_ZLN.shape[::2] == (2, 4)
    np.testing.assert_allclose(share_ZLN.sum(-1), 1, atol=1e-4)
    assert "mlp/up: coefficient of variation" in (tmp_path / "maps" / "report.html").read_text()
    with pytest.raises(ValueError, match="--routing: .*start has no adapter with routers"):
        evaluation.evaluate(dataclasses.replace(options, model=home / "start"))
    rows = [{"prompt": "Say 1.", "chosen": "1", "rejected": "No."}]
    with pytest.raises(ValueError, match="no record has a `type`"):
        evaluation.evaluate(dataclasses.replace(options, data=write(tmp_path / "bare.jsonl", rows)))


def test_a_run_is_loaded_with_its_adapter(home, trained):
    model = RewardModel.load(trained)
    assert model.config.adapter == AdapterConfig(
        "loramoe", base.get_config().adapter.pattern, 2, 32.0, 0.05, 4, 0, "linear"
    )
    scores = model.score(ROWS)
    assert np.isfinite(scores).all() and scores[0] != scores[1]
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merged()


def test_an_adapted_run_is_trained_further_with_the_same_adapter_only(home, trained, tmp_path, capsys):
    config = configured(home, model__init=str(trained), optimizer__learning_rate=0.0, run__steps=1)
    assert execute(config, tmp_path / "on") == 0
    np.testing.assert_allclose(
        RewardModel.load(tmp_path / "on").score(ROWS), RewardModel.load(trained).score(ROWS), atol=1e-5
    )
    for changes in ({"adapter__rank": 3}, {"adapter__kind": ""}):
        assert execute(configured(home, model__init=str(trained), **changes), tmp_path / "other") == 1
        assert "config.model.init has an adapter, AdapterConfig(kind='loramoe'" in error(capsys)
    assert execute(configured(home, model__init=str(trained), model__layers=1), tmp_path / "other") == 1
    assert "config.model.init has an adapter on 2 layers, 0 of them frozen" in error(capsys)


@pytest.mark.parametrize(
    "changes",
    [{}, {"adapter__router": "block", "adapter__top_k": 2, "adapter__beta": 0.0, "optimizer__microbatches": 2}],
)
def test_language_models_have_them_too(home, tmp_path, changes):
    assert execute(configured(home, "language_model", **changes), tmp_path) == 0
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert sum(lines[0][f"train/routing/type1/expert{n}"] for n in range(4)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_export_and_switch(home, tmp_path, kind, capsys):
    changes = {"adapter__kind": kind, "model__frozen_layers": 1, "run__steps": 5}
    for name, seed in (("one", 0), ("two", 1)):
        assert execute(configured(home, run__seed=seed, **changes), tmp_path / name) == 0
    one, two = (RewardModel.load(tmp_path / name) for name in ("one", "two"))
    export.export(tmp_path / "two", "adapter", tmp_path / "two.safetensors")
    switched = one.with_adapter(tmp_path / "two.safetensors")
    np.testing.assert_allclose(switched.score(ROWS), two.score(ROWS), atol=1e-5)
    assert np.abs(np.subtract(switched.score(ROWS), one.score(ROWS))).max() > 1e-5
    export.export(tmp_path / "one", "merged", tmp_path / "merged")
    merged = RewardModel.load(tmp_path / "merged")
    assert merged.config.adapter is None
    np.testing.assert_allclose(merged.score(ROWS), one.score(ROWS), atol=1e-4)
    export.export(tmp_path / "one", "peft", tmp_path / "peft", "base")
    assert sorted(p.name for p in (tmp_path / "peft").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(ValueError, match="has no adapter; it was trained with config.adapter.kind empty"):
        export.export(home / "start", "peft", tmp_path / "none")
    with pytest.raises(ValueError, match="--to is 'onnx'; choose light, peft, adapter, merged or hugging_face"):
        export.export(tmp_path / "one", "onnx", tmp_path / "none")
    with pytest.raises(FileExistsError, match="is a run already, or what a stopped export left; name a new folder"):
        export.export(tmp_path / "two", "merged", tmp_path / "merged")
    with pytest.raises(ValueError, match="was trained on another base"):
        merged.with_adapter(tmp_path / "two.safetensors")
    bare = RewardModel.load(home / "start").with_adapter(tmp_path / "two.safetensors")
    np.testing.assert_allclose(bare.score(ROWS), two.score(ROWS), atol=1e-5)
    again = bare.with_adapter(tmp_path / "two.safetensors")
    compiled = scorers._on_device._cache_size()
    assert again.score(ROWS) == bare.score(ROWS) and one.score(ROWS) != two.score(ROWS) == switched.score(ROWS)
    assert scorers._on_device._cache_size() == compiled  # one form on the same layers: nothing is compiled anew


def test_a_language_model_is_exported_as_one(home, tmp_path):
    changes = {"adapter__kind": "lora", "optimizer__learning_rate": 0.1}
    for name, seed in (("one", 0), ("two", 1)):
        assert execute(configured(home, "language_model", run__seed=seed, **changes), tmp_path / name) == 0
    with pytest.raises(ValueError, match="one is a language model .*, not a reward model"):
        RewardModel.load(tmp_path / "one")
    export.export(tmp_path / "one", "peft", tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not [name for name in load_file(tmp_path / "peft" / "adapter_model.safetensors") if "score" in name]
    export.export(tmp_path / "one", "merged", tmp_path / "merged")
    with pytest.raises(ValueError, match="merged is a language model"):
        RewardModel.load(tmp_path / "merged")
    export.export(tmp_path / "two", "adapter", tmp_path / "two.safetensors")
    one, two, merged = (LanguageModel.load(tmp_path / name) for name in ("one", "two", "merged"))
    texts, shape = [Comparison("Q1:", ("A1",))], ForestShape(1, 64, 1, 1)
    loss = {
        name: score_texts(model, texts, shape)[0].loss
        for name, model in {
            "one": one, "two": two, "merged": merged, "switched": one.with_adapter(tmp_path / "two.safetensors"),
            "bare": LanguageModel.load(home / "start").with_adapter(tmp_path / "two.safetensors"),
        }.items()
    }  # fmt: skip
    assert loss["merged"] == pytest.approx(loss["one"], abs=1e-4) and abs(loss["one"] - loss["two"]) > 1e-3
    assert loss["switched"] == loss["bare"] == pytest.approx(loss["two"], abs=1e-6)
    with pytest.raises(ValueError, match="two.safetensors: is a language model's adapter"):
        RewardModel.load(home / "start").with_adapter(tmp_path / "two.safetensors")


def test_pools_have_types_too(home, tmp_path, capsys):
    rows = [
        {"prompt_id": f"{i}", "prompt": f"Say {i}.", "policy": policy, "sample": k, "output": f"{policy} {k}", "type": i % 2}
        for i in range(8) for policy in ("a", "b") for k in range(2)
    ]  # fmt: skip
    changes = {"data__kind": "pool", "data__policies": "all", "data__prompts": "all"}
    assert execute(configured(home, data__path=write(tmp_path / "pool.jsonl", rows), **changes), tmp_path / "run") == 0
    first = next(line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line)
    assert all(
        sum(first[f"train/routing/type{t}/expert{n}"] for n in range(4)) == pytest.approx(1, rel=1e-4) for t in (0, 1)
    )
    rows[4] |= {"type": 0}
    assert execute(configured(home, data__path=write(tmp_path / "two.jsonl", rows), **changes), tmp_path / "other") == 1
    assert "two.jsonl:6: field `type`: is 1, and 0 in earlier rows with prompt_id `1`; give a prompt one" in error(
        capsys
    )
    for row in rows:
        row["type"] = "law"
    assert execute(configured(home, data__path=write(tmp_path / "law.jsonl", rows), **changes), tmp_path / "other") == 1
    assert "law.jsonl: prompt_id `0`: field `type`: missing or not an integer" in error(capsys)


def test_a_bf16_base_keeps_an_fp32_adapter(home, tmp_path):
    changes = {"model__param_dtype": "bfloat16", "model__dtype": "bfloat16"}
    assert execute(configured(home, **changes), tmp_path) == 0
    kinds = {path: str(x.dtype) for path, x in flat(load_params(tmp_path)).items()}
    assert {kinds[p] for p in kinds if "lora_" in p or p.startswith("head/")} == {"float32"}
    assert {kinds[p] for p in kinds if "lora_" not in p and not p.startswith("head/")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter__kind": "moe"}, "config.adapter.kind is 'moe'; choose '', lora, rslora, dora or loramoe"),
        ({"adapter__pattern": "ffn/up"}, "adapter.pattern is 'ffn/up' and matches no Dense; nearest: "),
        ({"adapter__rank": 48}, "adapter.rank is 48, above the width of backbone/layers/mlp/gate (32 to 64); lower it"),
        ({"adapter__experts": 5}, "adapter.experts is 5, which does not make two equal groups; make it even or set"),
        ({"adapter__expert_types": (0, 1)}, "config.adapter.expert_types has 2 entries; give one for each of 4"),
        ({"adapter__alpha": 0.0}, "adapter.alpha is 0.0; it must be above 0"),
        ({"adapter__pattern": ""}, "adapter.pattern is empty, which matches every Dense; give `.`"),
        ({"adapter__beta": float("nan")}, "config.adapter.beta is nan; it must be a finite number"),
        ({"adapter__expert_types": (0, 0, 2, 2)}, "no expert serves type 1: number the types from 0"),
        ({"adapter__balance": "cv"}, "config.adapter.balance is 'cv'; choose paper or code"),
        ({"trainable": "final_norm"}, "and matches no parameter"),
        ({"trainable": "("}, "config.trainable is '(', not a regular expression"),
        (
            {"data__kind": "pool", "data__path": "shipped:policy_pool"},
            "field `type`: missing or not an integer of 32 bits, and the balancing constraint needs it; give 0 or 1",
        ),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_values_that_no_run_can_have(home, tmp_path, capsys, changes, message):
    assert execute(configured(home, **changes), tmp_path) == 1
    assert message in error(capsys)


@pytest.mark.parametrize("objective", ["preference", "language_model"])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({}, "missing or not"),
        ({"type": 2}, "out of range (2); give 0 or 1"),
        ({"type": 1.5}, "missing or not an integer"),
        ({"type": "helpful"}, "missing or not an integer"),
    ],
)
def test_labels_are_checked_where_the_constraint_needs_them(home, tmp_path, capsys, objective, label, message):
    row = (
        {"prompt": "a", "chosen": "b", "rejected": "c"} if objective == "preference" else {"prompt": "a", "output": "b"}
    )
    path = write(tmp_path / "data.jsonl", [row | {"type": 0}, row | label])
    assert execute(configured(home, objective, data__path=path), tmp_path / "run") == 1
    assert f"{path}:2: field `type`: {message}" in error(capsys)
    if not label:
        assert execute(configured(home, objective, data__path=path, adapter__beta=0.0), tmp_path / "free") == 0


def test_what_is_trained():
    config = base.get_config()
    assert base.chosen(config).trainable == config.trainable
    config.adapter.kind = "lora"
    paths = (
        "backbone/layers/mlp/up/kernel",
        "backbone/layers/mlp/up/lora_a",
        "backbone/final_norm/scale",
        "head/kernel",
    )
    trainable, frozen = split(nested(dict.fromkeys(paths, 0)), base.chosen(config).trainable)
    assert set(flat(trainable)) == {"backbone/layers/mlp/up/lora_a", "head/kernel"}
    assert len(flat(frozen)) == 2


def test_without_constraint_an_odd_number_of_experts_is_fine():
    section = base.get_config().adapter
    assert adapters.make_balance(section) is None and adapters.types_needed(section) == 0
    section.kind, section.experts = "loramoe", 3
    assert adapters.make_balance(section).expert_types == (0, 0, 1) and adapters.types_needed(section) == 0
    section.beta, section.expert_types = 0.1, (0, 1, 2)
    assert adapters.types_needed(section) == 3


def test_the_config_of_another_objective():
    assert loramoe.get_config("language_model").data.kind == "texts"
    with pytest.raises(ValueError, match="configs/loramoe.py:dpo is unknown; choose preference or language_model"):
        loramoe.get_config("dpo")
