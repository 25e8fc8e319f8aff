"""The GGUF reader: a tiny file that we write ourselves, and the real SmolLM2 against golden values from torch."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.hub.gguf import GGUFError, load_gguf, smollm2_path
from rmjax.hub.gguf_fields import vocabulary
from rmjax.models.rope import Rope
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.policy.sampling import Decoding, generate, left_pad, rules

GOLDEN = json.loads((Path(__file__).parent / "smollm2_golden.json").read_text(encoding="utf-8"))
TOKENS = ["<|end|>", "a", "b", "ab"] + [f"t{i}" for i in range(93)]  # vocab_size of tiny_config


# --- a file of our own -----------------------------------------------------------------------------------------------


def _tensors(params: dict[str, Any], config) -> dict[str, np.ndarray]:
    """GGUF names and layouts ([out, in]; Q and K with llama.cpp's interleaved rotary pairs) of our parameters."""
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    tensors = {
        "token_embd.weight": params["embedding"]["embedding"],
        "output_norm.weight": params["final_norm"]["scale"],
    }
    if "output" in params:
        tensors["output.weight"] = params["output"]["kernel"].T
    for i in range(config.depth):
        layer = {
            "attn_q": _interleave(attention["query"]["kernel"][i].T, config.heads),
            "attn_k": _interleave(attention["key"]["kernel"][i].T, config.kv_heads),
            "attn_v": attention["value"]["kernel"][i].T,
            "attn_output": attention["output"]["kernel"][i].T,
            "attn_norm": params["layers"]["attention_norm"]["scale"][i],
            "ffn_norm": params["layers"]["mlp_norm"]["scale"][i],
        } | {f"ffn_{name}": mlp[name]["kernel"][i].T for name in ("gate", "up", "down")}
        tensors |= {f"blk.{i}.{name}.weight": value for name, value in layer.items()}
    return tensors


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(name, value)


def _write(
    path: Path,
    config,
    tensors: dict[str, np.ndarray],
    architecture: str = "llama",
    skip: str = "",
    whole: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """`whole` stands for all fields but that of the architecture."""
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": config.depth, "context_length": config.max_positions, "embedding_length": config.width,
        "feed_forward_length": config.mlp_width, "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
    }  # fmt: skip
    fields = {f"llama.{name}": size for name, size in sizes.items()} | {
        "llama.rope.freq_base": float(config.rope.theta),
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
        "tokenizer.ggml.merges": ["a b"],
    }
    for name, value in (whole or fields | more).items():
        if name.removeprefix("llama.") != skip:
            _add(writer, name, value)
    for name, value in tensors.items():
        if name != skip:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_reads_back_what_was_written(tiny_config, random_params, tmp_path, tied):
    config = dataclasses.replace(
        tiny_config, tied_embeddings=tied, rope=Rope(5000.0), norm_epsilon=1e-6, max_positions=77
    )
    params = random_params(config)
    got_config, got, tokenizer = load_gguf(_write(tmp_path / "tiny.gguf", config, _tensors(params, config)))
    assert got_config == config
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    assert tokenizer.special == ("<|end|>",)
    assert tokenizer.encode("abb") == [TOKENS.index("ab"), TOKENS.index("b")]


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "block_count"])
def test_names_what_is_missing(tiny_config, random_params, tmp_path, name):
    path = _write(tmp_path / "tiny.gguf", tiny_config, _tensors(random_params(tiny_config), tiny_config), skip=name)
    with pytest.raises(GGUFError, match=rf"{path}.*`(llama\.)?{name}` is missing"):
        load_gguf(path)


