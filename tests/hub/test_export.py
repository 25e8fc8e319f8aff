"""Out to Hugging Face's form and in again: every tensor bit for bit, the same architecture, the same scores."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Plain

from experiments import export as command
from rmjax.data.formats import Encoder, Format
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.export import Written, export_hugging_face, template_of
from rmjax.hub.hugging_face import open_folder, read_tokenizer
from rmjax.hub.tensors import HubError, Tensors
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import flat
from rmjax.models.stored import on_host
from rmjax.reward_model import RewardModel
from tests.experiments.starting import save_adapted, save_start
from tests.hub.goldens import CHATML, NAMES, READ, copied

CHAT = Format(kind="chat", template=CHATML, max_length=64, max_response_length=32)
POLAR = Format("<|reward|>", READ, max_length=64, max_response_length=32, bos_token="<s>")
PLAIN = Format(READ, READ, kind="plain", max_length=64, max_response_length=32)
ONE_WAY = {"grm_linear", "grm_mlp"}  # whose heads no class of transformers has
ROWS = [{"prompt": "say it", "reference": "it is", "output": text} for text in ("it is", "no", "it was")]


def written(name, folder, **more) -> tuple[Written, Tensors, Tensors]:
    source = copied(name, folder / "in")
    model = open_folder(source)
    tokenizer = read_tokenizer(source, model.described)
    form = POLAR if name == "polar" else CHAT
    config, family = model.config, model.described.model_type
    found = export_hugging_face(folder / "out", config, model.params, tokenizer, form, model_type=family, **more)
    return found, Tensors(source, vision=True), Tensors(folder / "out")


def same_bits(a: Tensors, b: Tensors, name: str) -> bool:
    index = (slice(None),) * len(a.shapes[name])
    x, y = a.part(name, index), b.part(name, index)
    if name.startswith(("score", "v_head")):  # fp32 by the recipe
        return np.array_equal(x.astype(np.float32), y) and y.dtype == np.float32
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_WAY])
def test_every_tensor_comes_back_bit_for_bit(name, tmp_path):
    found, before, after = written(name, tmp_path)
    assert set(after.shapes) == set(before.shapes)
    assert [key for key in before.shapes if not same_bits(before, after, key)] == []
    assert found.tensors == len(after.shapes)
    ours, theirs = open_folder(tmp_path / "in").config, open_folder(tmp_path / "out").config
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(ONE_WAY))
def test_a_head_without_class_is_refused(name, tmp_path):
    with pytest.raises(HubError, match="head has a bias" if name == "grm_linear" else "Qwen2ForRewardModel's alone"):
        written(name, tmp_path)
    assert not (tmp_path / "out").exists()


def test_shards_and_their_index(tmp_path):
    found, before, after = written("llama", tmp_path, shard=12_000)
    assert found.files > 2
    assert all(same_bits(before, after, key) for key in before.shapes)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * int(np.prod(shape)) for shape in after.shapes.values())


def test_what_others_need_is_said(tmp_path):
    found, _, _ = written("llama_reward_yarn", tmp_path, dtype="float16")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert (said["architectures"], said["problem_type"]) == (["LlamaForSequenceClassification"], "regression")
    assert (said["id2label"], said["torch_dtype"], said["dtype"]) == ({"0": "LABEL_0"}, "float16", "float16")
    assert said["pad_token_id"] == 0 != said["eos_token_id"] == 11  # what the template ends with
    assert said["rope_theta"] == said["rope_parameters"]["rope_theta"]
    assert said["rope_scaling"] == {k: v for k, v in said["rope_parameters"].items() if k != "rope_theta"}
    tokens = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert tokens["chat_template"] == (tmp_path / "out/chat_template.jinja").read_text()
    assert (tokens["pad_token"], tokens["eos_token"], found.pad_token) == ("<pad>", "<|im_end|>", "<pad>")


@pytest.mark.parametrize(
    ("name", "kind", "architecture"),
    [
        ("llama_reward_biases", "chat", "LlamaForSequenceClassification"),
        ("gemma3_reward", "chat", "Gemma3TextForSequenceClassification"),
        ("qwen2_reward_mlp", "chat", "Qwen2ForRewardModel"),
        ("polar", "polar", "InternLM2ForRewardModel"),
    ],
)
def test_the_command_and_the_same_scores(name, kind, architecture, tmp_path, capsys):
    source = copied(name, tmp_path / "in")
    model = RewardModel.load(source, dtype="float32")
    assert model.format.kind == kind
    command.export(source, "hugging_face", tmp_path / "out")
    assert architecture in capsys.readouterr().out
    again = RewardModel.load(tmp_path / "out", dtype="float32")
    assert again.format == dataclasses.replace(model.format, template=again.format.template)
    scores = model.score(ROWS)
    np.testing.assert_array_equal(again.score(ROWS), scores)
    assert np.ptp(scores) > 1e-3


INSIDE = CHATML.replace("<|im_end|>", "<|im_end|>{{ eos_token }}")
BEHIND = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


@pytest.mark.parametrize("read_out", ["end", "last"])
@pytest.mark.parametrize("template", [CHATML, INSIDE, BEHIND], ids=["chatml", "inside", "behind"])
def test_the_template_writes_what_is_read(template, read_out, tmp_path):
    """An eos that is not the end token, within and behind turns: as written out, as read here, and as served whole."""
    assert "<|im_end|>" in template
    source = copied("llama", tmp_path / "in", template)
    model = open_folder(source)
    tokenizer = read_tokenizer(source, model.described)
    form = Format(kind="chat", template=template, read_out=read_out, max_length=60, max_response_length=30)
    export_hugging_face(tmp_path / "out", model.config, model.params, tokenizer, form)
    encoder, messages = Encoder(tokenizer, form, 60), [("user", "ab c"), ("assistant", "de f")]
    ids = encoder.scored(Comparison("ab c", ("de f",)))[0][0].ids

    def rendered(text, **tokens):
        turns = [{"role": role, "content": said} for role, said in messages]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(text).render(messages=turns, add_generation_prompt=False, **tokens)

    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    out = rendered(written["chat_template"], bos_token=written.get("bos_token"), eos_token=written["eos_token"])
    assert Plain.from_file(str(tmp_path / "out/tokenizer.json")).encode(out, add_special_tokens=False).ids == ids
    assert encoder.whole(rendered(template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)) == ids


@pytest.mark.parametrize(
    ("name", "form", "adds", "begins"),
    [("polar", POLAR, False, 1), ("llama", CHAT, True, 1), ("llama", CHAT, False, 0), ("llama", PLAIN, False, 0)],
)
def test_whether_the_tokenizer_begins_texts(name, form, adds, begins, tmp_path):
    """Where it is so, programs that are sent texts without a BOS put it there: POLAR's client relies on that."""
    source = copied(name, tmp_path / "in")
    model = open_folder(source)
    tokenizer = read_tokenizer(source, model.described)
    tokenizer.adds_bos = adds
    assert tokenizer.bos_token == "<s>"
    export_hugging_face(tmp_path / "out", model.config, model.params, tokenizer, form)
    made = Plain.from_file(str(tmp_path / "out/tokenizer.json"))
    bos = made.token_to_id("<s>")
    assert [made.encode(text).ids.count(bos) for text in ("it is", "no")] == [begins] * 2
    assert made.encode("it is").ids[begins:] == tokenizer.encode("it is")
    assert Tokenizer.from_folder(tmp_path / "out").adds_bos == bool(begins)


