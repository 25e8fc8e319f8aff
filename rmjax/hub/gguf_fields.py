"""What the metadata of a GGUF file says: a whitelist, so that no field that changes the model is ignored in silence.

The names are those of llama.cpp (`gguf.constants.Keys`), and so are the meanings of absent values and of 0.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from rmjax.data.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig

Fields = Mapping[str, Any]
ARCHITECTURES = ("llama", "gemma3")
PRE_TOKENIZERS = ("smollm",)  # llama.cpp's names of what `Tokenizer.from_bpe` does
_TOKEN_TYPES = {NORMAL: "normal", CONTROL: "control", UNUSED: "unused"}
_VOCABULARY = {"tokens": str, "token_type": int, "merges": str}  # arrays of the tokenizer → of what
_SHOWN = 5  # names in a message

# `*.` is the architecture's name. Fields that change nothing that is computed here: names, licenses, how to sample, how the file
# was made, what stop tokens are (formats name theirs), and what no byte-level BPE reads (scores).
_DESCRIPTIVE = re.compile(
    r"GGUF\.\w+|general\.(?!type$).+|quantize\..+|mradermacher\..+|split\.(no|tensors\.count)"
    r"|tokenizer\.chat_templates?(\..+)?|tokenizer\.huggingface\.json|tokenizer\.ggml\.\w+_token_ids?|tokenizer\.ggml\.scores"
    r"|\*\.rope\.scaling\.(finetuned|original_context_length)"
)
_READ = frozenset(
    {
        "*.block_count", "*.context_length", "*.embedding_length", "*.feed_forward_length",
        "*.attention.head_count", "*.attention.head_count_kv", "*.attention.key_length",
        "*.attention.layer_norm_rms_epsilon", "*.rope.freq_base", "*.rope.scaling.factor", "*.rope.scale_linear",
        "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
    }
)  # fmt: skip
# Field → the values at which it changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "split.count": (0, 1),
    "*.rope.scaling.type": ("none", "linear"),
    "*.rope.scaling.attn_factor": (0, 1),
    "*.attention.clamp_kqv": (0,),
    "*.attention.max_alibi_bias": (0,),
    "*.attention.causal": (True,),
    "*.attn_logit_softcapping": (0,),
    "*.final_logit_softcapping": (0,),
    "*.logit_scale": (0, 1),
    "*.residual_scale": (0, 1),
    "*.embedding_scale": (0, 1),
    "*.expert_count": (0,),
    "*.expert_used_count": (0,),
    "*.use_parallel_residual": (False,),
    "*.pooling_type": (0,),
    "*.tensor_data_layout": ("Meta AI original pth",),
    "tokenizer.ggml.model": ("gpt2",),
    "tokenizer.ggml.pre": PRE_TOKENIZERS,
    "tokenizer.ggml.add_bos_token": (False,),
    "tokenizer.ggml.add_eos_token": (False,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.add_space_prefix": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
}
# Of Gemma 3 alone: read, and neutral at other values than elsewhere.
_READ_GEMMA3 = frozenset(
    {
        "*.attention.sliding_window",
        "*.attention.sliding_window_pattern",
        "*.rope.freq_base_swa",
        "tokenizer.ggml.scores",
    }
)
_NEUTRAL_GEMMA3: dict[str, tuple[Any, ...]] = {
    "tokenizer.ggml.model": ("llama",),
    "tokenizer.ggml.pre": ("default", "gemma3"),
    "tokenizer.ggml.add_bos_token": (True, False),
    "tokenizer.ggml.add_space_prefix": (True, False),
}
GEMMA3_PERIOD = 6  # layers: five with a window, then one without (llama.cpp, where the file does not say)
GEMMA3_LOCAL_THETA = 10_000.0  # of layers with a window, likewise
GEMMA3_27B_DEPTH = 62  # layers: that model alone scales attention by its width a head (llama.cpp)
# Field → whether a value changes nothing beside this architecture, and what would be right, in words.
_FITTING: dict[str, tuple[Callable[[Any, TransformerConfig], bool], str]] = {
    "*.vocab_size": (lambda x, c: x == c.vocab_size, "the number of tokens"),
    "*.embedding_length_out": (lambda x, c: x in (0, c.width), "the width"),
    "tokenizer.ggml.bos_token_id": (lambda x, c: 0 <= x < c.vocab_size, "the id of a token"),
    "tokenizer.ggml.eos_token_id": (lambda x, c: 0 <= x < c.vocab_size, "the id of a token"),
    "*.rope.dimension_count": (lambda x, c: x == c.head_width, "the head width"),
    "*.attention.value_length": (lambda x, c: x == c.head_width, "the head width"),
    "*.attention.sliding_window": (lambda x, c: x == 0 or x >= c.max_positions, "0, or the context length or more"),
    "*.attention.scale": (
        lambda x, c: x == 0 or math.isclose(x, c.head_width**-0.5, rel_tol=1e-6),
        "0, or 1 / √(head width)",
    ),
}


class GGUFError(ValueError):
    """The file is not a GGUF file that this reader understands."""


def architecture(fields: Fields, tied_embeddings: bool) -> TransformerConfig:
    """The architecture that the fields describe.

    Args:
      fields: name → value, all fields of the file.
      tied_embeddings: the file has no output matrix.

    Raises:
      GGUFError: a field is missing, is no number of its kind, or would change the model in a way that is not supported; all
        of the last kind are named at once.
    """
    found = needed(fields, "general.architecture")
    if found not in ARCHITECTURES:
        raise GGUFError(f"GGUF architecture {found!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    width, heads = _size(fields, "*.embedding_length"), _size(fields, "*.attention.head_count")
    if _named(fields, "*.attention.key_length") not in fields and width % heads:
        raise GGUFError(
            f"GGUF field `{found}.attention.head_count` is {heads}, which does not divide `{found}.embedding_length`, {width}, "
            f"and there is no `{found}.attention.key_length`; convert the model again"
        )
    gemma = _gemma3(fields, width) if found == "gemma3" else {}
    config = TransformerConfig(
        vocab_size=len(_entries(fields, "tokenizer.ggml.tokens", str)),
        width=width,
        depth=_size(fields, "*.block_count"),
        heads=heads,
        kv_heads=_size(fields, "*.attention.head_count_kv"),
        head_width=_size(fields, "*.attention.key_length", width // heads),
        mlp_width=_size(fields, "*.feed_forward_length"),
        rope=_rope(fields),
        norm_epsilon=round(_positive(fields, "*.attention.layer_norm_rms_epsilon"), 12),
        tied_embeddings=tied_embeddings,
        max_positions=_size(fields, "*.context_length"),
        **gemma,
    )
    if config.head_width % 2:
        raise GGUFError(f"the head width is {config.head_width}, and rotary embeddings need an even one")
    _refuse_unsupported(fields, config)
    return config


def _gemma3(fields: Fields, width: int) -> dict[str, Any]:
    """What Gemma 3 has beside Llama's: norms with an offset, of queries and keys and behind each part too, windows."""
    depth, period = _size(fields, "*.block_count"), _size(fields, "*.attention.sliding_window_pattern", GEMMA3_PERIOD)
    by_width = width // _size(fields, "*.attention.head_count") if depth == GEMMA3_27B_DEPTH else 0
    local = _positive(fields, "*.rope.freq_base_swa") if _named(fields, "*.rope.freq_base_swa") in fields else 0.0
    return {
        "norm_offset": True, "post_norms": True, "qk_norm": True, "activation": "gelu_tanh", "embedding_scale": width**0.5,
        "window": _size(fields, "*.attention.sliding_window"), "local_rope": Rope(local or GEMMA3_LOCAL_THETA),
        "windowed": tuple((layer + 1) % period > 0 for layer in range(depth)),
        "attention_scale": by_width**-0.5 if by_width else 0.0,
    }  # fmt: skip


