"""In place of the torch side: the same files read by a Llama in numpy. `python numpy_llama.py JOB.json` does what the job says,
with made-up times."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def _norm(x_TD, scale_D, epsilon):
    return scale_D * x_TD / np.sqrt(np.mean(np.square(x_TD), axis=-1, keepdims=True) + epsilon)


def _rotated(x_THE, theta):
    half = x_THE.shape[-1] // 2
    angle_T1E = np.arange(len(x_THE))[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x_THE[..., :half], x_THE[..., half:]
    cos, sin = np.cos(angle_T1E), np.sin(angle_T1E)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def reward(folder: Path, ids: list[int]) -> float:
    """Of a sequence by itself, read out at its last token."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    H, J, E = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    theta, epsilon = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    x_TD, T = tensors["model.embed_tokens.weight"][ids].astype(np.float64), len(ids)
    for i in range(config["num_hidden_layers"]):
        w = {name: x for name, x in tensors.items() if name.startswith(f"model.layers.{i}.")}
        w = {name.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): x for name, x in w.items()}
        h = _norm(x_TD, w["input_layernorm"], epsilon)
        q, k, v = ((h @ w[f"self_attn.{n}_proj"].T).reshape(T, heads, E) for n, heads in (("q", H), ("k", J), ("v", J)))
        q, k, v = _rotated(q, theta), np.repeat(_rotated(k, theta), H // J, axis=1), np.repeat(v, H // J, axis=1)
        scores_HTS = np.einsum("the,she->hts", q, k) * E**-0.5 + np.where(np.tri(T), 0, -np.inf)
        weights = np.exp(scores_HTS - scores_HTS.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x_TD = x_TD + np.einsum("hts,she->the", weights, v).reshape(T, -1) @ w["self_attn.o_proj"].T
        h = _norm(x_TD, w["post_attention_layernorm"], epsilon)
        gate, up = h @ w["mlp.gate_proj"].T, h @ w["mlp.up_proj"].T
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj"].T
    return float((_norm(x_TD, tensors["model.norm.weight"], epsilon)[-1] @ tensors["score.weight"].T)[0])


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    pairs = [json.loads(line) for line in Path(job["pairs"]).read_text().splitlines()]
    found: dict = {"peak_bytes": 4, "device_peak_bytes": None, "versions": {"torch": "none"}}
    if job["kind"] == "agree":
        names, folder = ("chosen_ids", "rejected_ids"), Path(job["model"])
        rewards = [[reward(folder, pair[name]) for name in names] for pair in pairs[: job["batch"]]]
        loss = float(np.mean([np.log1p(np.exp(b - a)) for a, b in rewards]))
        found |= {"loss": loss, "rewards": rewards}
    elif job["kind"] == "learn":
        held_out = [json.loads(line) for line in Path(job["held_out"]).read_text().splitlines()]
        rewards = [[reward(Path(job["model"]), pair[n]) for n in ("chosen_ids", "rejected_ids")] for pair in held_out]
        points = [{"step": n, "seconds": 2.0 * n, "cpu_seconds": 1.0 * n, "rewards": rewards} for n in job["at"]]
        found |= {"points": points, "first_step_ended": time.time(), "startup_cpu_seconds": 1.0}
    else:
        assert len(pairs) == job["batch"] * job["steps"]
        steps = []
        for i in range(1, job["steps"]):
            batch = pairs[i * job["batch"] : (i + 1) * job["batch"]]
            longest = max(len(pair[name]) for pair in batch for name in ("chosen_ids", "rejected_ids"))
            shape = [2 * len(batch), longest] if job["parts"] == 1 else None
            tokens = sum(pair["tokens"] for pair in batch)
            steps.append({"seconds": 8.0, "pairs": len(batch), "tokens": tokens, "shape": shape})
        found |= {"first_step_ended": time.time(), "steps": steps}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