def test_a_run_is_written_with_its_format(tmp_path):
    run = save_start(tmp_path / "run", head=1.0)
    command.export(run, "hugging_face", tmp_path / "out")
    rows = [{"prompt": "Say 3.", "output": text} for text in ("It is 3.", "No.")]
    ours, theirs = RewardModel.load(run), RewardModel.load(tmp_path / "out")
    assert theirs.format == ours.format
    # The same numbers; a folder of the hub's form has its attention in tiles.
    np.testing.assert_allclose(theirs.score(rows), ours.score(rows), atol=1e-5)
    with pytest.raises(FileExistsError, match="has a config.json already"):
        command.export(run, "hugging_face", tmp_path / "out")


def test_an_adapter_is_merged_and_a_mixture_refused(tmp_path):
    start = save_start(tmp_path / "start", head=1.0)
    run = save_adapted(tmp_path / "run", start)
    command.export(run, "hugging_face", tmp_path / "out")
    rows = [{"prompt": "Say 3.", "output": text} for text in ("It is 3.", "No.")]
    merged = RewardModel.load(tmp_path / "out").score(rows)
    np.testing.assert_allclose(merged, RewardModel.load(run).score(rows), atol=1e-5)
    model = RewardModel.load(start)
    config = dataclasses.replace(model.config, adapter=AdapterConfig("loramoe", experts=2))
    with pytest.raises(ValueError, match="merge it first"):
        export_hugging_face(tmp_path / "x", config, model.params, model.tokenizer, model.format)


