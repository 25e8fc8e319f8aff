"""Folders of the hub: what is read, and what bad ones say."""

import dataclasses
import functools
import json
import logging

import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from rmjax.data.chat import template_text
from rmjax.data.formats import Format
from rmjax.evaluate.evaluation import Options, evaluate, notes
from rmjax.fetch import DOWNLOAD
from rmjax.hub import shipped
from rmjax.hub.config_json import read_config, written_config
from rmjax.hub.families import KINDS
from rmjax.hub.hugging_face import is_hub_folder, open_folder, read_tokenizer
from rmjax.hub.tensors import HubError
from rmjax.models.stored import on_host
from rmjax.reward_model import RewardModel, base_model, load_params
from rmjax.settings import Model
from rmjax.start import load_start
from tests.hub.goldens import CHATML, FOLDER, NAMES, READ, copied
from tests.hub.published import PUBLISHED


@pytest.fixture
def folder(tmp_path):
    return copied("llama", tmp_path / "llama")


@functools.cache
def opened(name):
    return open_folder(FOLDER / name)


def change(folder, **keys):
    """config.json with keys changed; `...` takes one out."""
    path = folder / "config.json"
    file = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in file.items() if value is not ...}))
    return folder


def change_tensors(folder, changed):
    path = folder / "model.safetensors"
    save_file(changed(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_the_same_written_and_read(name, tmp_path):
    described = read_config(FOLDER / name)
    (tmp_path / "config.json").write_text(json.dumps(written_config(described.transformer, described.model_type)))
    assert read_config(tmp_path).transformer == described.transformer


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_type": "falcon"}, "model_type is 'falcon'; supported: llama, "),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', not a whole number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number above 0"),
        ({"hidden_act": "relu", "residual_multiplier": 0.2}, "hidden_act is 'relu', supported: silu, swish; residual_multiplier"),
        ({"a_new_kind_of_attention": 7}, "a_new_kind_of_attention is 7"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config is set \(gptq\)"),
        ({"num_attention_heads": 3}, "heads .3. must be a multiple of kv_heads"),
        ({"rope_theta": 5e5}, "rope_theta says 500000.0, and rope_parameters 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling says .*linear.*, and rope_parameters .*none"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "mrope"}}, "rope_type is 'mrope'; supported: default, linear"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "llama3", "factor": 8.0}}, "without low_freq_factor"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "rope_type and type differ"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "beta": 3}}, "beta is 3, which is not read"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}, "which this family does not have"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, which this family's code does not"),
    ],
)  # fmt: skip
def test_a_key_that_would_be_ignored(folder, keys, said):
    with pytest.raises(HubError, match=said) as caught:
        read_config(change(folder, **keys))
    assert str(caught.value).startswith(str(folder / "config.json"))


@pytest.mark.parametrize(
    "keys", [{"no_rope_layers": 3}, {"rope_parameters": [1]}, {"quantization_config": [1]}, {"head_dim": "x"}]
)
def test_values_of_another_kind_are_one_line(folder, keys):
    change(folder, **keys)
    with pytest.raises(HubError, match=r"config\.json: "):
        open_folder(folder)


def test_all_such_keys_are_named_at_once(folder):
    with pytest.raises(HubError) as caught:
        read_config(change(folder, hidden_act="relu", one=1, two=[2], intermediate_size=...))
    assert all(word in str(caught.value) for word in ("hidden_act", "one is 1", "two is [2]", "intermediate_size"))


def test_keys_that_only_describe(folder):
    before = read_config(folder).transformer
    changed = {"_name_or_path": "x", "temperature": 0.6, "attention_dropout": 0.1, "quirk": None, "pretraining_tp": 2}
    changed["partial_rotary_factor"] = 1  # the number 1.0, whichever way it is written
    assert read_config(change(folder, **changed)).transformer == before


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = read_config(tmp_path).transformer
    assert (config.depth, config.width) == tuple(PUBLISHED[name][key] for key in ("num_hidden_layers", "hidden_size"))


