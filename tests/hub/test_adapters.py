"""Adapters in files: one base under several of them, PEFT's form, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rmjax.hub.adapters import export_peft, fingerprint, frozen_layers, load_adapter, save_adapter
from rmjax.models.lora import AdapterConfig, merged
from rmjax.models.parameters import first_layers, flat, nested
from rmjax.models.reward import RewardTransformer
from rmjax.models.rope import Rope, frequencies, rotate
from rmjax.train.metrics import count_traces
from tests.models.adapting import EVERY, PAIRS, experts, moved, rewards, small, started

NAMES = {
    "self_attn.q_proj": "attention/query", "self_attn.k_proj": "attention/key", "self_attn.v_proj": "attention/value",
    "self_attn.o_proj": "attention/output", "mlp.gate_proj": "mlp/gate", "mlp.up_proj": "mlp/up",
    "mlp.down_proj": "mlp/down",
}  # fmt: skip


def trained(adapter, seed=3, **sizes):
    model, params = started(small(adapter=adapter, **sizes))
    return model, moved(params, seed)


@pytest.mark.parametrize("adapter", [AdapterConfig("dora", EVERY), experts()], ids=["dora", "loramoe"])
def test_a_file_brings_adapter_and_head_back(adapter, tmp_path):
    model, params = trained(adapter)
    save_adapter(tmp_path / "a" / "one.safetensors", adapter, params)
    assert all("/lora_" in name or name == "head/kernel" for name in load_file(tmp_path / "a" / "one.safetensors"))
    other = moved(params, seed=4)
    other["head"] = {"kernel": -other["head"]["kernel"]}
    read, back = load_adapter(tmp_path / "a" / "one.safetensors", other, fingerprint(other))
    assert read == adapter
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(flat(back)[path], leaf, err_msg=path)


def test_adapters_are_switched_without_compiling(tmp_path):
    model, params = trained(experts())
    counted = count_traces(lambda params: model.apply({"params": params}, PAIRS))
    run = jax.jit(counted)
    found = []
    for seed in range(3):
        save_adapter(tmp_path / f"{seed}", model.config.adapter, moved(params, seed))
        found.append(np.asarray(run(load_adapter(tmp_path / f"{seed}", params, fingerprint(params))[1])))
    assert counted.traces == 1
    assert np.abs(found[0] - found[1]).max() > 1e-3 and np.abs(found[1] - found[2]).max() > 1e-3


def test_the_fingerprint_is_of_the_base_alone():
    _, params = trained(AdapterConfig("lora"))
    assert fingerprint(moved(params)) == fingerprint(params)
    other = flat(params) | {"backbone/final_norm/scale": flat(params)["backbone/final_norm/scale"] + 1e-6}
    assert fingerprint(other) != fingerprint(params)
    half = {p: x.astype("bfloat16") if p.endswith("scale") else x for p, x in flat(params).items()}
    assert fingerprint(half) not in (fingerprint(params), fingerprint(other))


@pytest.mark.parametrize("below", [0, 1])
def test_a_base_gets_an_adapter_however_its_layers_are_stacked(below, tmp_path):
    """One without adapter, or with one on other layers: the file says which layers it adapts, and what it is."""
    model, params = trained(AdapterConfig("dora", rank=2), depth=3, frozen_layers=2)
    save_adapter(tmp_path / "one", model.config.adapter, params)
    bare = {p: leaf for p, leaf in flat(params).items() if "lora_" not in p and not p.startswith("head/")}
    base = {"backbone": first_layers(nested(bare)["backbone"], 3, below)}
    assert frozen_layers(base) == below and fingerprint(base) == fingerprint(params)
    adapter, back = load_adapter(tmp_path / "one", base, fingerprint(base))
    assert adapter == model.config.adapter and frozen_layers(back) == 2
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(flat(back)[path], leaf, err_msg=path)
    np.testing.assert_array_equal(rewards(model, back), rewards(model, params))


def test_what_a_file_may_not_be(tmp_path):
    model, params = trained(AdapterConfig("lora"))
    adapter = model.config.adapter
    path = tmp_path / "own"
    save_adapter(path, adapter, params)
    _, elsewhere = started(small(adapter=adapter), seed=1)
    with pytest.raises(ValueError, match="own: was trained on another base"):
        load_adapter(path, elsewhere, fingerprint(elsewhere))
    save_adapter(tmp_path / "writes", adapter, {"backbone": params["backbone"]})
    with pytest.raises(
        ValueError, match="writes: is a language model's adapter .it has no head., and this is a reward"
    ):
        load_adapter(tmp_path / "writes", params, fingerprint(params))
    norm = {"backbone/final_norm/scale": np.zeros(32, np.float32)}
    with safe_open(path, framework="numpy") as file:
        save_file(load_file(path) | norm, tmp_path / "more", file.metadata())
    with pytest.raises(ValueError, match="more: not an adapter file .*it has backbone/final_norm/scale"):
        load_adapter(tmp_path / "more", params, fingerprint(params))
    with pytest.raises(FileNotFoundError, match="none: no such adapter file"):
        load_adapter(tmp_path / "none", params, "")
    (tmp_path / "text").write_text("not safetensors")
    save_file({"a": np.zeros(1)}, tmp_path / "foreign")
    save_file({"a": np.zeros(1)}, tmp_path / "later", {"adapter": '{"kind": "moe"}', "base": ""})
    for name in ("text", "foreign", "later"):
        with pytest.raises(ValueError, match=f"{name}: not an adapter file"):
            load_adapter(tmp_path / name, params, "")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file, such as .*adapter.safetensors"):
        save_adapter(tmp_path, adapter, params)


def test_one_expert_is_exported_as_the_lora_that_it_is(tmp_path):
    adapter = AdapterConfig("loramoe", rank=2, experts=1)
    model, params = trained(adapter)
    plain = merged(params, adapter)
    alone = RewardTransformer(dataclasses.replace(model.config, adapter=None))
    np.testing.assert_allclose(rewards(alone, plain), rewards(model, params), rtol=1e-5, atol=1e-5)
    export_peft(tmp_path, model.config, params)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    up = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
    np.testing.assert_array_equal(up, flat(params)["backbone/layers/mlp/up/lora_a"][1, 0].T)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_peft_files_hold_the_same_model(kind, frozen, tmp_path):
    """Names, shapes and values: with PEFT's formula on HF's layout they give the merged weights."""
    adapter = AdapterConfig(kind, EVERY, rank=3, alpha=6.0, dropout=0.1)
    model, params = trained(adapter, depth=3, frozen_layers=frozen)
    export_peft(tmp_path, model.config, params, "hub/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["modules_to_save"]) == ("LORA", "SEQ_CLS", ["score"])
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6.0, 0.1)
    assert (config["use_rslora"], config["use_dora"]) == (kind == "rslora", kind == "dora")
    assert config["base_model_name_or_path"] == "hub/base"
    assert config["target_modules"] == sorted(name.split(".")[1] for name in NAMES)
    assert config["layers_to_transform"] == list(range(frozen, 3))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(tensors.pop("base_model.model.score.weight"), params["head"]["kernel"].T)
    assert len(tensors) == (3 - frozen) * 7 * (3 if kind == "dora" else 2)
    scale = 6 / np.sqrt(3) if kind == "rslora" else 2
    base, whole = flat(params)["backbone/layers/mlp/up/kernel"], flat(merged(params, adapter))
    assert base.shape[0] == 3 - frozen
    for i in range(frozen, 3):
        for name, ours in NAMES.items():
            prefix = f"base_model.model.model.layers.{i}.{name}."
            a, b = tensors[prefix + "lora_A.weight"], tensors[prefix + "lora_B.weight"]
            weight = np.asarray(flat(params)[f"backbone/layers/{ours}/kernel"][i - frozen]).T
            assert a.shape == (3, weight.shape[1]) and b.shape == (weight.shape[0], 3)
            weight = weight + scale * b @ a
            if kind == "dora":
                magnitude = tensors[prefix + "lora_magnitude_vector"]
                weight = weight * (magnitude / np.linalg.norm(weight, axis=1))[:, None]
            wanted = whole[f"backbone/layers/{ours}/kernel"][i - frozen].T
            np.testing.assert_allclose(weight, wanted, atol=1e-5, err_msg=prefix)


def test_q_and_k_rows_are_in_hugging_faces_order():
    """HF rotates the first half of a head against the second (`rotate_half`); so do we, and rows stay where they are."""
    x = np.random.default_rng(0).standard_normal((1, 3, 1, 8)).astype(np.float32)
    positions = np.arange(3)[None]
    angle = positions[0][:, None] * 100.0 ** (-np.arange(0, 8, 2) / 8)
    cos, sin = (np.concatenate([f(angle)] * 2, -1) for f in (np.cos, np.sin))
    half_rotated = np.concatenate([-x[0, :, 0, 4:], x[0, :, 0, :4]], -1)
    turned = rotate(x, positions, *frequencies(Rope(100.0), 8))
    np.testing.assert_allclose(turned[0, :, 0], x[0, :, 0] * cos + half_rotated * sin, atol=1e-5)


def test_a_language_model_is_exported_without_head(tmp_path):
    model, params = trained(AdapterConfig("lora"))
    export_peft(tmp_path, model.config, {"backbone": params["backbone"]})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert not any("score" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_what_peft_has_no_form_for(tmp_path):
    model, params = trained(experts())
    with pytest.raises(ValueError, match="PEFT has no form for experts weighed"):
        export_peft(tmp_path, model.config, params)
    with pytest.raises(ValueError, match="no adapter to export"):
        export_peft(tmp_path, dataclasses.replace(model.config, adapter=None), params)
    assert rewards(model, params).shape == (2, 2, 2)
