"""What both sides of the comparison read: weights under Hugging Face's names, pairs as token ids.

The model is written as the folder that `AutoModelForSequenceClassification.from_pretrained` takes, the reward head as its
`score`. Rows of Q and K stay in order: our rotary layout is that of Hugging Face's Llama.
"""

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from safetensors.numpy import save_file

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.pipeline import PackForests
from rmjax.hub.names import LLAMA
from rmjax.models.forest import Forest
from rmjax.models.parameters import flat
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig

TRIAL = 8  # batches from which their mean number of pairs is taken


_OF_LLAMA = (
    "vocab_size", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width", "norm_epsilon", "max_positions",
    "dtype", "param_dtype", "remat", "attention", "attention_block",
)  # fmt: skip
"""What may differ of a plain Llama with tied embeddings and all layers trained, beside the base of its rotary positions."""


def write_model(folder: Path, config: TransformerConfig, params: Mapping[str, Any], tokenizer: str) -> None:
    """config.json, model.safetensors (fp32) and tokenizer.json.

    Raises:
      ValueError: the architecture is not Llama's (biases, norms of queries and keys, an adapter, frozen layers apart, …), or
        the parameters are not those of one.
    """
    plain = TransformerConfig(rope=Rope(config.rope.theta), **{name: getattr(config, name) for name in _OF_LLAMA})
    if config != plain:
        raise ValueError(
            "the comparison needs a plain Llama with tied embeddings, all layers trained; change config.model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(_tensors(config, flat(params))), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_described(config), indent=2) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer)


def _tensors(config: TransformerConfig, leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in leaves.items():
        array = np.asarray(leaf, np.float32)
        below = path.removeprefix("backbone/layers/")
        if path in LLAMA.whole:
            yield (
                f"{LLAMA.whole[path].hugging_face}.weight",
                np.ascontiguousarray(array.T if path == "head/kernel" else array),
            )
        elif below in LLAMA.layers:
            for i in range(config.depth):
                yield f"model.layers.{i}.{LLAMA.layers[below].hugging_face}.weight", np.ascontiguousarray(array[i].T)
        else:
            raise ValueError(f"{path}: a parameter that Hugging Face's Llama has not")


def _described(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.width, "intermediate_size": config.mlp_width, "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_width,
        "rms_norm_eps": config.norm_epsilon, "max_position_embeddings": config.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta}, "hidden_act": "silu",
        "tie_word_embeddings": True, "num_labels": 1, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def shape_of(config: Any, rows: int) -> ForestShape:
    """The config's batch with so many rows."""
    data = config.data
    return ForestShape(rows, data.row_tokens, data.groups, data.candidates)


def rows_for(config: Any, trees: Sequence[Tree], batch: int, parts: int) -> int:
    """The most rows, a multiple of `parts`, whose batches hold no more than `batch` pairs in the mean; `parts` at least."""

    def pairs(rows: int) -> float:
        packed = iter(PackForests(grain.MapDataset.source([[tree] for tree in trees]), shape_of(config, rows)))
        return statistics.mean(int((forest.record_RG >= 0).sum()) for forest in itertools.islice(packed, TRIAL))

    rows = parts
    while rows < batch and pairs(rows + parts) <= batch:
        rows += parts
    return rows


def sequences(tree: Tree) -> list[list[int]]:
    """The candidates of a group as sequences of their own, the best one first."""
    order = np.argsort(tree.ranks, kind="stable")
    return [[*tree.prefix.tolist(), *tree.branches[n].tolist()] for n in order]


def write_pairs(path: Path, trees: Iterable[Tree]) -> None:
    """A line for each pair: `chosen_ids`, `rejected_ids`, and `tokens`: its text, the common beginning counted once."""
    lines = []
    for tree in trees:
        chosen, rejected = sequences(tree)
        lines.append(json.dumps({"chosen_ids": chosen, "rejected_ids": rejected, "tokens": tree.size}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """What `write_pairs` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def padded(rows: Sequence[Sequence[int]], tokens: int = 0, count: int = 0) -> Forest:
    """A sequence a row, as long as the longest one or as `tokens`; empty rows up to `count`."""
    empty, unknown = np.zeros(0, np.int32), np.full(1, np.inf, np.float32)
    trees = [[Tree(empty, (np.asarray(ids, np.int32),), unknown)] for ids in rows]
    return fill(ForestShape(max(len(rows), count), tokens or max(map(len, rows)), 1, 1), trees)