@pytest.mark.parametrize(
    "keys", [{"rope_interleaved": True}, {"full_attn_mod": 1}, {"lm_head_bias": True}, {"partial_rotary_factor": True}]
)
def test_what_a_published_config_has_is_refused_at_other_values(folder, keys):
    with pytest.raises(HubError, match=f"{next(iter(keys))} is"):
        read_config(change(folder, **keys))


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern is 3, supported: 2"),
        (
            "gemma3",
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters has no full_attention and sl",
        ),
    ],
)
def test_what_transformers_would_ignore_is_refused(name, keys, said, tmp_path):
    (tmp_path / "config.json").write_text((FOLDER / name / "config.json").read_text())
    with pytest.raises(HubError, match=said):
        read_config(change(tmp_path, **keys))
    assert name != "gemma2" or read_config(change(tmp_path, sliding_window_pattern=2)).transformer.window == 5


def test_rewards_that_openrlhf_would_standardize(tmp_path, caplog):
    folder = change(copied("llama_reward_biases", tmp_path / "model"), mean=0.5, std=2.0, normalize_reward=True)
    open_folder(folder)
    assert "config.json says mean 0.5 and std 2 of the rewards" in caplog.text


@pytest.mark.parametrize(
    ("name", "keys", "field", "value"),
    [
        ("mistral_reward", {"sliding_window": ...}, "window", 4096),  # absent is not null
        ("mistral_reward", {"sliding_window": None}, "window", 0),
        ("qwen2", {"use_sliding_window": False}, "window", 0),
        ("qwen2", {"layer_types": ...}, "windowed", (False, True)),
        ("gemma2", {"layer_types": ...}, "windowed", (True, False, True)),
        ("gemma3", {"query_pre_attn_scalar": 8}, "attention_scale", 0.0),
        ("smollm3", {"no_rope_layers": ..., "no_rope_layer_interval": 2}, "rotary", (True, False, True, False)),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "rotary", ()),
        ("phi3", {}, "max_positions", 32),  # the model of short texts
        ("internlm2", {"bias": ...}, "qkv_bias", True),
    ],
)
def test_what_absent_and_changed_keys_mean(name, keys, field, value, tmp_path):
    (tmp_path / "config.json").write_text((FOLDER / name / "config.json").read_text())
    assert getattr(read_config(change(tmp_path, **keys)).transformer, field) == value


def test_families_are_told_apart_when_written():
    with pytest.raises(HubError, match="a llama model has"):
        written_config(read_config(FOLDER / "qwen3").transformer, "llama")
    assert set(KINDS) >= {read_config(FOLDER / name).model_type for name in NAMES}


@pytest.mark.parametrize("same", [True, False])
def test_a_vocabulary_head_that_is_no_copy_is_not_tied(folder, same, caplog):
    embedding = "model.embed_tokens.weight"
    change(folder, tie_word_embeddings=True)
    if same:
        change_tensors(folder, lambda tensors: tensors | {"lm_head.weight": tensors[embedding]})
    model = open_folder(folder)
    assert model.config.tied_embeddings == same
    assert ("output" in model.params["backbone"]) != same
    assert ("tie_word_embeddings is true in config.json, and lm_head.weight differs" in caplog.text) != same


def test_every_wrong_tensor_is_named_at_once(folder):
    def wrong(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((4, 4), np.float32)
        tensors["model.layers.7.mlp.up_proj.weight"] = tensors.pop("model.norm.weight")
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float64)
        return tensors

    change_tensors(folder, wrong)
    with pytest.raises(HubError) as caught:
        open_folder(folder)
    said = (
        "model.norm.weight is missing; model.layers.7.mlp.up_proj.weight is unknown; "
        "model.layers.0.self_attn.q_proj.weight has shape [4, 4], and by config.json it has [32, 16]; "
        "model.layers.1.mlp.up_proj.weight is of dtype F64, supported: F32, F16, BF16"
    )
    assert said in str(caught.value)


def test_eight_bits_are_refused(folder):
    import ml_dtypes

    def eight(tensors):
        return {name: x.astype(ml_dtypes.float8_e4m3fn) for name, x in tensors.items()}

    change_tensors(folder, eight)
    with pytest.raises(HubError, match="lm_head.weight is of dtype F8_E4M3, supported"):
        open_folder(folder)


