"""What config.json says, family by family: a whitelist of keys, so that none that changes the model is ignored in silence.

A family is its `model_type`. Facts are those of `transformers` 5 and of InternLM2's own code: what a file means where it lacks a
key, which keys are read, and at which values the others change nothing.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rmjax.hub.names import GEMMA, INTERNLM2, PHI3, QWEN, Family

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads", "head_dim": "head_width", "intermediate_size": "mlp_width",
        "rms_norm_eps": "norm_epsilon", "tie_word_embeddings": "tied_embeddings", "max_position_embeddings": "max_positions",
    }
)  # fmt: skip
"""Key → field of `TransformerConfig` that it is, whatever the family."""

ROPE_KEYS = frozenset({"rope_parameters", "rope_theta", "rope_scaling"})
"""Keys of the rotary positions that every family reads; some read more (`Kind.rope_keys`)."""

DESCRIPTIVE = re.compile(
    # What the file is, and for whom; how it was made; what a framework does with memory.
    r"_name_or_path|architectures|model_type|auto_map|transformers_version|transformers\.js_config|_commit_hash|torch_dtype|dtype"
    r"|use_cache|cache_implementation|_?attn_implementation(_\w+)?|torchscript|use_bfloat16|tf_legacy_loss|initializer_range"
    r"|return_dict|output_\w+|unsloth_\w+|pretraining_tp|tokenizer_class|finetuning_task|task_specific_params|prefix"
    r"|_sliding_window_pattern|rope_theta_comment|use_return_dict|use_remove_padding|is_llama_config|neftune_noise_alpha"
    r"|gradient_checkpointing|use_reentrant_checkpointing|use_flash_attention_2|_flash_attn_2_enabled|ignore_index"
    # Dropout, off when a model is read, and labels, whose number the head's shape says.
    r"|(attention|attn|embd|resid|hidden|classifier|summary)_?(dropout|pdrop)(_prob)?|classifier_bias|num_labels|id2label|label2id"
    r"|problem_type|vhead_\w+|value_head_prefix|normalize_reward|mean|std|chunk_size_feed_forward"
    # How to sample, and which tokens are what: formats name theirs.
    r"|(bos|eos|pad|sep|decoder_start|reward|unk)_token_id|(forced_)?(bos|eos)_token(_id)?|max_length|min_length|do_sample"
    r"|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_k|top_p|typical_p|repetition_penalty"
    r"|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences|remove_invalid_values"
    r"|exponential_decay_length_penalty|(begin_)?suppress_tokens"
)
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,), "mlp_bias": (False,), "qkv_bias": (False,), "bias": (False,),
        "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
        "tie_encoder_decoder": (False,), "pruned_heads": ({},), "use_mrope": (False,), "use_sliding_window": (False,),
        "use_qk_norm": (False,), "qk_layernorm": (False,), "clip_qkv": (None,), "logit_scale": (1.0,),
        "embedding_multiplier": (1.0,), "residual_multiplier": (1.0,), "logits_scaling": (1.0,), "num_experts": (0,),
        "partial_rotary_factor": (1.0,), "head_dim_v": (), "scale_attn_by_inverse_layer_idx": (False,),
        "rope_interleaved": (False,), "lm_head_bias": (False,),
    }
)  # fmt: skip
"""Key → values at which it changes nothing in a family that does not read it; null and what is empty never do."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family as config.json has it.

    Attributes:
      names: of its tensors.
      defaults: key → what its absence means; sizes that every file has are not among them.
      fixed: fields of `TransformerConfig` that are the same in all of it.
      switches: key → the fields of biases that it turns on.
      windows: which layers have a sliding window: none | all | upper (of Qwen) | pattern (every n-th has none) | in_turn (every
        second has none) | rotary_free (of SmolLM3).
      gemma: scales, softcaps and activation are by Gemma's keys.
      neutral: more of `NEUTRAL`.
      rope_keys: more keys of the rotary positions.
      decoder, reward: the classes that are written.
    """

    names: Family = QWEN
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    switches: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    windows: str = "none"
    gemma: bool = False
    neutral: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    rope_keys: frozenset[str] = frozenset()
    decoder: str = ""
    reward: str = ""

    def read(self) -> frozenset[str]:
        """All keys that are read."""
        return frozenset({*FIELDS, *ROPE_KEYS, *self.rope_keys, *self.switches, *_OF_WINDOWS[self.windows]}) | (
            _OF_GEMMA if self.gemma else frozenset()
        )


_OF_WINDOWS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "all": frozenset({"sliding_window"}),
    "upper": frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}),
    "pattern": frozenset({"sliding_window", "sliding_window_pattern", "layer_types"}),
    "in_turn": frozenset({"sliding_window", "layer_types"}),
    "rotary_free": frozenset(
        {"sliding_window", "use_sliding_window", "layer_types", "no_rope_layers", "no_rope_layer_interval"}
        | {"max_window_layers"}  # which stands in its files, and its code does not read
    ),
}
_OF_GEMMA = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})
_ALL_BIASES = {"attention_bias": ("qkv_bias", "output_bias")}
_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10_000.0}
_QWEN = _COMMON | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = _COMMON | {
    "tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
}  # fmt: skip
_GEMMA_FIXED = {"norm_offset": True, "post_norms": True, "activation": "gelu_tanh"}
_GEMMA_NEUTRAL = {
    "hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (False,),
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # which their code does not read
}  # fmt: skip

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "llama": Kind(
            defaults=_COMMON | {"max_position_embeddings": 2048}, switches=_ALL_BIASES | {"mlp_bias": ("mlp_bias",)},
            decoder="LlamaForCausalLM", reward="LlamaForSequenceClassification",
        ),
        "mistral": Kind(
            defaults=_COMMON | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
            windows="all", decoder="MistralForCausalLM", reward="MistralForSequenceClassification",
        ),
        "qwen2": Kind(
            defaults=_QWEN | {"max_position_embeddings": 32_768}, fixed={"qkv_bias": True}, windows="upper",
            decoder="Qwen2ForCausalLM", reward="Qwen2ForSequenceClassification",
        ),
        "qwen3": Kind(
            defaults=_QWEN | {"head_dim": 128, "max_position_embeddings": 32_768}, fixed={"qk_norm": True},
            switches=_ALL_BIASES, windows="upper", decoder="Qwen3ForCausalLM", reward="Qwen3ForSequenceClassification",
        ),
        "smollm3": Kind(
            defaults=_COMMON
            | {
                "tie_word_embeddings": True, "rope_theta": 2_000_000.0, "num_key_value_heads": 4, "no_rope_layer_interval": 4,
                "use_sliding_window": False, "max_position_embeddings": 32_768,
            },
            switches=_ALL_BIASES | {"mlp_bias": ("mlp_bias",)}, windows="rotary_free",
            decoder="SmolLM3ForCausalLM", reward="SmolLM3ForSequenceClassification",
        ),
        "gemma2": Kind(
            names=GEMMA, windows="in_turn", gemma=True, fixed=_GEMMA_FIXED, switches=_ALL_BIASES,
            neutral=_GEMMA_NEUTRAL
            | {"sliding_window_size": (4096,), "sliding_window_pattern": (2,)},  # in files, and its code reads neither
            defaults=_GEMMA
            | {
                "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                "max_position_embeddings": 8192, "vocab_size": 256_000,
            },
            decoder="Gemma2ForCausalLM", reward="Gemma2ForSequenceClassification",
        ),
        "gemma3_text": Kind(
            names=GEMMA, windows="pattern", gemma=True, fixed=_GEMMA_FIXED | {"qk_norm": True}, switches=_ALL_BIASES,
            neutral=_GEMMA_NEUTRAL, rope_keys=frozenset({"rope_local_base_freq"}),
            defaults=_GEMMA
            | {
                "sliding_window_pattern": 6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
                "max_position_embeddings": 131_072, "vocab_size": 262_208,
            },
            decoder="Gemma3ForCausalLM", reward="Gemma3TextForSequenceClassification",
        ),
        "phi3": Kind(
            names=PHI3, windows="all", rope_keys=frozenset({"original_max_position_embeddings", "partial_rotary_factor"}),
            neutral={"full_attn_mod": (1,), "interpolate_factor": (1,)},
            defaults=_COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
            decoder="Phi3ForCausalLM", reward="Phi3ForSequenceClassification",
        ),
        "internlm2": Kind(
            names=INTERNLM2, defaults=_COMMON | {"max_position_embeddings": 2048, "bias": True},
            switches={"bias": ("qkv_bias", "output_bias")}, decoder="InternLM2ForCausalLM", reward="InternLM2ForRewardModel",
        ),
        "internlm3": Kind(
            defaults=_COMMON
            | {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 32_768},
            switches={
                "attention_bias": ("qkv_bias",), "qkv_bias": ("qkv_bias",), "mlp_bias": ("output_bias", "mlp_bias"),
                "bias": ("output_bias", "mlp_bias"),
            },
            decoder="LlamaForCausalLM",  # transformers has Llama's class for it, and none with a head
        ),
    }
)  # fmt: skip
"""`model_type` → family. SmolLM2 is `llama`."""
NESTED = {"gemma3": "text_config"}
"""`model_type` of a model around a decoder → the key that holds the decoder's config."""
EMPTY_SYSTEM = (
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': ''}] + messages %}{% endif %}"
)
"""Before a chat template: conversations without a system turn get an empty one, not the template's own text."""
BEFORE_TEMPLATE: Mapping[str, str] = MappingProxyType({"WorldPM": EMPTY_SYSTEM})
"""How a model's name begins → what stands before its template, where its README asks for what its files do not."""
