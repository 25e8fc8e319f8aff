"""The kernels of `attention.blockwise`, for any device: those of `tpu_kernels` as scans over tiles, which XLA compiles.

Axis letters as there; A pairs of query blocks. Blocks come first, for a scan to take them one by one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rmjax.models.tiles import FLOOR, Marks, capped

# What is not visible is masked before the exponential: after it, it could be infinite, and its derivative NaN (methods of
# second order differentiate the backward pass).


def outputs(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], interpret: bool = False, softcap: float = 0.0,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R H T"]]:  # fmt: skip
    """Outputs, and for each query the logarithm of its softmax's denominator, in fp32. C must be even. softcap: of scores."""
    del interpret
    (_, C, D), J = seen_RCD.shape, k_RJSE.shape[1]
    k_DRJBE, v_DRJBE = (_in_blocks(x, D) for x in (k_RJSE, v_RJSE))
    q_CRJPBE, see, schedule = _bound(_of_queries(q_RHTE, J, C), marks, seen_RCD)
    sizes = q_CRJPBE.shape[1:]
    empty = (
        jnp.zeros((2, *sizes), jnp.float32),
        jnp.full((2, *sizes[:-1]), FLOOR, jnp.float32),
        jnp.zeros((2, *sizes[:-1]), jnp.float32),
    )

    def tile(carry, step):
        slot, i, j = step
        out, top, total = (x[slot] for x in carry)
        visible, scores = see(i, j), capped(_scores(q_CRJPBE[i], k_DRJBE[j]), softcap)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1, where=visible, initial=FLOOR))
        weights = jnp.exp(jnp.where(visible, scores - higher[..., None], -jnp.inf))
        shrink = jnp.exp(top - higher)
        more = jnp.einsum(
            "rjpbs,rjse->rjpbe", weights.astype(v_DRJBE.dtype), v_DRJBE[j], preferred_element_type=jnp.float32
        )
        new = out * shrink[..., None] + more, higher, total * shrink + jnp.sum(weights, axis=-1)
        return tuple(old.at[slot].set(x) for old, x in zip(carry, new, strict=True)), None

    def pair(_, steps):
        (out, top, total), _ = jax.lax.scan(_where_needed(tile), empty, steps)
        total = jnp.where(total > 0, total, 1.0)
        return None, ((out / total[..., None]).astype(q_CRJPBE.dtype), top + jnp.log(total))

    out_A2RJPBE, log_total_A2RJPB = jax.lax.scan(pair, None, schedule)[1]
    return _unfold(out_A2RJPBE), _unfold(log_total_A2RJPB)


def gradients(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], log_total_RHT: Float[Array, "R H T"],
    delta_RHT: Float[Array, "R H T"], d_out_RHTE: Float[Array, "R H T E"], interpret: bool = False, softcap: float = 0.0,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R J S E"], Float[Array, "R J S E"]]:  # fmt: skip
    """Of queries, and in fp32 of keys and of values. delta: the sum over E of output times its gradient."""
    del interpret
    (_, C, D), J = seen_RCD.shape, k_RJSE.shape[1]
    k_DRJBE, v_DRJBE = (_in_blocks(x, D) for x in (k_RJSE, v_RJSE))
    q_CRJPBE, see, schedule = _bound(_of_queries(q_RHTE, J, C), marks, seen_RCD)
    log_total_CRJPB, delta_CRJPB, d_out_CRJPBE = (_of_queries(x, J, C) for x in (log_total_RHT, delta_RHT, d_out_RHTE))
    sizes, dot = q_CRJPBE.shape[1:], functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def tile(carry, step):
        (d_q, d_k, d_v), (slot, i, j) = carry, step
        q, k, v, d_out = q_CRJPBE[i], k_DRJBE[j], v_DRJBE[j], d_out_CRJPBE[i]
        scores = capped(_scores(q, k), softcap)
        weights = jnp.exp(jnp.where(see(i, j), scores - log_total_CRJPB[i][..., None], -jnp.inf))
        d_scores = weights * (_scores(d_out, v) - delta_CRJPB[i][..., None])
        if softcap:
            d_scores = d_scores * (1 - jnp.square(scores / softcap))
        d_scores = d_scores.astype(q.dtype)
        d_q = d_q.at[slot].add(dot("rjpbs,rjse->rjpbe", d_scores, k))
        d_k = d_k.at[j].add(dot("rjpbe,rjpbs->rjes", q, d_scores))
        d_v = d_v.at[j].add(dot("rjpbe,rjpbs->rjes", d_out, weights.astype(q.dtype)))
        return (d_q, d_k, d_v), None

    def pair(d_kv, steps):
        start = (jnp.zeros((2, *sizes), jnp.float32), *d_kv)
        (d_q, *d_kv), _ = jax.lax.scan(_where_needed(tile), start, steps)
        return d_kv, d_q.astype(q_CRJPBE.dtype)

    # [D, R, J, E, B] until the end: so the smaller factor of the two products is the one that XLA turns on a CPU.
    start = [jnp.zeros(x.swapaxes(-1, -2).shape, jnp.float32) for x in (k_DRJBE, v_DRJBE)]
    d_kv, d_q_A2RJPBE = jax.lax.scan(pair, start, schedule)
    d_k, d_v = (d_DRJEB.transpose(1, 2, 0, 4, 3).reshape(k_RJSE.shape) for d_DRJEB in d_kv)
    return _unfold(d_q_A2RJPBE), d_k, d_v


