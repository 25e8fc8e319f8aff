"""Tiny models, one engine each, and servers in threads at free ports."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

import jax
import numpy as np
import uvicorn
from tokenizers import pre_tokenizers

from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import RewardModel, abstract_params
from rmjax.serve import server
from rmjax.serve.app import Limits, create
from rmjax.serve.dialects import Context
from rmjax.serve.engine import Engine, described, when_compiled
from rmjax.serve.log import Log
from rmjax.serve.metrics import Metrics
from rmjax.serve.service import Service

SPLIT, REWARD, END = "<file_sep>", "<empty_output>", "<|im_end|>"
SPECIAL = [SPLIT, REWARD, "<|im_start|>", END, "<s>"]
FORMATS = {
    "polar": Format(SPLIT, REWARD, max_length=128, max_response_length=48),
    "plain": Format("", REWARD, max_length=128, max_response_length=48, kind="plain"),
    "chat": Format(max_length=128, max_response_length=48, kind="chat", template="chatml", end_token=END),
}


def make_model(kind: str, seed: int = 0) -> RewardModel:
    return model_of(FORMATS[kind], SPECIAL, seed)


def model_of(form: Format, special: Sequence[str], seed: int = 0) -> RewardModel:
    """Bytes and special tokens."""
    tokenizer = Tokenizer.from_bpe([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], special)
    config = TransformerConfig(tokenizer.vocab_size, width=16, depth=2, heads=2, kv_heads=1, head_width=8, mlp_width=32)
    return RewardModel(config, form, tokenizer, random_weights(config, seed))


def random_weights(config: TransformerConfig, seed: int) -> dict[str, Any]:
    """Of numpy, whose numbers stay what they are; scaled so that rewards are some units apart."""
    draw = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = draw.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else noise * (0.5 if path[-1].key == "embedding" else 0.3)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


@pytest.fixture(scope="session")
def models() -> dict[str, RewardModel]:
    return {kind: make_model(kind) for kind in FORMATS}


@pytest.fixture(scope="session")
def engines(models) -> dict[str, Engine]:
    found = {kind: Engine.of(model, batch_tokens=512) for kind, model in models.items()}
    for each in found.values():  # of one architecture: compiled once
        each.compile()
    return found


@dataclasses.dataclass
class Running:
    """A server and what a test looks at."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of a request; bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, text, headers)
        reply = connection.getresponse()
        found = reply.read()
        connection.close()
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        return reply.status, json.loads(found) if is_json else found.decode()

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextlib.contextmanager
def running(engine: Engine, limits: Limits | None = None, log: Log | None = None, **options: Any) -> Iterator[Running]:
    """A server of an engine; options are `Service`'s and, by name, `Context`'s."""
    metrics = Metrics()
    when_compiled(metrics.recompiles.inc)
    of_context = {name: options.pop(name) for name in ("strip", "scalar") if name in options}
    service = Service(engine, metrics, **options)
    metrics.watch("waiting", "texts in the queue", lambda: service.batcher.waiting)
    form = engine.encoder.form
    context = Context("tiny", engine.fingerprint, form.kind, form.split_token, **of_context)
    app = create(service, context, described(engine), limits or Limits(), log or Log(None))
    listening = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    ready = threading.Event()

    async def run() -> None:
        waiting = asyncio.ensure_future(running.serve(sockets=[listening]))
        while not running.started and not waiting.done():
            await asyncio.sleep(0.005)
        ready.set()
        await waiting

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait(30)
    try:
        yield Running(service, listening.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()


@pytest.fixture(scope="session")
def polar(engines) -> Iterator[Running]:
    with running(engines["polar"]) as found:
        yield found


@pytest.fixture(scope="session")
def chat(engines) -> Iterator[Running]:
    with running(engines["chat"]) as found:
        yield found
