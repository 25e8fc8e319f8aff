"""The one table of weight names per model family: what import, export and adapters are written from.

Matrices are transposed in Hugging Face's and GGUF's files ([out, in]); layers are stacked in our tree and numbered in theirs.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Name:
    """What one tensor is called elsewhere, without the ending `.weight`; empty where there is no such tensor."""

    hugging_face: str
    gguf: str = ""


@dataclasses.dataclass(frozen=True)
class Fused:
    """A tensor of Hugging Face's that holds the outputs of several Dense modules of ours, one below the other.

    Attributes:
      name: below `model.layers.<i>.`, without `.weight`.
      parts: our modules below `backbone/layers`, in the tensor's order.
      grouped: the order is that for each key-value head: its queries, its key, its value.
    """

    name: str
    parts: tuple[str, ...]
    grouped: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """The tensors of a model family by our paths.

    Attributes:
      whole: path from the root → name.
      layers: path below `backbone/layers` → name below `model.layers.<i>.` (Hugging Face) and `blk.<i>.` (GGUF).
      fused: tensors that hold several of ours; their parts need no name of their own.
    """

    whole: Mapping[str, Name]
    layers: Mapping[str, Name]
    fused: tuple[Fused, ...] = ()

    def dense(self) -> dict[str, str]:
        """Path of each Dense below `backbone/layers` → Hugging Face's name: what an adapter may be put on."""
        return {
            path.removesuffix("/kernel"): name.hugging_face
            for path, name in self.layers.items()
            if path.endswith("/kernel")
        }


LLAMA = Family(
    whole=MappingProxyType(
        {
            "backbone/embedding/embedding": Name("model.embed_tokens", "token_embd"),
            "backbone/final_norm/scale": Name("model.norm", "output_norm"),
            "backbone/output/kernel": Name("lm_head", "output"),
            "head/kernel": Name("score"),
        }
    ),
    layers=MappingProxyType(
        {
            "attention_norm/scale": Name("input_layernorm", "attn_norm"),
            "attention/query/kernel": Name("self_attn.q_proj", "attn_q"),
            "attention/key/kernel": Name("self_attn.k_proj", "attn_k"),
            "attention/value/kernel": Name("self_attn.v_proj", "attn_v"),
            "attention/output/kernel": Name("self_attn.o_proj", "attn_output"),
            "mlp_norm/scale": Name("post_attention_layernorm", "ffn_norm"),
            "mlp/gate/kernel": Name("mlp.gate_proj", "ffn_gate"),
            "mlp/up/kernel": Name("mlp.up_proj", "ffn_up"),
            "mlp/down/kernel": Name("mlp.down_proj", "ffn_down"),
        }
    ),
)

_QK_NORMS = {
    "attention/query_norm/scale": Name("self_attn.q_norm", "attn_q_norm"),
    "attention/key_norm/scale": Name("self_attn.k_norm", "attn_k_norm"),
}
_ATTENTION = ("attention/query", "attention/key", "attention/value")


def _with(layers: Mapping[str, Name], fused: tuple[Fused, ...] = (), whole: Mapping[str, Name] = LLAMA.whole) -> Family:
    held = {f"{part}/kernel" for tensor in fused for part in tensor.parts}
    kept = {path: name for path, name in {**LLAMA.layers, **layers}.items() if path not in held}
    return Family(MappingProxyType(dict(whole)), MappingProxyType(kept), fused)


QWEN = _with(_QK_NORMS)
"""Qwen 2 (which has no such norms) and 3, and all that have Llama's names otherwise."""
GEMMA = _with(
    _QK_NORMS
    | {
        "attention_post_norm/scale": Name(
            "post_attention_layernorm", "post_attention_norm"
        ),  # Llama's name, at another place
        "mlp_norm/scale": Name("pre_feedforward_layernorm", "ffn_norm"),
        "mlp_post_norm/scale": Name("post_feedforward_layernorm", "post_ffw_norm"),
    }
)
PHI3 = _with({}, (Fused("self_attn.qkv_proj", _ATTENTION), Fused("mlp.gate_up_proj", ("mlp/gate", "mlp/up"))))
INTERNLM2 = _with(
    {
        "attention_norm/scale": Name("attention_norm"),
        "attention/output/kernel": Name("attention.wo"),
        "mlp_norm/scale": Name("ffn_norm"),
        "mlp/gate/kernel": Name("feed_forward.w1"),
        "mlp/up/kernel": Name("feed_forward.w3"),
        "mlp/down/kernel": Name("feed_forward.w2"),
    },
    (Fused("attention.wqkv", _ATTENTION, grouped=True),),
    {
        "backbone/embedding/embedding": Name("model.tok_embeddings"),
        "backbone/final_norm/scale": Name("model.norm"),
        "backbone/output/kernel": Name("output"),
    },
)

HEADS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "score": {"head/kernel": "score.weight"},
        "v_head": {"head/kernel": "v_head.weight"},
        "score_mlp": {
            f"head/{part}/{leaf}": f"score.{i}.{kind}"
            for i, part in ((0, "hidden"), (2, "output"))
            for leaf, kind in (("kernel", "weight"), ("bias", "bias"))
        },
        "summary": {"head/kernel": "v_head.summary.weight", "head/bias": "v_head.summary.bias"},
        "summary_mlp": {
            f"head/{part}/{leaf}": f"v_head.summary.{i}.{kind}"
            for i, part in ((0, "hidden"), (2, "output"))
            for leaf, kind in (("kernel", "weight"), ("bias", "bias"))
        },
    }
)
"""A reward head's kind → our path → the tensor: `…ForSequenceClassification`; InternLM2's and POLAR's; Qwen2ForRewardModel's;
GRM's, of one layer and of two."""