def test_names_a_tensor_that_it_would_have_to_ignore(tiny_config, random_params, tmp_path):
    tensors = _tensors(random_params(tiny_config), tiny_config) | {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(GGUFError, match="rope_freqs.weight"):
        load_gguf(_write(tmp_path / "tiny.gguf", tiny_config, tensors))


def test_names_an_unknown_architecture(tiny_config, random_params, tmp_path):
    tensors = _tensors(random_params(tiny_config), tiny_config)
    with pytest.raises(GGUFError, match="'mamba' is not supported; supported: llama, gemma3"):
        load_gguf(_write(tmp_path / "tiny.gguf", tiny_config, tensors, architecture="mamba"))


@pytest.fixture(scope="module")
def tiny_tensors(tiny_config, random_params) -> dict[str, np.ndarray]:
    return _tensors(random_params(tiny_config), tiny_config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokenizer.ggml.pre", "llama-bpe", "is 'llama-bpe', supported: smollm"),
        ("tokenizer.ggml.model", "llama", "is 'llama', supported: gpt2"),
        ("tokenizer.ggml.add_bos_token", True, "is True, supported: False"),
        ("tokenizer.ggml.add_eos_token", True, "is True, supported: False"),
        ("tokenizer.ggml.add_space_prefix", True, "is True, supported: False"),
        ("tokenizer.ggml.token_type", [3, 4] + [1] * 95, "1 tokens of other types than .*, 'a' of type 4 first"),
        ("tokenizer.ggml.token_type", [3], "1 entries for 97 tokens"),
        ("tokenizer.ggml.tokens", ["a"] * 97, "96 tokens twice"),
        ("tokenizer.ggml.tokens", "a", "it has to be an array"),
        ("tokenizer.ggml.merges", ["a b", "ab"], "entry 1, 'ab', is not two tokens that make a third"),
        ("tokenizer.ggml.merges", ["b a"], "entry 0, 'b a', is not two tokens"),
        ("tokenizer.ggml.merges", [1, 2], "entry 0, 1, is not a string; convert the model again"),
        ("tokenizer.ggml.tokens", list(range(97)), "entry 0, 0, is not a string; convert the model again"),
        ("tokenizer.ggml.token_type", ["a"] * 97, "entry 0, 'a', is not an integer; convert the model again"),
        ("llama.rope.scaling.type", "yarn", "is 'yarn', supported: none, linear"),
        ("llama.rope.scaling.attn_factor", 2.0, "is 2.0, supported: 0, 1"),
        ("llama.rope.dimension_count", 2, "is 2, supported: the head width"),
        ("llama.rope.freq_base", -1.0, "a number above 0"),
        ("llama.attention.value_length", 2, "is 2, supported: the head width"),
        ("llama.attention.scale", 0.25, "is 0.25, supported: 0, or"),
        ("llama.attention.sliding_window", 16, "is 16, supported: 0, or the context length"),
        ("llama.attention.clamp_kqv", 8.0, "is 8.0, supported: 0"),
        ("llama.attention.causal", False, "is False, supported: True"),
        ("llama.attention.head_count", [4, 4], "is an array, .*; layers of different sizes are not supported"),
        ("llama.attention.head_count_kv", [2, 2], "is an array, .*; layers of different sizes are not supported"),
        ("llama.attention.head_count", 0, "it has to be 1 or more"),
        ("llama.attention.head_count", 5, "does not divide"),
        ("llama.attention.key_length", 4, "tensor `blk.0.attn_.*` has shape .*, and by the fields it has"),
        ("llama.feed_forward_length", 12, "tensor `blk.0.ffn_.*` has shape .*, and by the fields it has"),
        ("llama.logit_scale", 0.5, "is 0.5, supported: 0, 1"),
        ("llama.residual_scale", 0.5, "is 0.5, supported: 0, 1"),
        ("llama.embedding_scale", 12.0, "is 12.0, supported: 0, 1"),
        ("llama.final_logit_softcapping", 30.0, "is 30.0, supported: 0"),
        ("llama.expert_count", 8, "is 8, supported: 0"),
        ("llama.vocab_size", 96, "is 96, supported: the number of tokens"),
        ("tokenizer.ggml.eos_token_id", 97, "is 97, supported: the id of a token"),
        ("llama.new_idea", 1, "is 1, an unknown field"),
        ("general.type", "adapter", "is 'adapter', supported: model"),
        ("split.count", 2, "is 2, supported: 0, 1"),
    ],
)
def test_refuses_what_would_silently_be_computed_otherwise(tiny_config, tiny_tensors, tmp_path, field, value, message):
    path = _write(tmp_path / "tiny.gguf", tiny_config, tiny_tensors, **{field: value})
    with pytest.raises(GGUFError, match=message) as caught:
        load_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert field in str(caught.value) or "tensor" in str(caught.value)


