"""Makes the tiny models of this folder and what `transformers` says of them: `make parity` (torch and transformers are needed).

A folder is a model in Hugging Face's form, written by `save_pretrained` where transformers has its class, and golden.safetensors
beside it: `logits` of each token of TEXTS, one text behind the other, or `rewards` of the texts. All is computed in float32 by
eager attention. Right- and left-padded batches have to agree with each text alone to 1e-5, or nothing is written.

InternLM2 is remote code elsewhere. Its mathematics are Llama's; its file has other names and one fused tensor: for each key-value
head its queries, its key and its value, one below the other. So a Llama is made, and written as such a file. GRM's and
Qwen2ForRewardModel's heads are two matrices around a ReLU, or one with a bias, on the last hidden state, written out below.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
PAD, BOS, EOS, V, D, F = 0, 1, 2, 64, 16, 24
TEXTS = [
    [1, 9, 33, 14, 60, 7, 7, 22, 41, 5, 18, 63, 30, 11, 48, 26, 3, 57, 19, 36, 8, 44, 27, 50],  # longer than any window
    [1, 12, 55, 40, 6, 2, 17, 39, 29, 61, 4, 13, 2, 2],  # ends with EOS EOS
    [1, 21, 0, 0, 35, 46, 10, 0, 52],  # pad ids inside
    [1, 58, 16, 31, 24, 45, 3, 3, 62, 38, 0, 51, 20, 9, 43, 28, 0],  # and at its end
]
SIZES = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    "attn_implementation": "eager", "tie_word_embeddings": False,
}  # fmt: skip
HEAD = {"head_dim": 8}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
GEMMA = HEAD | {
    "query_pre_attn_scalar": 12, "sliding_window": 5, "tie_word_embeddings": True, "num_hidden_layers": 3,
}  # fmt: skip


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LONG = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 3.0],
    },
}  # fmt: skip
SMOL3 = {"num_hidden_layers": 4, "no_rope_layer_interval": 3}
GEMMA3 = GEMMA | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100_000.0}, "sliding_attention": PLAIN,
    },
}  # fmt: skip
UPPER = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
OTHER_EOS = {"pad_token_id": EOS}

# Folder → (model_type, config, reward model?, written as bf16?)
MODELS = {
    "llama": ("llama", HEAD, False, False),
    "llama_llama3": ("llama", LLAMA3 | {"tie_word_embeddings": True}, False, True),
    "llama_dynamic": ("llama", rope("dynamic", factor=2.0), False, True),
    "llama_reward_biases": (
        "llama",
        rope("linear", factor=4.0) | {"attention_bias": True, "mlp_bias": True},
        True,
        False,
    ),
    "llama_reward_yarn": ("llama", YARN, True, True),
    "llama_reward_pad_eos": ("llama", OTHER_EOS, True, True),
    "smollm2_old_keys": ("llama", {"tie_word_embeddings": True}, False, True),
    "mistral_sharded": ("mistral", HEAD | {"sliding_window": 7}, False, False),
    "mistral_reward": ("mistral", {"sliding_window": None}, True, True),
    "qwen2": ("qwen2", UPPER | YARN, False, True),
    "qwen2_reward": ("qwen2", {"tie_word_embeddings": True}, True, True),
    "qwen3": ("qwen3", HEAD | UPPER, False, True),
    "qwen3_reward": ("qwen3", HEAD | {"attention_bias": True, "tie_word_embeddings": True}, True, True),
    "smollm3": ("smollm3", SMOL3 | {"tie_word_embeddings": True}, False, True),
    "smollm3_reward": ("smollm3", SMOL3 | {"use_sliding_window": True, "sliding_window": 6}, True, True),
    "gemma2": ("gemma2", GEMMA, False, True),
    "gemma2_reward": ("gemma2", GEMMA, True, True),
    "gemma3": ("gemma3_text", GEMMA3, False, True),
    "gemma3_reward": ("gemma3_text", GEMMA3, True, True),
    "phi3": ("phi3", LONG | {"hidden_size": 32}, False, True),
    "phi3_reward": ("phi3", {"sliding_window": 6}, True, True),
    "internlm3": (
        "internlm3",
        HEAD | rope("dynamic", factor=6.0) | {"attention_bias": True, "mlp_bias": True},
        False,
        True,
    ),
}


def fill(model, seed):
    """Random numbers in which each parameter matters, and logits of some units."""
    random = torch.Generator().manual_seed(seed)
    offset = "gemma" in model.config.model_type
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if "norm" in name:
            value = 0.3 * noise + (0 if offset else 1)
        elif parameter.ndim == 1:
            value = 0.5 * noise
        else:
            value = noise * (0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
        parameter.data.copy_(value)


def batch(left):
    longest = max(map(len, TEXTS))
    rows, masks = [], []
    for ids in TEXTS:
        gap = longest - len(ids)
        rows.append([PAD] * gap + ids if left else ids + [PAD] * gap)
        masks.append([0] * gap + [1] * len(ids) if left else [1] * len(ids) + [0] * gap)
    mask = torch.tensor(masks)
    return torch.tensor(rows), mask, (mask.cumsum(-1) - 1).clamp(min=0)


def hidden_states(backbone, apply):
    """`apply` of the last hidden states of each text's tokens; alone, right- and left-padded ones have to agree."""
    alone = [apply(backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]) for ids in TEXTS]
    for left in (False, True):
        ids, mask, positions = batch(left)
        found = apply(backbone(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state)
        for text, row, kept in zip(alone, found, mask, strict=True):
            assert (text - row[kept.bool()]).abs().max() < 1e-5, (type(backbone).__name__, left)
    return alone


def golden(model, reward):
    if not reward:
        hidden_states(model.model, lambda x: x)  # for what it asserts
        return {"logits": torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in TEXTS])}
    rewards = torch.stack([text[-1, 0] for text in hidden_states(model.model, model.score)])
    class_reads = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in TEXTS])
    elsewhere = torch.tensor([ids[-1] == model.config.pad_token_id for ids in TEXTS])  # as `Encoder` counts them
    assert torch.equal((class_reads - rewards).abs() > 1e-5, elsewhere)
    return {"rewards": rewards}