def test_a_reward_class_without_its_head(folder):
    change(folder, architectures=["LlamaForSequenceClassification"])
    change_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(HubError, match=r"score\.weight is missing"):
        open_folder(folder)


def test_two_labels_are_no_reward(tmp_path):
    folder = copied("qwen2_reward", tmp_path / "two")
    change_tensors(folder, lambda tensors: tensors | {"score.weight": np.repeat(tensors["score.weight"], 2, 0)})
    with pytest.raises(HubError, match=r"score\.weight has shape \[2, 16\], and by config\.json it has \[1, 16\]"):
        open_folder(folder)


def test_a_cut_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HubError, match=r"model\.safetensors: not a readable safetensors file .*get the file again"):
        open_folder(folder)


def test_a_pointer_in_place_of_a_file(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(HubError, match="a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", r"pickles \(pytorch_model\.bin\)"),
        ("adapter_model.safetensors", "an adapter alone"),
        ("x", "has no model.safe"),
    ],
)
def test_a_folder_without_safetensors(folder, file, said):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(b"\x80\x02")
    with pytest.raises(FileNotFoundError, match=said):
        open_folder(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda m: m | {"model.norm.weight": "model-00003-of-00002.safetensors"}, "names model-00003-of-00002"),
        (lambda m: m | {"model.other.weight": "model-00001-of-00002.safetensors"}, "model.other.weight in model-00001"),
        (lambda m: {k: v for k, v in m.items() if "norm" not in k}, "nowhere, and the files say otherwise"),
        (lambda m: None, "not an index of tensors"),
    ],
)  # fmt: skip
def test_an_index_that_the_files_do_not_bear_out(changed, said, tmp_path):
    folder = copied("mistral_sharded", tmp_path / "sharded")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": changed(index["weight_map"])}))
    with pytest.raises(HubError, match=said):
        open_folder(folder)


def test_what_is_left_out_is_counted(tmp_path, caplog):
    folder = copied("gemma3_nested", tmp_path / "seeing")
    with caplog.at_level(logging.INFO):
        open_folder(folder)
    assert "2 tensors left out: vision" in caplog.text
    change(folder, **json.loads((folder / "config.json").read_text())["text_config"])
    change(folder, text_config=..., vision_config=..., mm_tokens_per_image=...)
    with pytest.raises(HubError, match=r"vision_tower\.\S+ is unknown"):
        open_folder(folder)


def test_pad_is_eos_is_said(tmp_path, caplog):
    open_folder(copied("llama_reward_pad_eos", tmp_path / "padded"))
    assert "pad_token_id is 2, an end token too" in caplog.text


def read_by_transformers(ids, pad):
    """The column at which `…ForSequenceClassification` reads: of the rightmost id that is not the pad id, or the first."""
    return int((np.arange(len(ids)) * (np.asarray(ids) != pad)).argmax())


@pytest.mark.parametrize(
    ("form", "changes", "concerned"),
    [
        (Format(kind="plain", reward_token="</s>"), {}, 3),  # every text ends with the pad id, 2
        (None, {}, 0),  # the template's line break is behind the end token
        (Format(kind="chat", end_token="<|im_end|>"), {"pad_token_id": 11}, 3),
        (Format(kind="chat", end_token="<|im_end|>"), {"pad_token_id": 10}, 0),  # inside only
        (Format(kind="plain", reward_token="</s>"), {"pad_token_id": None}, 0),
        (
            Format(kind="plain", reward_token="</s>"),
            {"architectures": ["LlamaForRewardModel"]},
            0,
        ),  # its code is not known
    ],
)
def test_texts_that_transformers_reads_elsewhere_are_counted(tmp_path, form, changes, concerned):
    folder = change(copied("llama_reward_pad_eos", tmp_path / "padded"), **changes)
    model = RewardModel.load(folder, dtype="float32", form=form and dataclasses.replace(form, max_length=60))
    encoder, pad = model.scorer.encoder, changes.get("pad_token_id", 2)
    records = [_parsed({"prompt": "ab", "outputs": ["c", "de"]}), _parsed({"prompt": "d", "output": "f"})]
    texts = [scored.ids for record in records for scored in encoder.scored(record)[0]]
    elsewhere = sum(read_by_transformers(ids, pad) != len(ids) - 1 for ids in texts)
    assert encoder.counts["read_elsewhere_by_transformers"] == concerned
    assert elsewhere == concerned or "architectures" in changes
    encoder.counts.clear()
    encoder.trees(dataclasses.replace(records[0], ranks=(0.0, 1.0)))
    assert encoder.counts["read_elsewhere_by_transformers"] == (2 if concerned else 0)


