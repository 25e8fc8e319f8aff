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
class Family:
    """The tensors of a model family by our paths.

    Attributes:
      whole: path from the root → name.
      layers: path below `backbone/layers` → name below `model.layers.<i>.` (Hugging Face) and `blk.<i>.` (GGUF).
    """

    whole: Mapping[str, Name]
    layers: Mapping[str, Name]

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
