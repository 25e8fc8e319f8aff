"""The model behind the queue: a ladder of shapes compiled at start, and the rewards of a batch."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rmjax.data.formats import Encoder
from rmjax.data.packing import ForestShape
from rmjax.evaluate.scorers import OfMembers, Rewards
from rmjax.models.parameters import flat
from rmjax.parallel.mesh import RULES, shards
from rmjax.reward_model import RewardModel
from rmjax.serve.items import Encoding
from rmjax.serve.ladder import Batch, Kept, ladder
from rmjax.serve.prefixes import Prefixes

COMPILED = "/jax/core/compile/backend_compile_duration"
"""jax's event for a program that XLA has compiled."""
BLOCK, CPU_BLOCK = 128, 64
"""Tokens along the side of a tile. On a CPU small ones take a fifth less time: less of them is masked."""
AT_ONCE = 2
"""Batches at the same time on a CPU: what of a batch is no large product, its tiles and its planning, leaves cores idle."""
LONGEST = 2048
"""Tokens of a sequence where nothing else is asked for: shapes for longer ones take long to compile."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """Rewards of batches.

    Attributes:
      rewards: (params, forest) → [R, G, N], or of members [R, G, N, K].
      shapes: all that are ever run.
      quadratic: of `ladder.plan`.
      fingerprint: SHA-256 of weights, format and tokenizer.
      prefixes: what is kept from batch to batch; None = nothing.
      at_once: batches that may run at the same time.
    """

    rewards: Rewards
    params: Any
    encoder: Encoder
    shapes: tuple[ForestShape, ...]
    quadratic: float
    vocabulary: int
    fingerprint: str
    prefixes: Prefixes | None = None
    at_once: int = 1

    @classmethod
    def of(
        cls, model: RewardModel, max_tokens: int = 0, batch_tokens: int = 0, prefix_cache_tokens: int = 0
    ) -> "Engine":
        """Of a loaded model.

        Args:
          max_tokens: longest sequence; 0 = the format's, `LONGEST` at most.
          batch_tokens: tokens of a call at most, one row at least; 0 = the scorer's own.
          prefix_cache_tokens: whose keys and values are kept from batch to batch.

        Raises:
          ValueError: `max_tokens` is more than the format's or leaves no room for text; or nothing can be kept of such a model.
        """
        most = model.format.max_length
        if max_tokens > most:
            raise ValueError(f"--max_tokens={max_tokens} is more than the model's format takes ({most}); lower it")
        longest = max_tokens or min(most, LONGEST)
        form = dataclasses.replace(model.format, max_length=longest)
        encoder = Encoder(model.tokenizer, form, row_tokens=2 * longest)
        rewards, tiled = model.in_tiles(_block())
        rows = shards(model.mesh, RULES, "rows") if model.mesh else 1
        shapes = ladder(longest, batch_tokens or model.scorer.batch_tokens, tiled, rows)
        quadratic = (
            0.0 if tiled else 1 / (12 * model.config.width)
        )  # a layer has 12 D² products a token, and T · D of attention
        prefixes = _prefixes(model, prefix_cache_tokens, longest) if prefix_cache_tokens else None
        return cls(
            rewards, model.params, encoder, shapes, quadratic, model.config.vocab_size, fingerprint(model), prefixes,
            _at_once(model, prefixes),
        )  # fmt: skip

    @property
    def kept(self) -> Kept | None:
        """Of `ladder.plan`."""
        return self.prefixes.kept if self.prefixes else None

    def encoding(self, cut: bool) -> Encoding:
        """Items → sequences for this model."""
        return Encoding(self.encoder, cut, self.vocabulary)

    def compile(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Runs every shape once, on nothing."""
        for n, shape in enumerate(self.shapes, 1):
            say(f"compiling shape {n} of {len(self.shapes)}: {shape.rows} × {shape.row_tokens} tokens")
            np.asarray(self.rewards(self.params, shape.empty()))
            if self.prefixes:
                self.prefixes.compile(self.params, shape)

    def run(self, batch: Batch) -> dict[bytes, np.ndarray]:
        """Sequence → its reward, fp32, of shape () or of members [K]."""
        forest, step = batch.forest(), self.prefixes and self.prefixes.step(batch)
        if self.prefixes and step:
            values = self.prefixes.run(self.params, forest, step)
        else:
            values = np.asarray(self.rewards(self.params, forest))
        return {
            batch.sequences[member]: values[r, g, n]
            for r, row in enumerate(batch.rows)
            for g, group in enumerate(row)
            for n, member in enumerate(group.members)
        }

    def combined(self, values_SN: np.ndarray) -> list[float]:
        """One reward an answer: the mean over references, of members what they combine to.

        Args:
          values_SN: [references, answers], of members [references, answers, K].
        """
        mean = np.asarray(values_SN, np.float64).mean(axis=0)
        found = self.rewards.combine(mean) if isinstance(self.rewards, OfMembers) else mean
        return [float(x) for x in found]


def _block() -> int:
    return CPU_BLOCK if jax.default_backend() == "cpu" else BLOCK


def _at_once(model: RewardModel, prefixes: Prefixes | None) -> int:
    """More than one where nothing is kept from one to the next, no two programs could wait for each other's devices, and there is
    no second memory to run out of."""
    alone = prefixes is None and (model.mesh is None or model.mesh.size == 1)
    return AT_ONCE if alone and jax.default_backend() == "cpu" else 1


def _prefixes(model: RewardModel, tokens: int, longest: int) -> Prefixes:
    config = model.config_in_tiles(_block())
    if config is None:
        raise ValueError(
            "--prefix_cache_tokens is for a single model, and this one has several members; leave the option out"
        )
    if model.mesh:
        raise ValueError(
            f"--prefix_cache_tokens keeps them on one device, and the model runs on {model.mesh.size}; add --mesh=one or "
            "leave the option out"
        )
    if tokens < longest:
        raise ValueError(
            f"--prefix_cache_tokens={tokens} is less than the longest text ({longest} tokens); raise it, lower --max_tokens or "
            "leave it out"
        )
    return Prefixes(config, tokens)


def fingerprint(model: RewardModel) -> str:
    """SHA-256 of what a score depends on: weights, architecture, format, tokenizer."""
    digest = hashlib.sha256(model.tokenizer.fingerprint().encode())
    for facts in (model.config, model.format):
        digest.update(json.dumps(dataclasses.asdict(facts), sort_keys=True, default=str).encode())
    for path, leaf in sorted(flat(model.params).items()):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).view(np.uint8).data)
    return digest.hexdigest()


def when_compiled(call: Callable[[], None]) -> None:
    """From now on calls back for each program that XLA compiles in this process. jax has no public way to end it."""

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        if event == COMPILED:
            call()

    jax.monitoring.register_event_duration_secs_listener(listen)


def finite(rewards: list[float]) -> bool:
    """Whether all are numbers that a trainer can use."""
    return all(map(math.isfinite, rewards))


def described(engine: Engine) -> Mapping[str, Any]:
    """For /v1/models."""
    form = engine.encoder.form
    return {"max_model_len": form.max_length, "fingerprint": engine.fingerprint, "format": form.kind}