def test_an_array_in_place_of_a_token_is_named():
    """gguf's reader flattens arrays of arrays today; what it gives is checked all the same."""
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": [["a"], ["b"]]}
    with pytest.raises(GGUFError, match=r"`tokenizer.ggml.tokens`: entry 0, \['a'\], is not a string"):
        vocabulary(fields)


def test_lists_all_fields_that_it_refuses(tiny_config, tiny_tensors, tmp_path):
    more = {"llama.attention.clamp_kqv": 8.0, "llama.one": 1, "tokenizer.ggml.two": "x"}
    with pytest.raises(GGUFError, match="clamp_kqv.*llama.one.*tokenizer.ggml.two"):
        load_gguf(_write(tmp_path / "tiny.gguf", tiny_config, tiny_tensors, **more))


def test_neutral_values_and_descriptions_change_nothing(tiny_config, tiny_tensors, tmp_path):
    width = tiny_config.head_width
    more = {
        "llama.rope.dimension_count": width, "llama.attention.key_length": width, "llama.attention.value_length": width,
        "llama.attention.scale": width**-0.5, "llama.attention.sliding_window": 0, "llama.attention.clamp_kqv": 0.0,
        "llama.attention.causal": True, "llama.logit_scale": 1.0, "llama.expert_count": 0, "llama.vocab_size": len(TOKENS),
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0, "llama.rope.scaling.finetuned": False,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.scores": [0.0] * len(TOKENS),
        "tokenizer.chat_template": "{{ x }}", "general.quantization_version": 2, "general.base_model.0.name": "base",
        "general.type": "model", "quantize.imatrix.file": "x", "mradermacher.quantize_version": "2",
    }  # fmt: skip
    plain = load_gguf(_write(tmp_path / "plain.gguf", tiny_config, tiny_tensors))
    found = load_gguf(_write(tmp_path / "more.gguf", tiny_config, tiny_tensors, **more))
    assert found[0] == plain[0]
    assert found[2].to_json() == plain[2].to_json()
    jax.tree.map(np.testing.assert_array_equal, found[1], plain[1])


@pytest.mark.parametrize("field", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_reads_linear_position_interpolation(tiny_config, tiny_tensors, tmp_path, field):
    found = load_gguf(_write(tmp_path / "f.gguf", tiny_config, tiny_tensors, **{field: 4.0}))[0]
    assert found.rope == Rope(10_000.0, "linear", 4.0)


def test_a_key_length_of_its_own_is_the_head_width(tiny_config, random_params, tmp_path):
    config = dataclasses.replace(tiny_config, head_width=2 * tiny_config.head_width)
    path = tmp_path / "wide.gguf"
    _write(path, config, _tensors(random_params(config), config), **{"llama.attention.key_length": config.head_width})
    assert load_gguf(path)[0].head_width == config.head_width


def test_names_an_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf: no such GGUF file"):
        load_gguf(tmp_path / "absent.gguf")


def test_names_a_git_lfs_pointer(tmp_path):
    (tmp_path / "f.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(
        GGUFError, match=r"f\.gguf: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    ):
        load_gguf(tmp_path / "f.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model at all, but long enough to have a header"])
def test_names_a_file_that_is_not_gguf(tmp_path, content):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=r"other\.gguf: not a readable GGUF file"):
        load_gguf(path)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_names_a_file_that_was_cut_off(tiny_config, random_params, tmp_path, kept):
    path = _write(tmp_path / "cut.gguf", tiny_config, _tensors(random_params(tiny_config), tiny_config))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(GGUFError, match=r"cut\.gguf: not a readable GGUF file"):
        load_gguf(path)


