"""The tiny models in tests/hub/golden, which `transformers` made, and the texts that they were read with."""

import ast
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import tokenizers
from safetensors.numpy import load_file
from tokenizers import decoders, models

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.hub.hugging_face import HubModel
from rmjax.models.forest import Forest
from rmjax.models.stored import on_host

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/golden.safetensors"))
_MADE = ast.parse((FOLDER / "make.py").read_text(encoding="utf-8"))
TEXTS: list[list[int]] = next(
    ast.literal_eval(node.value)
    for node in _MADE.body
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "TEXTS"
)
PAD = 0


def golden(name: str) -> dict[str, np.ndarray]:
    return load_file(FOLDER / name / "golden.safetensors")


def in_fp32(model: HubModel) -> dict:
    return jax.tree.map(lambda x: x.astype(np.float32), on_host(model.params))


def padded(left: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, which are of texts), all [R, T]."""
    longest = max(map(len, TEXTS))
    tokens_RT = np.full((len(TEXTS), longest), PAD, np.int32)
    valid_RT = np.zeros((len(TEXTS), longest), bool)
    for row, ids in enumerate(TEXTS):
        part = slice(longest - len(ids), None) if left else slice(len(ids))
        tokens_RT[row, part], valid_RT[row, part] = ids, True
    return tokens_RT, np.maximum(valid_RT.cumsum(1) - 1, 0).astype(np.int32), valid_RT


def forest() -> Forest:
    """The texts in two rows, two to a row, as scoring packs them."""
    trees = [Tree(np.zeros(0, np.int32), (np.asarray(ids, np.int32),), np.zeros(1, np.float32)) for ids in TEXTS]
    return fill(ForestShape(rows=2, row_tokens=48, groups=2, branches=1), [trees[:2], trees[2:]])


SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|reward|>": 4, "<|im_start|>": 10, "<|im_end|>": 11}
READ = "[UNUSED_TOKEN_130]"  # as POLAR's is called; it is no added token there
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_text() -> str:
    """A tokenizer.json with a token for each of these models' ids: special ones and letters."""
    letters = iter("abcdefghijklmnopqrstuvwxyz .,?!\n:ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    taken = {number: token for token, number in SPECIAL.items()} | {9: READ}
    vocabulary = {taken.get(i) or next(letters): i for i in range(64)}
    plain = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    plain.decoder = decoders.Fuse()
    plain.add_special_tokens(list(SPECIAL))
    return plain.to_str()


def copied(name: str, folder: Path, template: str = CHATML) -> Path:
    """A golden model as the hub has one, with tokenizer and template."""
    shutil.copytree(FOLDER / name, folder, ignore=shutil.ignore_patterns("golden.safetensors"))
    (folder / "tokenizer.json").write_text(tokenizer_text())
    described = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder
