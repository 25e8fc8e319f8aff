"""The kernels of `attention.pallas_attention`, for TPUs: outputs, the gradient of queries, the gradient of keys and values.

A kernel walks over tiles, a block of queries and a block of keys each, and keeps a tile's scores on the chip. Keys lie along
the first axis of a tile and queries along the second, [B keys, B queries]: whatever there is one of for each query (a
maximum, a sum, a normalizer) is then a row, which a TPU keeps without padding.

Axis letters: R rows, T query tokens, S key tokens, H query heads, J key-value heads, P query heads per key-value head, E head
width, M marks of a token (group, branch, column), B tokens a block, C blocks of queries, D blocks of keys.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from rmjax.models.tiles import FLOOR, MASKED, Marks


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The order of tiles. The axes of `grid` are rows, heads, blocks of what a result is made for, and from the fourth on what
    it is a sum over; the last of them counts blocks."""

    grid: tuple[int, ...]
    near: jax.Array  # see `_nearest`
    place: Callable[..., tuple]  # place in the grid, near → row, query head, key-value head, query block, key block
    products: int  # matrix products a tile


def outputs(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R H T"]]:  # fmt: skip
    """Outputs, and for each query the logarithm of its softmax's denominator, in fp32."""
    R, H, T, E = q_RHTE.shape
    B = T // seen_RCD.shape[1]
    walk = _by_queries(q_RHTE, k_RJSE, seen_RCD, products=2)
    made = jax.ShapeDtypeStruct((R, H, E, T), q_RHTE.dtype), jax.ShapeDtypeStruct((R, H, 1, T), jnp.float32)
    given, scratch = (q_RHTE, k_RJSE, v_RJSE, *_laid(marks)), [(E, B), (1, B), (1, B)]
    out_RHET, log_total_RH1T = _call(_output_kernel, walk, B, "qkkmn", given, "ol", made, scratch, interpret)
    return out_RHET.swapaxes(2, 3), log_total_RH1T[:, :, 0]


def gradients(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], log_total_RHT: Float[Array, "R H T"],
    delta_RHT: Float[Array, "R H T"], d_out_RHTE: Float[Array, "R H T E"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R J S E"], Float[Array, "R J S E"]]:  # fmt: skip
    """Of queries, and in fp32 of keys and of values. delta: the sum over E of output times its gradient."""
    R, H, T, E = q_RHTE.shape
    B = T // seen_RCD.shape[1]
    of_each = (log_total_RHT[:, :, None], delta_RHT[:, :, None])
    kinds, given = "qkkmnllq", (q_RHTE, k_RJSE, v_RJSE, *_laid(marks), *of_each, d_out_RHTE)
    of_queries = jax.ShapeDtypeStruct((R, H, E, T), q_RHTE.dtype)
    of_keys = jax.ShapeDtypeStruct(k_RJSE.shape, jnp.float32)
    walk = _by_queries(q_RHTE, k_RJSE, seen_RCD, products=3)
    (d_q_RHET,) = _call(_query_kernel, walk, B, kinds, given, "o", (of_queries,), [(E, B)], interpret)
    walk = _by_keys(q_RHTE, k_RJSE, seen_RCD, products=4)
    return d_q_RHET.swapaxes(2, 3), *_call(
        _key_kernel, walk, B, kinds, given, "kk", (of_keys,) * 2, [(B, E)] * 2, interpret
    )


def _laid(marks: Marks) -> tuple[Int[Array, "R 3 T"], Int[Array, "R S 3"]]:
    """Of queries along the second axis of a tile."""
    return marks[0].transpose(0, 2, 1), marks[1]


def _by_queries(q_RHTE: Array, k_RJSE: Array, seen_RCD: Array, products: int) -> _Walk:
    (R, H), (_, C, D), P = q_RHTE.shape[:2], seen_RCD.shape, q_RHTE.shape[1] // k_RJSE.shape[1]

    def place(r, h, i, j, near):
        return r, h, jax.lax.div(h, P), i, near[(r * C + i) * D + j]

    return _Walk((R, H, C, D), _nearest(seen_RCD), place, products)


def _by_keys(q_RHTE: Array, k_RJSE: Array, seen_RCD: Array, products: int) -> _Walk:
    (R, J), (_, C, D), P = k_RJSE.shape[:2], seen_RCD.shape, q_RHTE.shape[1] // k_RJSE.shape[1]

    def place(r, j, s, p, i, near):
        return r, j * P + p, j, near[(r * D + s) * C + i], s

    return _Walk((R, J, D, P, C), _nearest(seen_RCD.transpose(0, 2, 1)), place, products)


def _nearest(seen_RAB: Bool[Array, "R A B"]) -> Int[Array, " RAB"]:
    """For every step along the last axis the block that is to lie on the chip: the step's own if it is seen, else the next one
    that is, so that it is fetched early and nothing else is, and after the last one that one. A tile is computed where
    this is the step's own number."""
    steps = seen_RAB.shape[-1]
    numbers = jnp.arange(steps, dtype=jnp.int32)
    coming = jax.lax.cummin(jnp.where(seen_RAB, numbers, steps), axis=2, reverse=True)
    last = jnp.max(jnp.where(seen_RAB, numbers, 0), axis=2, keepdims=True)
    return jnp.where(coming < steps, coming, last).reshape(-1)


def _specs(kinds: str, walk: _Walk, B: int, E: int) -> list[pl.BlockSpec]:
    """What of an array lies on the chip in a step, by its kind: q, k, and o the transpose of q; l one number a query; m, n
    marks."""
    blocks: Mapping[str, tuple[tuple[int, ...], Callable]] = {
        "q": ((1, 1, B, E), lambda r, h, j, i, s: (r, h, i, 0)),
        "k": ((1, 1, B, E), lambda r, h, j, i, s: (r, j, s, 0)),
        "o": ((1, 1, E, B), lambda r, h, j, i, s: (r, h, 0, i)),
        "l": ((1, 1, 1, B), lambda r, h, j, i, s: (r, h, 0, i)),
        "m": ((1, 3, B), lambda r, h, j, i, s: (r, 0, i)),
        "n": ((1, B, 3), lambda r, h, j, i, s: (r, s, 0)),
    }

    def spec(block, index):
        return pl.BlockSpec(block, lambda *at: index(*walk.place(*at)))

    return [spec(*blocks[kind]) for kind in kinds]


def _call(
    kernel: Callable, walk: _Walk, B: int, kinds: str, given: Sequence[Array], kinds_made: str,
    made: Sequence[jax.ShapeDtypeStruct], scratch: Sequence[tuple[int, int]], interpret: bool,
) -> Any:  # fmt: skip
    """Runs `kernel` on arrays of these kinds (see `_specs`), with room on the chip for fp32 numbers between steps. What it costs
    is stated for the compiler and for `parallel.roofline`: that of the tiles on and below the diagonal, since what a batch
    leaves out is not known beforehand."""
    grid, E, itemsize = walk.grid, given[0].shape[-1], given[0].dtype.itemsize
    tiles = (math.prod(grid) + math.prod(grid[:-1])) // 2
    arrays: list[Any] = [*given, *made]
    once = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    anew = 2 * B * E * itemsize  # for each tile: keys and values, or queries and the gradient of the output
    semantics: Any = ("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3)
    run = pl.pallas_call(
        functools.partial(kernel, grid=grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=grid, in_specs=_specs(kinds, walk, B, E),
            out_specs=_specs(kinds_made, walk, B, E),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=list(made), interpret=interpret, name=kernel.__name__.strip("_"),
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        cost_estimate=pl.CostEstimate(
            flops=2 * tiles * walk.products * B * B * E, transcendentals=tiles * B * B, bytes_accessed=once + tiles * anew
        ),
    )  # fmt: skip
    return run(walk.near, *given)


def _step(near, grid: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Of this step: it is the first of its sum; the tile is seen; it is the last."""
    sums = range(3, len(grid))
    first = functools.reduce(jnp.logical_and, [pl.program_id(n) == 0 for n in sums])
    last = functools.reduce(jnp.logical_and, [pl.program_id(n) == grid[n] - 1 for n in sums])
    step = pl.program_id(len(grid) - 1)
    return first, near[(pl.program_id(0) * grid[2] + pl.program_id(2)) * grid[-1] + step] == step, last


def _dot(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    """A product that sums over these axes, in fp32; products of fp32 are not rounded to bf16 first."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _scores(q_ref, k_ref, queries_ref, keys_ref) -> Float[Array, "B B"]:
    """Of a tile, MASKED where the query does not see the key."""
    scores = _dot(k_ref[0, 0], q_ref[0, 0], 1, 1)
    group_k, leaf_k, column_k = (jnp.broadcast_to(keys_ref[0, :, n : n + 1], scores.shape) for n in range(3))
    group_q, leaf_q, column_q = (queries_ref[0, n : n + 1, :] for n in range(3))
    visible = (group_k == group_q) & ((leaf_k == 0) | (leaf_k == leaf_q)) & (column_k <= column_q)
    return jnp.where(visible, scores, MASKED)


def _output_kernel(near, q_ref, k_ref, v_ref, queries_ref, keys_ref, out_ref, log_total_ref, acc, top, total, *, grid):
    first, seen, last = _step(near, grid)

    @pl.when(first)
    def _():
        acc[...], total[...] = jnp.zeros_like(acc), jnp.zeros_like(total)
        top[...] = jnp.full_like(top, FLOOR)

    @pl.when(seen)
    def _():
        scores = _scores(q_ref, k_ref, queries_ref, keys_ref)
        higher = jnp.maximum(top[...], jnp.max(scores, axis=0, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(top[...] - higher)
        acc[...] = acc[...] * shrink + _dot(v_ref[0, 0], weights.astype(v_ref.dtype), 0, 0)
        total[...] = total[...] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        top[...] = higher

    @pl.when(last)
    def _():
        safe = jnp.where(total[...] > 0, total[...], 1.0)
        out_ref[0, 0] = (acc[...] / safe).astype(out_ref.dtype)
        log_total_ref[0, 0] = top[...] + jnp.log(safe)


def _weights(q_ref, k_ref, v_ref, queries_ref, keys_ref, log_total_ref, delta_ref, d_out_ref) -> tuple[Array, Array]:
    """Attention weights of a tile, and the gradient of its scores."""
    weights = jnp.exp(_scores(q_ref, k_ref, queries_ref, keys_ref) - log_total_ref[0, 0])
    d_weights = _dot(v_ref[0, 0], d_out_ref[0, 0], 1, 1)
    return weights, (weights * (d_weights - delta_ref[0, 0])).astype(q_ref.dtype)


def _query_kernel(near, q_ref, k_ref, *rest, grid):
    *others, d_q_ref, acc = rest
    first, seen, last = _step(near, grid)

    @pl.when(first)
    def _():
        acc[...] = jnp.zeros_like(acc)

    @pl.when(seen)
    def _():
        _, d_scores = _weights(q_ref, k_ref, *others)
        acc[...] += _dot(k_ref[0, 0], d_scores, 0, 0)

    @pl.when(last)
    def _():
        d_q_ref[0, 0] = acc[...].astype(d_q_ref.dtype)


def _key_kernel(near, q_ref, *rest, grid):
    *others, d_k_ref, d_v_ref, k_acc, v_acc = rest
    first, seen, last = _step(near, grid)

    @pl.when(first)
    def _():
        k_acc[...], v_acc[...] = jnp.zeros_like(k_acc), jnp.zeros_like(v_acc)

    @pl.when(seen)
    def _():
        weights, d_scores = _weights(q_ref, *others)
        k_acc[...] += _dot(d_scores, q_ref[0, 0], 1, 0)
        v_acc[...] += _dot(weights.astype(q_ref.dtype), others[-1][0, 0], 1, 0)  # d_out

    @pl.when(last)
    def _():
        d_k_ref[0, 0], d_v_ref[0, 0] = k_acc[...], v_acc[...]
