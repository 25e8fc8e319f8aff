"""Attention under the forest mask, block by block: memory grows with the row's length, not with its square.

Axis letters beside the transformer's (R rows, T tokens, H heads, J key-value heads, P query heads per key-value head, E
head width): C blocks a row, B tokens a block. The mask is never built as a whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

SAVED = "attention"
"""What the backward pass would have to form again: its output and normalizers carry this name for remat policies."""

_FLOOR = -1e30  # finite, so that a row that attends to nothing is free of NaN
# What is not visible is masked before the exponential: after it, it could be infinite, and its derivative NaN (MetaRM's second
# order differentiates the backward pass).

MASKED, FLOOR = -1e30, -1e29
"""Of the kernels: a score that is not visible, and where maxima start: so far above it that exp(MASKED − FLOOR) is 0."""

Marks = tuple[Int[Array, "R T 3"], Int[Array, "R S 3"]]
"""Group, leaf and column of queries and of keys; the keys' group is −1 where they are padding."""


@flax.struct.dataclass
class ForestMask:
    """Which token may attend to which, by its parts: see `data.forest.attention_mask`."""

    group_RT: Int[Array, "R T"]  # 0 = padding
    leaf_RT: Int[Array, "R T"]  # 0 = the shared prefix


def tiles_seen(queries_RCBM: Int[Array, "R C B 3"], keys_RDBM: Int[Array, "R D B 3"]) -> Bool[Array, "R C D"]:
    """Which tiles (query block, key block) may have a token that sees another, by the ranges of the blocks' marks: group, leaf
    and column. A tile may be in it although no token sees one, but not the other way round."""

    def ranges(marks_RCBM):
        real, most = marks_RCBM[..., :1] > 0, jnp.iinfo(jnp.int32).max
        return (
            jnp.min(marks_RCBM, axis=2, where=real, initial=most),
            jnp.max(marks_RCBM, axis=2, where=real, initial=-1),
        )

    q_low, q_high = (x[:, :, None] for x in ranges(queries_RCBM))
    k_low, k_high = (x[:, None] for x in ranges(keys_RDBM))
    overlap = (k_low <= q_high) & (q_low <= k_high)
    return overlap[..., 0] & ((k_low[..., 1] == 0) | overlap[..., 1]) & (k_low[..., 2] <= q_high[..., 2])