def _named(fields: Fields, name: str) -> str:
    """The field's full name."""
    return name.replace("*", str(fields.get("general.architecture")), 1) if name.startswith("*.") else name


def needed(fields: Fields, name: str) -> Any:
    """A field's value; GGUFError where it is missing."""
    name = _named(fields, name)
    if fields.get(name) is None:
        raise GGUFError(f"GGUF field `{name}` is missing")
    return fields[name]


def vocabulary(fields: Fields) -> tuple[list[str], list[str], list[str]]:
    """(tokens, merges, special tokens) of a byte-level BPE.

    Raises:
      GGUFError: one is missing, has entries of another kind, tokens occur twice, are of a type that changes how texts are
        read, or a merge is none.
    """
    for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        needed(fields, name)
    tokens, types, merges = (_entries(fields, f"tokenizer.ggml.{name}", kind) for name, kind in _VOCABULARY.items())
    if len(types) != len(tokens):
        raise GGUFError(f"GGUF field `tokenizer.ggml.token_type` has {len(types)} entries for {len(tokens)} tokens")
    known = set(tokens)
    if len(known) < len(tokens):
        raise GGUFError(f"GGUF field `tokenizer.ggml.tokens` has {len(tokens) - len(known)} tokens twice")
    if other := [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind not in _TOKEN_TYPES]:
        raise GGUFError(
            f"GGUF field `tokenizer.ggml.token_type` has {len(other)} tokens of other types than "
            f"{_listed(_TOKEN_TYPES.values())}, {other[0][0]!r} of type {other[0][1]} first: such tokens are found in texts "
            "before any merge, which is not supported; use a model without them"
        )
    for number, merge in enumerate(merges):
        parts = merge.split(" ")
        if len(parts) != 2 or not known.issuperset([*parts, "".join(parts)]):
            raise GGUFError(
                f"GGUF field `tokenizer.ggml.merges`: entry {number}, {merge!r}, is not two tokens that make a third; "
                "convert the model again"
            )
    return tokens, merges, [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A vocabulary of sentencepiece's kind: tokens by id with their scores, and which are what."""

    tokens: list[str]
    scores: list[float]
    types: list[int]  # as in `rmjax.data.pieces`
    blank: bool  # whether a blank is put before a text
    unknown: str  # the token of what has no piece


def pieces(fields: Fields) -> Pieces:
    """The vocabulary of a file whose `tokenizer.ggml.model` is "llama".

    Raises:
      GGUFError: a part is missing or has entries of another kind or number; tokens occur twice; there is not every byte; or
        user-defined tokens beside a blank before texts.
    """
    tokens, types = (_entries(fields, f"tokenizer.ggml.{name}", _VOCABULARY[name]) for name in ("tokens", "token_type"))
    scores = _entries(fields, "tokenizer.ggml.scores", float)
    for name, found in (("token_type", types), ("scores", scores)):
        if len(found) != len(tokens):
            raise GGUFError(f"GGUF field `tokenizer.ggml.{name}` has {len(found)} entries for {len(tokens)} tokens")
    if twice := len(tokens) - len(set(tokens)):
        raise GGUFError(f"GGUF field `tokenizer.ggml.tokens` has {twice} tokens twice")
    if types.count(BYTE) != 256:
        raise GGUFError(f"GGUF field `tokenizer.ggml.token_type` has {types.count(BYTE)} bytes; supported: 256")
    unknown = fields.get("tokenizer.ggml.unknown_token_id", types.index(UNKNOWN) if UNKNOWN in types else -1)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise GGUFError(f"GGUF field `tokenizer.ggml.unknown_token_id` is {unknown!r}; it has to be the id of a token")
    blank = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    if blank and (own := types.count(USER_DEFINED)):  # `tokenizers` would look for "▁" + the piece
        raise GGUFError(
            f"GGUF field `tokenizer.ggml.token_type` has {own} user-defined tokens, and a blank is put before texts "
            "(`tokenizer.ggml.add_space_prefix`), which together are not supported; convert a folder in Hugging Face's form"
        )
    return Pieces(tokens, scores, types, blank, tokens[unknown])


def conversation(fields: Fields) -> tuple[str, str, str]:
    """(chat template, BOS token, EOS token), "" for each that the file does not name."""
    tokens, template = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.chat_template", "")
    ids = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else "" for i in ids)
    return template if isinstance(template, str) else "", bos, eos


