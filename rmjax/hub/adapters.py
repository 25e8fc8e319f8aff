"""Adapters in and out of files: our own one-file form, and PEFT's for what PEFT can express."""

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from rmjax.hub.names import LLAMA
from rmjax.models.lora import ADAPTER_PATH, AdapterConfig, plain_of_one
from rmjax.models.parameters import first_layers, flat, nested
from rmjax.models.transformer import TransformerConfig

_OWN = rf"{ADAPTER_PATH}|^head/"


def adapter_leaves(params: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} of the adapter and the reward head: all that differs between adapters on one base."""
    return {path: leaf for path, leaf in flat(params).items() if re.search(_OWN, path)}


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 of the base: paths, dtypes and values of all that is neither adapter nor head, however its layers are stacked."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for path, leaf in sorted(flat(params).items()):  # `frozen_layers` come before `layers`, as they run
        if not re.search(_OWN, path):
            parts[path.replace("/frozen_layers/", "/layers/", 1)].append(leaf)
    digest = hashlib.sha256()
    for path, stacks in sorted(parts.items()):
        shape = (sum(stack.shape[0] for stack in stacks), *stacks[0].shape[1:])
        digest.update(f"{path} {stacks[0].dtype} {shape}\n".encode())
        for stack in stacks:
            digest.update(np.ascontiguousarray(jax.device_get(stack)).view(np.uint8).data)
    return digest.hexdigest()


def save_adapter(path: str | Path, adapter: AdapterConfig, params: Mapping[str, Any], dtype: str = "float32") -> None:
    """One safetensors file with the adapter, the head, what the adapter is, and which base it belongs to.

    A language model has no head: give {"backbone": …} alone.

    Args:
      dtype: of the adapter's numbers in the file, float32 or float16 (half the size); the head's are float32 always.

    Raises:
      IsADirectoryError: `path` is a folder.
      ValueError: a number is too large for `dtype`.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file, such as {Path(path) / 'adapter.safetensors'}")
    leaves = {p: _stored(p, np.asarray(jax.device_get(x)), dtype) for p, x in adapter_leaves(params).items()}
    described = {"adapter": json.dumps(dataclasses.asdict(adapter)), "base": fingerprint(params)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(leaves, path, {**described, "sha256": _digest(leaves)})


def _stored(path: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    if not re.search(ADAPTER_PATH, path):
        return leaf
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(leaf.astype(dtype))
    if not np.isfinite(cast).all():
        raise ValueError(f"{path} has numbers that are too large for {dtype}, or not finite; store it as float32")
    return cast


def _digest(leaves: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays by name: a file whose numbers were damaged is a safetensors file all the same."""
    found = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return found.hexdigest()


def load_adapter(path: str | Path, params: Mapping[str, Any], base: str) -> tuple[AdapterConfig, dict[str, Any]]:
    """What the file's adapter is, and `params` with that adapter and its head in place of their own, if they have any.

    The base's layers are stacked as the adapter needs them: those below it apart.

    Args:
      base: `fingerprint(params)`; the caller keeps it, since it reads all of the base.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file or a damaged one, an adapter for another base, or without head where `params` has one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such adapter file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        adapter, theirs = AdapterConfig(**json.loads(metadata["adapter"])), metadata["base"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not an adapter file that save_adapter wrote, or cut short ({error!r}); get the file again"
        ) from error
    if theirs != base:
        raise ValueError(
            f"{path}: was trained on another base (its weights differ); load it onto the one it was made for"
        )
    leaves = load_file(path)
    adapted = next((leaf.shape[0] for name, leaf in leaves.items() if name.endswith("/lora_a")), None)
    if adapted is None:
        raise ValueError(f"{path}: not an adapter file that save_adapter wrote (it has no `lora_a`)")
    if foreign := [name for name in leaves if not re.search(_OWN, name)]:
        raise ValueError(f"{path}: not an adapter file that save_adapter wrote (it has {', '.join(foreign)})")
    if metadata.get("sha256", _digest(leaves)) != _digest(leaves):  # older files have none
        raise ValueError(f"{path}: is damaged, its numbers are not those that were written; get the file again")
    if "head" in params and not any(name.startswith("head/") for name in leaves):
        raise ValueError(f"{path}: is a language model's adapter (it has no head), and this is a reward model")
    kept = nested({p: leaf for p, leaf in flat(params).items() if not re.search(_OWN, p)})
    kept["backbone"] = _stacked(kept["backbone"], adapted)
    return adapter, nested(flat(kept) | {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()})


def _stacked(backbone: dict[str, Any], upper: int) -> dict[str, Any]:
    """With the last `upper` layers in `layers`, those below them in `frozen_layers`."""
    above, below = _layers(backbone.get("layers")), _layers(backbone.get("frozen_layers"))
    return backbone if above == upper else first_layers(backbone, above + below, above + below - upper)


def _layers(stack: Any) -> int:
    return len(jax.tree.leaves(stack)[0]) if stack else 0


def frozen_layers(params: Mapping[str, Any]) -> int:
    """How many layers are stacked apart, below the adapted ones."""
    return _layers(params["backbone"].get("frozen_layers"))


def export_peft(
    directory: str | Path, config: TransformerConfig, params: Mapping[str, Any], base_name: str = ""
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT does, and the reward head, where there is one, as `score`.

    A mixture of a single expert is plain LoRA. Layers are unstacked into `model.layers.<i>`, matrices transposed to
    PyTorch's [out, in]. Rows of Q and K stay in order: our rotary layout is that of HF. Every adapted layer is named, so that
    PEFT adapts no other where the base has more of them.

    Args:
      base_name: hub name or folder of the base, for `base_model_name_or_path`.

    Raises:
      ValueError: no adapter, or several experts, which PEFT has no form for.
    """
    if config.adapter is None:
        raise ValueError("the model has no adapter to export")
    adapter, params = plain_of_one(config.adapter, params)
    if adapter.routed:
        raise ValueError("PEFT has no form for experts weighed by routers; write our own file: --to=adapter")
    tensors = {name: np.ascontiguousarray(x) for name, x in _peft_tensors(config, adapter, params).items()}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    described = _peft_config(config, adapter, tensors, base_name)
    (directory / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _peft_tensors(
    config: TransformerConfig, adapter: AdapterConfig, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    leaves, prefix, names = flat(jax.device_get(params)), "base_model.model.", LLAMA.dense()
    if config.head != "linear":
        raise ValueError(
            "PEFT's `score` is one matrix, and this model's head is an mlp; use --to=merged or --to=adapter"
        )
    tensors = {}
    for path in leaves:
        place, _, leaf = path.rpartition("/")
        if leaf != "lora_a":
            continue
        name = names[place.removeprefix("backbone/layers/")]
        for i in range(config.depth - config.frozen_layers):
            own = f"{prefix}model.layers.{config.frozen_layers + i}.{name}"
            tensors[f"{own}.lora_A.weight"] = leaves[path][i].T
            tensors[f"{own}.lora_B.weight"] = leaves[f"{place}/lora_b"][i].T
            if adapter.kind == "dora":
                norm_O = np.linalg.norm(leaves[f"{place}/kernel"][i].astype(np.float32), axis=0)
                tensors[f"{own}.lora_magnitude_vector"] = norm_O + leaves[f"{place}/lora_magnitude"][i]
    if "head/kernel" in leaves:
        tensors[f"{prefix}score.weight"] = leaves["head/kernel"].T
    return tensors


def _peft_config(
    config: TransformerConfig, adapter: AdapterConfig, tensors: Mapping[str, Any], base_name: str
) -> dict[str, Any]:
    names = {name.split(".")[-3] for name in tensors if name.endswith(".lora_A.weight")}
    with_head = any(name.endswith("score.weight") for name in tensors)
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if with_head else "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": sorted(names),
        "layers_to_transform": list(range(config.frozen_layers, config.depth)),
        "modules_to_save": ["score"] if with_head else None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.kind == "rslora",
        "use_dora": adapter.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