def test_an_evaluation_says_how_many_texts_it_concerns(tmp_path):
    template = CHATML.replace("<|im_end|>\n", "</s>")
    folder = copied("llama_reward_pad_eos", tmp_path / "padded", template)
    rows = [{"prompt": "ab", "chosen": "c", "rejected": "d"}, {"prompt": "b", "chosen": "a", "rejected": "e"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(Options(folder, str(tmp_path / "data.jsonl"), tmp_path / "result.json", mesh="one"))
    assert result["encoding"] == json.loads((tmp_path / "result.json").read_text())["encoding"]
    assert result["encoding"] == {"read_elsewhere_by_transformers": 4}
    assert "while encoding: 4 × read_elsewhere_by_transformers" in notes(result)


def test_tokenizer_template_and_tokens(folder):
    tokenizer = read_tokenizer(folder, read_config(folder))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == ("<s>", "</s>", CHATML)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_tokenizer(folder, read_config(folder)).chat_template == "{{ messages }}"
    change(folder, vocab_size=40)
    with pytest.raises(ValueError, match=r"tokenizer\.json: has 64 tokens, and the model 40"):
        read_tokenizer(folder, read_config(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: not there.*save_pretrained"):
        read_tokenizer(folder, read_config(folder))


@pytest.mark.parametrize(
    ("where", "system"),
    [("WorldPM-72B", ""), ("models--Qwen--WorldPM-72B-HelpSteer2/snapshots/0308f93", ""), ("Qwen2.5-Math-RM", "Help.")],
)
def test_worldpm_reads_an_empty_system_turn_and_its_templates_last_token(tmp_path, where, system):
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    model = RewardModel.load(copied("qwen2_reward_mlp", tmp_path / where, default + CHATML + "{{ '</s>' }}"))
    encoder = model.scorer.encoder
    ids = encoder.scored(_parsed({"prompt": "ab", "output": "c"}))[0][0].ids
    turns = (("system", system), ("user", "ab"), ("assistant", "c"))
    wanted = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "</s>"
    assert ids == model.tokenizer.encode_marked(wanted)
    own = [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}]
    assert encoder.scored(_parsed({"messages": own, "output": "c"}))[0][0].ids == model.tokenizer.encode_marked(
        wanted.replace(f"system\n{system}", "system\nd", 1)
    )


def test_polar_reads_what_its_client_writes(tmp_path):
    model = RewardModel.load(copied("polar", tmp_path / "polar"), dtype="float32")
    assert (model.format.kind, model.format.bos_token, model.config.dtype) == ("polar", "<s>", "float32")
    (sequences,) = model.scorer.encoder.sequences(_parsed({"prompt": "ab", "reference": "c", "output": "d"}))
    ids = [model.tokenizer.id(token) for token in ("<s>", *"ab\nc", "<|reward|>", *"ab\nd", READ)]
    assert sequences == [ids]


def _parsed(row):
    from rmjax.data.record import parse

    return parse(row, "row")


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(ValueError, match=r"is a language model \(LlamaForCausalLM\), not a reward model"):
        RewardModel.load(folder)


def test_no_template_asks_for_a_format(tmp_path):
    folder = copied("qwen3_reward", tmp_path / "bare", template="")
    with pytest.raises(HubError, match="has no chat template, which a Qwen3ForSequenceClassification reads"):
        RewardModel.load(folder)
    form = Format(kind="plain", reward_token="</s>", max_length=64, max_response_length=32)
    assert RewardModel.load(folder, form=form).format == form
    named = RewardModel.load(folder, template="chatml").format
    assert (named.kind, named.template, named.read_out) == ("chat", template_text("chatml"), "last")


@pytest.mark.parametrize(("asked", "online"), [("1", True), ("0", False), ("", False)])
@pytest.mark.parametrize("revision", ["v2", None])
def test_the_network_is_asked_only_where_the_environment_says_so(tmp_path, monkeypatch, asked, online, revision):
    given, commit = [], tmp_path / "c0ffee"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: given.append(options) or commit)
    monkeypatch.setenv(DOWNLOAD, asked)
    assert shipped.cached("org/tiny" + (f"@{revision}" if revision else "")) == commit
    assert given[0] == {"repo_type": "model", "revision": revision, "local_files_only": True}
    fetched = {"repo_type": "model", "revision": "c0ffee", "allow_patterns": list(shipped.FILES)}
    assert given[1:] == ([fetched] if online else [])  # what is there, and not a later commit


class Answer(HfHubHTTPError):
    """One without a response, which the libraries below make differently from version to version."""

    def __init__(self, text: str):
        Exception.__init__(self, text)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Answer("401 Client Error.\n\nRepository Not Found"),
            r"the hub does not give it \(401 Client Error. Repository Not",
        ),
        (LocalEntryNotFoundError("no network"), "not in huggingface_hub's cache, and the hub is out of reach"),
    ],
)
def test_what_the_hub_answers_is_said(monkeypatch, error, said):
    def refuse(repo, local_files_only=False, **_):
        raise LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setenv(DOWNLOAD, "1")
    with pytest.raises(FileNotFoundError, match=f"org/tiny: {said}"):
        shipped.cached("org/tiny")