# --- SmolLM2-135M-Instruct -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(smollm2):
    """(hidden_RTD, embedding_RTD, logits_RTV) of the golden texts, right-padded into one batch."""
    config, params, _ = smollm2
    T = max(len(row["ids"]) for row in GOLDEN["texts"])
    ids_RT = np.array([row["ids"] + [0] * (T - len(row["ids"])) for row in GOLDEN["texts"]], np.int32)
    valid_RT = np.array([[t < len(row["ids"]) for t in range(T)] for row in GOLDEN["texts"]])
    positions_RT = np.broadcast_to(np.arange(T), ids_RT.shape)

    @jax.jit
    def forward(params, ids_RT, positions_RT, valid_RT):
        model = Transformer(config).bind({"params": params})
        hidden_RTD = model(ids_RT, positions_RT, causal_mask(valid_RT))
        return hidden_RTD, model.embedding(ids_RT), model.logits(hidden_RTD)

    return [np.asarray(x) for x in forward(params, ids_RT, positions_RT, valid_RT)]


def test_the_file_is_the_one_that_was_measured(smollm2):
    assert hashlib.sha256(smollm2_path().read_bytes()).hexdigest() == GOLDEN["gguf_sha256"]


@pytest.mark.parametrize(
    "row", GOLDEN["texts"] + [dict(g, text=g["prompt"], ids=g["prompt_ids"]) for g in GOLDEN["greedy"]]
)
def test_token_ids(smollm2, row):
    assert smollm2[2].encode_marked(row["text"]) == row["ids"]


@pytest.mark.parametrize("r", range(len(GOLDEN["texts"])))
def test_log_probabilities(measured, r):
    ids = np.array(GOLDEN["texts"][r]["ids"])
    logprobs_TV = np.asarray(jax.nn.log_softmax(jnp.asarray(measured[2][r, : len(ids) - 1])))
    got_T = logprobs_TV[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(got_T, GOLDEN["texts"][r]["logprobs"], atol=1e-3)


@pytest.mark.parametrize("r", range(len(GOLDEN["texts"])))
def test_hidden_states_and_best_logits(measured, r):
    row = GOLDEN["texts"][r]
    last = len(row["ids"]) - 1
    hidden_D, embedding_D, logits_V = (x[r, last] for x in measured)
    np.testing.assert_allclose(embedding_D[:8], row["embedding"], atol=1e-5)
    np.testing.assert_allclose(hidden_D[:8], row["hidden"], atol=1e-3)
    assert np.argsort(-logits_V)[:5].tolist() == row["top5_ids"]
    np.testing.assert_allclose(logits_V[row["top5_ids"]], row["top5_logits"], atol=1e-3)


@pytest.mark.slow
def test_greedy_continuations(smollm2):
    """All three prompts in one batch, after their shared system prompt as the prefix."""
    config, params, tokenizer = smollm2
    rows = GOLDEN["greedy"]
    system = tokenizer.encode_marked(rows[0]["prompt"][: rows[0]["prompt"].index("<|im_start|>user")])
    assert all(row["prompt_ids"][: len(system)] == system for row in rows)
    rule, candidates = rules([Decoding(temperature=0.0)] * len(rows), config.vocab_size)
    ids_RM = generate(
        params, left_pad([system]), left_pad([row["prompt_ids"][len(system) :] for row in rows]),
        jax.random.split(jax.random.key(0), len(rows)), rule, config=config, candidates=candidates, samples=1,
        max_new_tokens=max(len(row["new_ids"]) for row in rows), stop=(tokenizer.id("<|im_end|>"),),
    )  # fmt: skip
    end = tokenizer.id("<|im_end|>")
    for got, row in zip(np.asarray(ids_RM).tolist(), rows, strict=True):
        want = [token for token in row["new_ids"] if token != end]
        assert got == want + [-1] * (len(got) - len(want))
        assert tokenizer.decode(want) == row["text"].removesuffix("<|im_end|>")
