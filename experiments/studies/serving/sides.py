"""Both servers as processes, the model that they serve, and the requests that they get."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from experiments.trainers.exchange import write_model
from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, abstract_params, save_description
from rmjax.train.checkpoint import Checkpoints

OURS, THEIRS = "rmjax", "transformers"
PEER = Path(__file__).with_name("peer.py")
ROOT = Path(__file__).parents[3]
SPECIAL = ("<pad>", "<reward>")  # ids 0 and 1
PAD, REWARD = range(2)
MODELS = "data/models"
"""Of both sides, in the study's folder."""


def peer() -> ModuleType:
    """The other side's file, for its source: torch is not here, so it is not run."""
    spec = util.spec_from_file_location("serving_peer", PEER)
    assert spec
    return util.module_from_spec(spec)


def architecture(config: Any) -> tuple[TransformerConfig, Tokenizer]:
    """Of the config's sizes, over bytes."""
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    sizes = config.model.to_dict()
    return TransformerConfig(tokenizer.vocab_size, head_width=sizes["width"] // sizes["heads"], **sizes), tokenizer


def longest(config: Any) -> int:
    """Tokens of a text at most: prompt, answer, reward token."""
    return config.texts.prompt + max(config.texts.answer) + 1


def random_params(transformer: TransformerConfig) -> Any:
    """A reward model's, of a fixed seed."""
    import jax

    draw = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(shape.shape, np.float32)
        deviation = 1.0 if path[-1].key == "embedding" else shape.shape[-2] ** -0.5
        return (draw.standard_normal(shape.shape) * deviation).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(transformer))


def write_models(config: Any, folder: Path) -> None:
    """`ours`, a run directory, and `theirs`, Hugging Face's files, of the same random weights."""
    transformer, tokenizer = architecture(config)
    params = random_params(transformer)
    form = Format(reward_token=SPECIAL[REWARD], max_length=longest(config), kind="plain")
    save_description(folder / "ours", transformer, form, tokenizer)
    with Checkpoints(folder / "ours" / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": params}, {}, wait=True)
    write_model(folder / "theirs", transformer, params, tokenizer.to_json())
    path = folder / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": PAD}))


def command(side: str, config: Any, models: Path) -> list[str]:
    """What starts a server."""
    if side == THEIRS:
        return [config.peer, "-P", str(PEER), str(models / "theirs"), str(config.batch_tokens)]
    sizes = [f"--max_tokens={longest(config)}", f"--batch_tokens={config.batch_tokens}"]
    return [sys.executable, "-m", "experiments.serve", f"--model={models / 'ours'}", "--port=0", *sizes]


@contextlib.contextmanager
def serving(side: str, config: Any, logs: Path) -> Iterator[int]:
    """The port of a server, which ends with the block. RuntimeError where it does not start; its log is in the folder `logs`,
    beside which `MODELS` lies."""
    logs.mkdir(parents=True, exist_ok=True)
    log, line = logs / f"{side}.log", command(side, config, logs.parent.resolve() / MODELS)
    environment = {name: value for name, value in os.environ.items() if name != "RMJAX_SERVE_TOKEN"}
    with log.open("w") as file:
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said.startswith("serving"):
            raise RuntimeError(f"the server of {side} did not start; {log} says why")
        yield int(said.rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.stdout.close()


def requests(config: Any, shared: bool, seed: int) -> list[list[list[int]]]:
    """[request][text] → token ids: for `shared` the answers to one prompt each; otherwise as many texts that begin apart."""
    draw, texts = np.random.default_rng(seed), config.texts
    low, high = texts.answer

    def words(count: int) -> list[int]:
        return draw.integers(len(SPECIAL), 256, count).tolist()

    found = []
    for _ in range(config.prompts):
        prompt = words(texts.prompt)
        found.append(
            [
                [*(prompt if shared else words(texts.prompt)), *words(int(draw.integers(low, high + 1))), REWARD]
                for _ in range(texts.answers)
            ]
        )
    return found


def body(texts: Sequence[Sequence[int]]) -> bytes:
    """A request of both sides."""
    return json.dumps({"input": texts}).encode()


def rewards_in(reply: bytes) -> list[float]:
    """What a client of vLLM's /pooling reads."""
    return [entry["data"][-1][0] for entry in json.loads(reply)["data"]]