def _entries(fields: Fields, name: str, kind: type) -> list[Any]:
    found = needed(fields, name)
    if not isinstance(found, list):
        raise GGUFError(f"GGUF field `{name}` is {found!r}; it has to be an array")
    for number, entry in enumerate(found):
        if not isinstance(entry, kind):
            wanted = {str: "a string", int: "an integer"}.get(kind, "a number")
            raise GGUFError(
                f"GGUF field `{name}`: entry {number}, {_shortened(entry)}, is not {wanted}; convert the model again"
            )
    return found


def _size(fields: Fields, name: str, absent: int | None = None) -> int:
    name = _named(fields, name)
    found = absent if absent is not None and name not in fields else needed(fields, name)
    if isinstance(found, list):
        raise GGUFError(
            f"GGUF field `{name}` is an array, {found[:_SHOWN]} …; layers of different sizes are not supported"
        )
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise GGUFError(f"GGUF field `{name}` is {found!r}; it has to be 1 or more")
    return found


def _positive(fields: Fields, name: str) -> float:
    name = _named(fields, name)
    found = needed(fields, name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise GGUFError(f"GGUF field `{name}` is {found!r}; it has to be a number above 0")
    return float(found)


def _rope(fields: Fields) -> Rope:
    """Linear position interpolation; llama.cpp takes a factor without a type as linear, and 0 as none."""
    theta = _positive(fields, "*.rope.freq_base")
    name = next((n for n in ("*.rope.scaling.factor", "*.rope.scale_linear") if fields.get(_named(fields, n))), None)
    factor = _positive(fields, name) if name and fields.get(_named(fields, "*.rope.scaling.type")) != "none" else 1.0
    return Rope(theta, "none" if factor == 1 else "linear", factor)


def _refuse_unsupported(fields: Fields, config: TransformerConfig) -> None:
    faults = [fault for name, value in fields.items() if (fault := _fault(fields, name, value, config))]
    if faults:
        raise GGUFError(
            f"GGUF fields change the model or its tokens and are not supported: {'; '.join(faults)}; use a model without them"
        )


def _fault(fields: Fields, name: str, value: Any, config: TransformerConfig) -> str:
    """What is wrong with a field; empty where it is read, changes nothing, or only describes."""
    shown = f"`{name}` is {_shortened(value)}"
    found = str(fields["general.architecture"])
    general = "*" + name.removeprefix(found) if name.startswith(f"{found}.") else name
    read, neutral = _READ, _NEUTRAL
    if found == "gemma3":
        read, neutral = _READ | _READ_GEMMA3, _NEUTRAL | _NEUTRAL_GEMMA3
    if general in neutral:
        return "" if value in neutral[general] else f"{shown}, supported: {_listed(neutral[general])}"
    if general in _FITTING and general not in read:
        fits, right = _FITTING[general]
        number = isinstance(value, int | float)
        return "" if number and fits(value, config) else f"{shown}, supported: {right}"
    if general in read or _DESCRIPTIVE.fullmatch(general):
        return ""
    return f"{shown}, an unknown field"


def _shortened(value: Any) -> str:
    text = repr(value[:_SHOWN] if isinstance(value, list) else value)
    return text if len(text) <= 60 else text[:60] + "…"


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