def blockwise(
    q_RTHE: Float[Array, "R T H E"],
    k_RTJE: Float[Array, "R T J E"],
    v_RTJE: Float[Array, "R T J E"],
    mask: ForestMask,
    block: int,
) -> Float[Array, "R T H E"]:
    """Grouped-query attention, softmax in fp32; a padding token gives 0. Tiles above the diagonal are left out, and
    on one device those in which no token may attend to another, of all rows: attention in a row of many short groups costs
    what they would cost in rows of their own.

    block: tokens of a query block and of a key block. What lies in memory at once are H · block² scores of a row.
    Source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4.
    """
    R, T, H, E = q_RTHE.shape
    J = k_RTJE.shape[2]
    B = min(block, -(-T // 2))
    C = 2 * -(-T // (2 * B))  # even: see `_schedule`

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, C * B - T)) + ((0, 0),) * (x.ndim - 2))

    q_CRJPBE = pad(q_RTHE * E**-0.5).reshape(R, C, B, J, H // J, E).transpose(1, 0, 3, 4, 2, 5)
    k_CRJBE, v_CRJBE = (pad(x).reshape(R, C, B, J, E).transpose(1, 0, 3, 2, 4) for x in (k_RTJE, v_RTJE))
    marks_CRB = jax.tree.map(lambda x: pad(x).reshape(R, C, B).transpose(1, 0, 2), mask)
    out_CRJPBE = _attend(q_CRJPBE, k_CRJBE, v_CRJBE, marks_CRB)
    return out_CRJPBE.transpose(1, 0, 4, 2, 3, 5).reshape(R, C * B, H, E)[:, :T]


@jax.custom_vjp
def _attend(q_CRJPBE, k_CRJBE, v_CRJBE, marks_CRB: ForestMask):
    return _forward(q_CRJPBE, k_CRJBE, v_CRJBE, marks_CRB)[0]


def _schedule(blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lower triangle of `blocks` × `blocks` tiles as a rectangle [blocks / 2, blocks + 1]: query block a with its a + 1
    key blocks, then query block blocks − 1 − a with its blocks − a. (slot, query block, key block), the slot 0 or 1."""
    a, t = np.arange(blocks // 2)[:, None], np.arange(blocks + 1)[None]
    slot = t > a
    found = slot, np.where(slot, blocks - 1 - a, a), np.where(slot, t - a - 1, t)
    return tuple(x.astype(np.int32) for x in found)  # type: ignore[return-value]


def _needed(marks_CRB: ForestMask) -> Bool[Array, "C C"] | None:
    """The tiles (query block, key block) that are seen in some row. None over several devices, where rows would have to ask each
    other."""
    if jax.sharding.get_abstract_mesh().size > 1:
        return None
    C, R, B = marks_CRB.group_RT.shape
    column_CRB = jnp.broadcast_to(jnp.arange(C * B).reshape(C, 1, B), (C, R, B))
    marks_RCBM = jnp.stack([marks_CRB.group_RT, marks_CRB.leaf_RT, column_CRB], axis=-1).swapaxes(0, 1)
    return jnp.any(tiles_seen(marks_RCBM, marks_RCBM), axis=0)


def _if_needed(needed_CC: jax.Array | None, tile: Callable) -> Callable:
    """The body of a scan over tiles (slot, query block, key block), which keeps the carry where a tile is not needed."""
    if needed_CC is None:
        return tile

    def body(carry, step):
        _, i, j = step
        return jax.lax.cond(needed_CC[i, j], tile, lambda carry, step: (carry, None), carry, step)

    return body


def _bound(q_CRJPBE: jax.Array, marks_CRB: ForestMask) -> Any:
    """Queries, marks, needed tiles and the schedule, of which XLA and JAX know no more than that they belong together. The tiles'
    masks are alike in all layers: they would be moved out of the scan over layers, and all of a row's be kept."""
    return jax.lax.optimization_barrier((q_CRJPBE, marks_CRB, _needed(marks_CRB), _schedule(len(q_CRJPBE))))


def _unfold(x_A2: jax.Array) -> jax.Array:
    """[C / 2, 2, …] in the schedule's order → [C, …] in that of the row."""
    return jnp.concatenate([x_A2[:, 0], x_A2[::-1, 1]])


def _visible(marks_CRB: ForestMask, i: jax.Array, j: jax.Array) -> jax.Array:
    """The mask of query block i and key block j, [R, 1, 1, B, B]."""
    (group_RB, leaf_RB), (group_RS, leaf_RS) = ((marks_CRB.group_RT[n], marks_CRB.leaf_RT[n]) for n in (i, j))
    B = group_RB.shape[1]
    same = (group_RB[:, :, None] == group_RS[:, None]) & (group_RB > 0)[:, :, None]
    branch = (leaf_RS[:, None] == 0) | (leaf_RS[:, None] == leaf_RB[:, :, None])
    earlier = (i * B + jnp.arange(B))[:, None] >= (j * B + jnp.arange(B))[None]
    return (same & branch & earlier)[:, None, None]


def _scores(q_RJPBE, k_RJSE):
    return jnp.einsum("rjpbe,rjse->rjpbs", q_RJPBE, k_RJSE, preferred_element_type=jnp.float32)


def _forward(q_CRJPBE, k_CRJBE, v_CRJBE, marks_CRB):
    """Outputs, and for each query the logarithm of its softmax's denominator."""
    q_CRJPBE, marks_CRB, needed_CC, schedule = _bound(q_CRJPBE, marks_CRB)
    _, *sizes = q_CRJPBE.shape
    empty = (
        jnp.zeros((2, *sizes), jnp.float32),
        jnp.full((2, *sizes[:-1]), _FLOOR, jnp.float32),
        jnp.zeros((2, *sizes[:-1]), jnp.float32),
    )

    def tile(carry, step):
        slot, i, j = step
        out, top, total = (x[slot] for x in carry)
        visible, scores = _visible(marks_CRB, i, j), _scores(q_CRJPBE[i], k_CRJBE[j])
        higher = jnp.maximum(top, jnp.max(scores, axis=-1, where=visible, initial=_FLOOR))
        weights = jnp.exp(jnp.where(visible, scores - higher[..., None], -jnp.inf))
        shrink = jnp.exp(top - higher)
        more = jnp.einsum(
            "rjpbs,rjse->rjpbe", weights.astype(v_CRJBE.dtype), v_CRJBE[j], preferred_element_type=jnp.float32
        )
        new = out * shrink[..., None] + more, higher, total * shrink + jnp.sum(weights, axis=-1)
        return tuple(old.at[slot].set(x) for old, x in zip(carry, new, strict=True)), None

    def pair(_, steps):
        (out, top, total), _ = jax.lax.scan(_if_needed(needed_CC, tile), empty, steps)
        total = jnp.where(total > 0, total, 1.0)
        return None, ((out / total[..., None]).astype(q_CRJPBE.dtype), top + jnp.log(total))

    return jax.tree.map(_unfold, jax.lax.scan(pair, None, schedule)[1])


def _save(q, k, v, marks):
    out, log_total = (checkpoint_name(x, SAVED) for x in _forward(q, k, v, marks))
    return out, (q, k, v, marks, out, log_total)


def _backward(saved, d_out_CRJPBE):
    q_CRJPBE, k_CRJBE, v_CRJBE, marks_CRB, out_CRJPBE, log_total_CRJPB = saved
    q_CRJPBE, marks_CRB, needed_CC, schedule = _bound(q_CRJPBE, marks_CRB)
    _, *sizes = q_CRJPBE.shape
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    delta_CRJPB = dot("crjpbe,crjpbe->crjpb", d_out_CRJPBE, out_CRJPBE)

    def tile(carry, step):
        (d_q, d_k, d_v), (slot, i, j) = carry, step
        q, k, v, d_out = q_CRJPBE[i], k_CRJBE[j], v_CRJBE[j], d_out_CRJPBE[i]
        exponents = _scores(q, k) - log_total_CRJPB[i][..., None]
        weights = jnp.exp(jnp.where(_visible(marks_CRB, i, j), exponents, -jnp.inf))
        d_weights = _scores(d_out, v)
        d_scores = (weights * (d_weights - delta_CRJPB[i][..., None])).astype(q.dtype)
        d_q = d_q.at[slot].add(dot("rjpbs,rjse->rjpbe", d_scores, k))
        d_k = d_k.at[j].add(dot("rjpbe,rjpbs->rjes", q, d_scores))
        d_v = d_v.at[j].add(dot("rjpbe,rjpbs->rjes", d_out, weights.astype(q.dtype)))
        return (d_q, d_k, d_v), None

    def pair(d_kv, steps):
        start = (jnp.zeros((2, *sizes), jnp.float32), *d_kv)
        (d_q, *d_kv), _ = jax.lax.scan(_if_needed(needed_CC, tile), start, steps)
        return d_kv, d_q.astype(q_CRJPBE.dtype)

    # [C, R, J, E, B] until the end: so the smaller factor of the two products is the one that XLA turns on a CPU.
    start = [jnp.zeros(x.swapaxes(-1, -2).shape, jnp.float32) for x in (k_CRJBE, v_CRJBE)]
    d_kv, d_q = jax.lax.scan(pair, start, schedule)
    d_k, d_v = (d.swapaxes(-1, -2).astype(x.dtype) for d, x in zip(d_kv, (k_CRJBE, v_CRJBE), strict=True))
    return _unfold(d_q), d_k, d_v, None


_attend.defvjp(_save, _backward)