def test_a_run_starts_from_a_folder(folder, tmp_path):
    start = load_start(Model(init=str(folder), layers=1))
    assert (start.config.depth, start.may_miss, start.config.param_dtype) == (1, "^head/", "float32")
    assert start.params["backbone"]["layers"]["mlp"]["up"]["kernel"].shape == (1, 16, 24)  # still in its file
    reward = load_start(Model(init=str(copied("polar", tmp_path / "polar"))))
    assert (reward.may_miss, set(reward.params)) == ("", {"backbone", "head"})
    bare, tokenizer = base_model(str(folder))
    whole = load_params(folder)["backbone"]
    np.testing.assert_array_equal(bare["layers"]["mlp"]["up"]["kernel"], whole["layers"]["mlp"]["up"]["kernel"])
    assert tokenizer.eos_token == "</s>"


def test_a_name_of_the_hub_comes_from_the_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"`hf download org/tiny --revision v2 --include '\*.json' .*RMJAX_DOWNLOAD=1"
    ):
        load_start(Model(init="org/tiny@v2"))
    with pytest.raises(FileNotFoundError, match=r"^org/tiny: no such directory of a model; as a model of the hub"):
        RewardModel.load("org/tiny")
    repository = tmp_path / "models--org--tiny"
    copied("llama", repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    assert shipped.cached("org/tiny") == repository / "snapshots" / ("a" * 40)
    assert load_start(Model(init="org/tiny")).config.width == 16
    assert shipped.cached("no hub name") is None
    assert shipped.fetching(tmp_path) == ""


def test_a_run_is_no_folder_of_the_hub(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"init": "smollm2"}}')
    assert not is_hub_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_hub_folder(tmp_path)


@pytest.mark.parametrize(
    "index",
    [(slice(None),) * 3, (slice(1, 2), slice(3, 9), slice(0, 5)), (slice(None), slice(0, 4), slice(7, 8))],
)
@pytest.mark.parametrize("path", ["attention/query", "attention/key", "attention/value", "mlp/gate"])
@pytest.mark.parametrize("name", ["internlm2", "phi3", "llama"])
def test_a_part_is_the_part_of_the_whole(name, path, index):
    leaf = opened(name).params["backbone"]["layers"]
    for key in (*path.split("/"), "kernel"):
        leaf = leaf[key]
    np.testing.assert_array_equal(leaf[index], on_host(leaf)[index])


def test_texts_longer_than_the_rotary_positions_are_made_for(tmp_path):
    form = Format("<|reward|>", READ, max_length=65)
    with pytest.raises(ValueError, match=r"max_length is 65, but this .* more than 64 tokens, .*; lower it to 64"):
        RewardModel.load(copied("polar", tmp_path / "polar"), form=form)