def _in_blocks(x_RHT_: Array, blocks: int) -> Array:
    """[R, H, T, …] → [C, R, H, B, …]."""
    R, H, T, *rest = x_RHT_.shape
    return jnp.moveaxis(x_RHT_.reshape(R, H, blocks, T // blocks, *rest), 2, 0)


def _of_queries(x_RHT_: Array, kv_heads: int, blocks: int) -> Array:
    """[R, H, T, …] → [C, R, J, P, B, …]."""
    x_CRHB_ = _in_blocks(x_RHT_, blocks)
    C, R, H, *rest = x_CRHB_.shape
    return x_CRHB_.reshape(C, R, kv_heads, H // kv_heads, *rest)


def _unfold(x_A2RJPB_: Array) -> Array:
    """[A, 2, R, J, P, B, …] in the schedule's order → [R, H, T, …] in that of the row."""
    x_CRJPB_ = jnp.concatenate([x_A2RJPB_[:, 0], x_A2RJPB_[::-1, 1]])
    C, R, J, P, B, *rest = x_CRJPB_.shape
    return jnp.moveaxis(x_CRJPB_, 0, 3).reshape(R, J * P, C * B, *rest)


def _schedule(queries: int, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles of so many blocks as [queries / 2, n]: those of query block a, then those of block queries − 1 − a; each a slot (0 or
    1), a query block, a key block. Of as many keys as queries the lower triangle, a + 1 of block a; else all: the queries are
    then a part of the row, and which it is only the marks know."""
    a, triangle = np.arange(queries // 2)[:, None], queries == keys
    t = np.arange(keys + 1 if triangle else 2 * keys)[None]
    first = a + 1 if triangle else keys  # tiles of the pair's first block
    slot = t >= first
    found = slot, np.where(slot, queries - 1 - a, a), np.where(slot, t - first, t)
    return tuple(np.broadcast_to(x, (queries // 2, t.size)).astype(np.int32) for x in found)  # type: ignore[return-value]


def _bound(q_CRJPBE: Array, marks: Marks, seen_RCD: Array) -> tuple[Array, Callable, Any]:
    """Queries; a tile's mask [R, 1, 1, B, B] as a function of query block and key block; the schedule, with a flag whether some
    row has need of a tile.

    XLA and JAX know no more of them than that they belong together. The tiles' masks are alike in all layers: they would be
    moved out of the scan over layers, and all of a row's be kept.
    """
    C, D = seen_RCD.shape[1:]
    slot, i, j = _schedule(C, D)
    # An array for each mark: cut from one of all three, they make a tile's mask several times as slow on a CPU.
    of_blocks = [
        [_in_blocks(x_RTM[:, None, :, m], n)[:, :, 0] for m in range(x_RTM.shape[-1])]
        for x_RTM, n in zip(marks, (C, D), strict=True)
    ]
    steps = (jnp.any(seen_RCD, axis=0)[i, j], slot, i, j)
    q_CRJPBE, (queries, keys), steps = jax.lax.optimization_barrier((q_CRJPBE, of_blocks, steps))

    def see(i, j):
        group, leaf, column, *before = (x_CRB[i][:, :, None] for x_CRB in queries)
        key_group, key_leaf, key_column, *position = (x_DRB[j][:, None] for x_DRB in keys)
        branch = (key_leaf == 0) | (key_leaf == leaf)
        seen = (key_group == group) & branch & (key_column <= column)
        return (seen & (position[0] > before[0]) if position else seen)[:, None, None]

    return q_CRJPBE, see, steps


def _where_needed(tile: Callable) -> Callable:
    """The body of a scan over a schedule, which keeps the carry where a tile is not needed."""

    def body(carry, step):
        needed, *place = step
        return jax.lax.cond(needed, tile, lambda carry, _: (carry, None), carry, place)

    return body


def _scores(q_RJPBE: Array, k_RJSE: Array) -> Array:
    return jnp.einsum("rjpbe,rjse->rjpbs", q_RJPBE, k_RJSE, preferred_element_type=jnp.float32)
