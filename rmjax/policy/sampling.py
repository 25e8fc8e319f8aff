"""Batched sampling from a language model with a key-value cache.

A sequence's tokens depend only on the parameters, its prompt, the decoding rule and its own key: not on the batch that
it is sampled in. Axis letters as in `models.transformer`; B prompts, N samples of each, R = B * N rows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rmjax.models.transformer import Past, Transformer, TransformerConfig

COLUMNS = {"k": 4, "v": 3, "position": 2}
"""The axis of a past's columns."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the next token is drawn. Temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0  # nucleus mass, in (0, 1]
    top_k: int = 0  # candidates kept; 0 = all

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"{self}: want temperature >= 0, 0 < top_p <= 1, top_k >= 0")


def draw(logits_RV: Float[Array, "R V"], keys_R: Array, rule: dict[str, Array], candidates: int) -> Int[Array, "R"]:
    """One token a row: temperature, then top-k, then top-p (the order of the `transformers` library), then a draw.

    `rule` holds `temperature`, `top_p`, `top_k`, each [R]. `candidates` is the static number of best tokens looked at:
    the largest top_k, or V where a row wants them all; 0 = no row cuts, and none is greedy: nothing is sorted, and other
    tokens are drawn than with V.
    """
    if not candidates:
        return jax.vmap(jax.random.categorical)(keys_R, logits_RV / rule["temperature"][:, None])
    values_RK, ids_RK = jax.lax.top_k(logits_RV, candidates)
    rank_K = jnp.arange(candidates)
    greedy_R = rule["temperature"] == 0
    kept_R = jnp.where(greedy_R, 1, jnp.where(rule["top_k"] == 0, candidates, rule["top_k"]))
    scaled_RK = values_RK / jnp.where(greedy_R, 1.0, rule["temperature"])[:, None]
    scaled_RK = jnp.where(rank_K < kept_R[:, None], scaled_RK, -jnp.inf)
    probability_RK = jax.nn.softmax(scaled_RK, axis=-1)
    before_RK = jnp.cumsum(probability_RK, axis=-1) - probability_RK
    scaled_RK = jnp.where(before_RK < rule["top_p"][:, None], scaled_RK, -jnp.inf)
    choice_R = jax.vmap(jax.random.categorical)(keys_R, scaled_RK)
    return jnp.take_along_axis(ids_RK, choice_R[:, None], axis=1)[:, 0]


def rules(decodings: Sequence[Decoding], vocab_size: int) -> tuple[dict[str, np.ndarray], int]:
    """(`rule`, `candidates`) of `draw` for one decoding rule a row."""
    columns = {
        "temperature": np.array([d.temperature for d in decodings], np.float32),
        "top_p": np.array([d.top_p for d in decodings], np.float32),
        "top_k": np.array([d.top_k for d in decodings], np.int32),
    }
    whole = any(d.top_k == 0 and d.temperature > 0 for d in decodings)
    return columns, vocab_size if whole else min(vocab_size, max(1, *(d.top_k for d in decodings)))