def test_numbers_too_large_for_the_dtype(tmp_path):
    source = copied("llama", tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1e6
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    model = open_folder(source)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has numbers that are too large for float16"):
        export_hugging_face(
            tmp_path / "out", model.config, model.params, read_tokenizer(source, model.described), CHAT, dtype="float16"
        )
    assert not (tmp_path / "out/config.json").exists()


def test_no_token_to_pad_with(tmp_path):
    model = RewardModel.load(save_start(tmp_path / "run"))
    marks = {token: model.tokenizer.mark(token) for token in ("<file_sep>", "<empty_output>")}
    bare = Tokenizer(model.tokenizer._plain, marks)
    with pytest.raises(ValueError, match="name one with --pad"):
        export_hugging_face(tmp_path / "out", model.config, model.params, bare, model.format)


def render(form: Format, **names) -> str:
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701  # no HTML
    return environment.from_string(template_of(form)).render(**names)


def test_templates_end_with_what_is_read():
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    chat = Format(kind="chat", template=CHATML, end_token="<|im_end|>")
    assert render(chat, messages=turns).endswith("A<|im_end|>")
    assert render(chat, messages=turns[:1], add_generation_prompt=True).endswith("<|im_start|>assistant\n")
    assert render(dataclasses.replace(chat, read_out="last"), messages=turns).endswith("A<|im_end|>\n")
    assert render(POLAR, messages=turns) == f"<s>Q\nA{READ}"
    assert render(POLAR, messages=turns, reference="R") == f"<s>Q\nR<|reward|>Q\nA{READ}"


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )'])
def test_templates_tell_the_formats_day(call):
    source = (
        "{% if strftime_now is defined %}{% set day = " + call + " %}{% else %}{% set day = '?' %}{% endif %}{{ day }}"
    )
    form = Format(kind="chat", template=source, end_token="<|im_end|>", read_out="last", date="2024-07-26")
    assert render(form, messages=[], strftime_now=lambda pattern: "today") == "26 Jul 2024"
    with pytest.raises(ValueError, match="strftime_now with something else than a text"):
        template_of(dataclasses.replace(form, template="{{ strftime_now(pattern) }}"))


def test_on_devices_and_on_the_host_alike(tmp_path):
    _, _, files = written("gemma2", tmp_path)
    model = open_folder(tmp_path / "in")
    tokenizer = read_tokenizer(tmp_path / "in", model.described)
    params = jax.device_put(on_host(model.params))
    export_hugging_face(tmp_path / "again", model.config, params, tokenizer, CHAT, model_type="gemma2")
    again = Tensors(tmp_path / "again")
    assert all(same_bits(files, again, name) for name in files.shapes)
    assert flat(model.params).keys() == flat(params).keys()