def made(model_type, changes, reward, rounded, seed):
    config = transformers.AutoConfig.for_model(model_type, **(SIZES | changes | ({"num_labels": 1} if reward else {})))
    if model_type == "internlm3":
        auto = transformers.LlamaForCausalLM
    else:
        auto = transformers.AutoModelForSequenceClassification if reward else transformers.AutoModelForCausalLM
    build = auto if model_type == "internlm3" else auto.from_config
    model = build(config).eval()
    fill(model, seed)
    if rounded:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    return model


def write(name, model, found, rounded, shards="1GB"):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    (model.bfloat16() if rounded else model).save_pretrained(folder, max_shard_size=shards)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file({key: value.float().contiguous() for key, value in found.items()}, folder / "golden.safetensors")


def write_tensors(name, tensors, config, found):
    """A folder that no class of transformers writes."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.float().contiguous() for key, value in found.items()}, folder / "golden.safetensors")


def old_keys(folder):
    """config.json as it was before transformers 5."""
    path = HERE / folder / "config.json"
    file = json.loads(path.read_text())
    block = file.pop("rope_parameters")
    file |= {"rope_theta": block.pop("rope_theta"), "rope_scaling": None, "torch_dtype": file.pop("dtype")}
    path.write_text(json.dumps(file, indent=2) + "\n")


def internlm2(name, reward, seed):
    changes = HEAD | (rope("dynamic", factor=2.0) if reward else {"attention_bias": True})
    model = made("llama", changes, reward, True, seed)
    found, state = golden(model, reward), {key: value.bfloat16() for key, value in model.state_dict().items()}
    renamed = {
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "score": "v_head", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    }  # fmt: skip
    tensors = {}
    for key, value in state.items():
        if any(part in key for part in ("q_proj", "k_proj", "v_proj")):
            continue
        for old, new in renamed.items():
            key = key.replace(old, new)
        tensors[key] = value
    for i in range(2):
        for kind in ("weight", "bias") if not reward else ("weight",):
            q, k, v = (state[f"model.layers.{i}.self_attn.{part}_proj.{kind}"] for part in "qkv")
            q, k, v = q.reshape(2, 2, 8, -1), k.reshape(2, 1, 8, -1), v.reshape(2, 1, 8, -1)
            fused = torch.cat([q, k, v], dim=1).reshape(64, -1)
            tensors[f"model.layers.{i}.attention.wqkv.{kind}"] = fused if kind == "weight" else fused[:, 0]
    config = {
        **{key: value for key, value in SIZES.items() if key != "attn_implementation"}, "model_type": "internlm2", "head_dim": 8,
        "architectures": ["InternLM2ForRewardModel" if reward else "InternLM2ForCausalLM"], "hidden_act": "silu",
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}, "attn_implementation": "flash_attention_2",
        "bias": not reward, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "pretraining_tp": 1, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "dynamic", "factor": 2.0} if reward else None, **({"reward_token_id": 9} if reward else {}),
    }  # fmt: skip
    write_tensors(name, tensors, config, found)


def other_heads(seed):
    """Qwen2ForRewardModel's two layers, and GRM's one and two on a whole language model."""
    for name, model_type, keys, hidden in (
        ("qwen2_reward_mlp", "qwen2", ("score.0", "score.2"), D),
        ("grm_linear", "llama", ("v_head.summary",), 0),
        ("grm_mlp", "gemma2", ("v_head.summary.0", "v_head.summary.2"), 20),
    ):
        model = made(model_type, GEMMA if model_type == "gemma2" else {}, False, True, seed)
        random = torch.Generator().manual_seed(seed + 1)
        sizes = [(hidden, D), (1, hidden)] if hidden else [(1, D)]
        layers = [(torch.randn(size, generator=random) * 0.4, torch.randn(size[0], generator=random)) for size in sizes]

        def head(x, layers=layers):
            for i, (weight, bias) in enumerate(layers):
                x = (torch.relu(x) if i else x) @ weight.T + bias
            return x

        rewards = torch.stack([text[-1, 0] for text in hidden_states(model.model, head)])
        tied = model.config.tie_word_embeddings
        inside = "" if name.startswith("qwen2") else "model."
        state = {f"{inside}{key}": value.bfloat16() for key, value in model.state_dict().items() if "rotary" not in key}
        kept = {
            key: value for key, value in state.items() if not key.endswith("lm_head.weight") or (inside and not tied)
        }
        kept |= {
            f"{key}.{end}": x
            for key, pair in zip(keys, layers, strict=True)
            for end, x in zip(("weight", "bias"), pair, strict=True)
        }
        config = model.config.to_diff_dict() | {
            "architectures": ["Qwen2ForRewardModel" if not inside else "GRMRewardModel"]
        }
        config = {key: value for key, value in config.items() if key != "_attn_implementation"}
        if inside:
            config |= {
                "vhead_layer_type": "mlp" if hidden else "linear",
                "vhead_num_neurons": hidden,
                "vhead_num_layers": 1,
            }
        write_tensors(name, kept, config, {"rewards": rewards})
        seed += 2


def gemma3_nested(seed):
    """The text model inside one that sees, with two of its tensors, as files before transformers 5 call them."""
    model = made("gemma3_text", GEMMA3, False, True, seed)
    found = golden(model, False)
    state = {
        f"language_model.{key}": value.bfloat16() for key, value in model.state_dict().items() if "lm_head" not in key
    }
    state |= {
        f"{key}.weight": torch.ones(2, 2)
        for key in ("vision_tower.vision_model.post_layernorm", "multi_modal_projector.norm")
    }
    text = model.config.to_diff_dict()
    text = {key: value for key, value in text.items() if key not in ("_attn_implementation", "architectures")}
    local = text.pop("rope_parameters")["sliding_attention"]["rope_theta"]
    text |= {
        "rope_theta": 100_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_local_base_freq": local,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text, "eos_token_id": [1, 2],
        "vision_config": {"hidden_size": 2}, "mm_tokens_per_image": 4, "torch_dtype": "bfloat16",
    }  # fmt: skip
    write_tensors("gemma3_nested", state, config, found)


@torch.no_grad()
def main():
    for seed, (name, (model_type, changes, reward, rounded)) in enumerate(MODELS.items()):
        model = made(model_type, changes, reward, rounded, seed)
        write(name, model, golden(model, reward), rounded, "20KB" if name.endswith("sharded") else "1GB")
    old_keys("smollm2_old_keys")
    internlm2("internlm2", False, 100)
    internlm2("polar", True, 101)
    gemma3_nested(102)
    other_heads(110)
    for folder in sorted(HERE.iterdir()):
        if folder.is_dir() and (folder / "config.json").is_file():
            size = sum(file.stat().st_size for file in folder.iterdir())
            tensors = load_file(folder / "golden.safetensors")
            print(f"{folder.name:24} {size:7,} B  " + ", ".join(f"{k} {v.std():.2f}" for k, v in tensors.items()))
            assert size < 100_000, folder


if __name__ == "__main__":
    sys.exit(main())