@functools.partial(jax.jit, static_argnames=("config", "candidates", "samples", "max_new_tokens", "stop"))
def generate(
    params: Any,
    prefix: tuple[Array, Array],
    prompts: tuple[Array, Array],
    keys_R: Array,
    rule: dict[str, Array],
    *,
    config: TransformerConfig,
    candidates: int,
    samples: int,
    max_new_tokens: int,
    stop: tuple[int, ...],
) -> Int[Array, "R M"]:
    """Samples `samples` continuations of each prompt; row b * samples + n is sample n of prompt b.

    `prefix` (ids_1T, valid_1T) stands before every prompt and is run once; `prompts` (ids_BT, valid_BT) once per
    prompt, not per sample; both left-padded (`left_pad`). Returns [R, max_new_tokens] ids; from the first stop token on
    (inclusive) a row holds −1. Decoding ends when every row has stopped.

    Raises:
      ValueError: prefix, prompts and new tokens may be longer than the architecture's rotary positions allow.
    """
    model = Transformer(config)
    M = max_new_tokens
    (prefix_1T, prefix_valid_1T), (prompts_BT, valid_BT) = prefix, prompts
    config.check_length(prefix_1T.shape[1] + prompts_BT.shape[1] + M, "prefix, prompt and new tokens together")
    B = prompts_BT.shape[0]
    _, past = read(model, params, prefix_1T, prefix_valid_1T, None, prefix_valid_1T[:, :0])
    past = jax.tree.map(functools.partial(jnp.repeat, repeats=B, axis=1), past)
    before_BC = jnp.repeat(prefix_valid_1T, B, axis=0)
    logits_BV, new = read(model, params, prompts_BT, valid_BT, past, before_BC)
    past = {name: jnp.concatenate([x, new[name]], COLUMNS[name]) for name, x in past.items()}
    known_BC = jnp.concatenate([before_BC, valid_BT], axis=1)
    T = known_BC.shape[1]

    fan_out = functools.partial(jnp.repeat, repeats=samples)
    past = widen(jax.tree.map(functools.partial(fan_out, axis=1), past), M)
    logits_RV, length_R = fan_out(logits_BV, axis=0), fan_out(known_BC.sum(1), axis=0)
    known_RC = jnp.pad(fan_out(known_BC, axis=0), ((0, 0), (0, M)))
    column_C = jnp.arange(T + M)

    def step(state):
        t, logits_RV, past, done_R, out_RM = state
        step_keys_R = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_R, t)
        token_R = draw(logits_RV, step_keys_R, rule, candidates)
        done_R = done_R | jnp.isin(token_R, jnp.array(stop, jnp.int32))
        out_RM = out_RM.at[:, t].set(jnp.where(done_R, -1, token_R))
        seen_RC = known_RC | ((column_C >= T) & (column_C < T + t))
        logits_RV, new = advance(model, params, token_R, length_R + t, seen_RC, past)
        return t + 1, logits_RV, write(past, new, T + t), done_R, out_RM

    def running(state):
        t, _, _, done_R, _ = state
        return (t < M) & ~jnp.all(done_R)

    R = B * samples
    start = (jnp.int32(0), logits_RV, past, jnp.zeros(R, bool), jnp.full((R, M), -1, jnp.int32))
    return jax.lax.while_loop(running, step, start)[-1]


def advance(
    model: Transformer, params: Any, token_R: Array, position_R: Array, seen_RC: Bool[Array, "R C"], past: Past
) -> tuple[Float[Array, "R V"], Past]:
    """One token more in every row: (logits of the next, what `write` puts into the past). `seen_RC`: columns of the past that a
    row sees."""
    mask_R1C = jnp.pad(seen_RC, ((0, 0), (0, 1)), constant_values=True)[:, None, :]
    found: Any = model.apply({"params": params}, token_R[:, None], position_R[:, None], mask_R1C, past, method="decode")
    return found


def read(
    model: Transformer, params: Any, ids_BT: Array, valid_BT: Array, past: Past | None, before_BC: Array
) -> tuple[Float[Array, "B V"], Past]:
    """Runs left-padded ids after `past`, whose columns `before_BC` are valid: (logits_BV of the last, new past)."""
    T = ids_BT.shape[1]
    positions_BT = jnp.maximum(before_BC.sum(1, keepdims=True) + jnp.cumsum(valid_BT, axis=1) - 1, 0)
    among_BTT = jnp.tril(jnp.ones((T, T), bool))[None] & valid_BT[:, None, :]
    earlier_BTC = jnp.repeat(before_BC[:, None, :], T, axis=1)
    mask_BTS = jnp.concatenate([earlier_BTC, among_BTT], axis=-1)
    found: Any = model.apply({"params": params}, ids_BT, positions_BT, mask_BTS, past, method="decode")
    return found


def widen(past: Past, columns: int) -> Past:
    """Room for `columns` more tokens, on the column axis of each array."""

    def wider(name: str, x: Array) -> Array:
        return jnp.pad(x, [(0, columns if axis == COLUMNS[name] else 0) for axis in range(x.ndim)])

    return {name: wider(name, x) for name, x in past.items()}


def write(past: Past, new: Any, column: jax.Array) -> Past:
    """The past with a token's keys and values in a column."""
    return {name: jax.lax.dynamic_update_slice_in_dim(x, new[name], column, COLUMNS[name]) for name, x in past.items()}


def left_pad(prompts: Sequence[Sequence[int]], multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(ids_BT, valid_BT), T the longest length rounded up to `multiple`, so that few shapes are compiled."""
    T = -(-max(1, *map(len, prompts), 1) // multiple) * multiple
    ids_BT = np.zeros((len(prompts), T), np.int32)
    valid_BT = np.zeros((len(prompts), T), bool)
    for row, prompt in enumerate(prompts):
        ids_BT[row, T - len(prompt) :] = prompt
        valid_BT[row, T - len(prompt) :] = True
    return ids_BT, valid_BT
