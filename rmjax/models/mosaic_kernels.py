"""The kernels of `attention.pallas_attention`, for GPUs of the Hopper generation, by Mosaic GPU: those of `triton_kernels`,
with the same arguments and results. What they multiply has 16 bits.

A program is one warpgroup. It holds one block of what a result is made for and walks over the blocks that it sees, in the order
of a list made beforehand, while the next one is fetched. Both factors of every product lie in shared memory: the interpreter
knows no other.

Axis letters: R rows, T query tokens, S key tokens, H query heads, J key-value heads, P query heads per key-value head, E head
width, B tokens a block, C blocks of queries, D blocks of keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array, Bool, Float

from rmjax.models.tiles import FLOOR, MASKED, Marks, apart, listed

BLOCK = 64
"""Tokens a block: the rows of a product of a warpgroup."""
SWIZZLE = 128
"""Bytes of a row of a block that lie together in shared memory."""
ALONG_ROWS, ALONG_COLUMNS = mosaic_gpu.Layout.WGMMA.reduce(1), mosaic_gpu.Layout.WGMMA.reduce(0)
"""Where the registers keep a number for each row of a tile, and one for each column."""


def outputs(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R H T"]]:  # fmt: skip
    """Outputs, and for each query the logarithm of its softmax's denominator, in fp32."""
    (R, H, T, E), dtype = q_RHTE.shape, q_RHTE.dtype
    made = jax.ShapeDtypeStruct(q_RHTE.shape, dtype), jax.ShapeDtypeStruct((R, H, T), jnp.float32)
    scratch = (*_held(1, E, dtype), mosaic_gpu.SMEM((BLOCK,), jnp.float32), _tile(BLOCK, dtype), *_fetched(E, dtype))
    given = (q_RHTE, k_RJSE, v_RJSE, *apart(marks), *listed(seen_RCD))
    return _call(_output_kernel, (T // BLOCK, H, R), given, made, scratch, interpret)


def gradients(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], log_total_RHT: Float[Array, "R H T"],
    delta_RHT: Float[Array, "R H T"], d_out_RHTE: Float[Array, "R H T E"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R J S E"], Float[Array, "R J S E"]]:  # fmt: skip
    """Of queries, and in fp32 of keys and of values. delta: the sum over E of output times its gradient."""
    (R, H, T, E), (J, S), dtype = q_RHTE.shape, k_RJSE.shape[1:3], q_RHTE.dtype
    given = (q_RHTE, k_RJSE, v_RJSE, *apart(marks), log_total_RHT, delta_RHT, d_out_RHTE)
    of_queries = (jax.ShapeDtypeStruct(q_RHTE.shape, dtype),)
    of_keys = (jax.ShapeDtypeStruct(k_RJSE.shape, jnp.float32),) * 2
    scratch = (*_held(2, E, dtype), _tile(BLOCK, dtype), *_fetched(E, dtype))
    by_queries, by_keys = listed(seen_RCD), listed(seen_RCD.transpose(0, 2, 1))
    (d_q,) = _call(_query_kernel, (T // BLOCK, H, R), (*given, *by_queries), of_queries, scratch, interpret)
    d_kv = _call(_key_kernel, (S // BLOCK, J, R), (*given, *by_keys), of_keys, scratch, interpret)
    return d_q, *d_kv


def _call(kernel: Callable, grid, given: Sequence[Array], made, scratch, interpret: bool) -> Any:
    """Runs `kernel` for every block, head and row."""
    interpreted = mosaic_gpu.InterpretGPUParams() if interpret else None  # type: ignore[attr-defined]  # not in jax 0.10
    return mosaic_gpu.kernel(
        kernel, out_type=list(made), scratch_types=scratch, grid=grid, grid_names=("blocks", "heads", "rows"),
        interpret=interpreted, kernel_name=kernel.__name__.strip("_"),
    )(*given)  # fmt: skip


def _tile(width: int, dtype: Any, *count: int) -> Any:
    """Shared memory for blocks of tokens, in the order that products take."""
    order = mosaic_gpu.TilingTransform((8, SWIZZLE // dtype.itemsize)), mosaic_gpu.SwizzleTransform(SWIZZLE)
    return mosaic_gpu.SMEM((*count, BLOCK, width), dtype, transforms=order)


def _held(count: int, width: int, dtype: Any) -> tuple:
    """`count` blocks that a program keeps, and what tells that they have arrived."""
    return *(_tile(width, dtype) for _ in range(count)), mosaic_gpu.Barrier(num_arrivals=count)


def _fetched(width: int, dtype: Any) -> tuple:
    """Two blocks of what a program walks over, each with room for the next one, and what tells that they have arrived."""
    return _tile(width, dtype, 2), _tile(width, dtype, 2), mosaic_gpu.Barrier(num_arrivals=2, num_barriers=2)


def _place() -> tuple[Array, Array, Array, Any]:
    """A program's block, head and row, and the tokens of its block."""
    block, head, row = (lax.axis_index(name) for name in ("blocks", "heads", "rows"))
    return block, head, row, pl.ds(block * BLOCK, BLOCK)


def _copy(pairs: Sequence[tuple[Any, Any]], arrived: Any) -> None:
    for source, goal in pairs:
        mosaic_gpu.copy_gmem_to_smem(source, goal, arrived)


def _walk(count: Array, fetch: Callable, arrived_ref: Any, tile: Callable, carry: Any) -> Any:
    """`tile(n, slot, carry)` for n < count; block n + 1 is on its way meanwhile, by `fetch(n, slot)`."""
    pl.when(count > 0)(lambda: fetch(jnp.int32(0), jnp.int32(0)))

    def step(n, carry):
        slot = lax.rem(n, jnp.int32(2))
        pl.when(n + 1 < count)(lambda: fetch(n + 1, 1 - slot))
        mosaic_gpu.barrier_wait(arrived_ref.at[slot])
        return tile(n, slot, carry)

    return lax.fori_loop(0, count, step, carry)


def _dot(a_ref: Any, b_ref: Any) -> Float[Array, "B E"]:
    """A product in fp32."""

    def product(made_ref):
        mosaic_gpu.wgmma(made_ref, a_ref, b_ref)
        return made_ref[...]

    return pl.run_scoped(product, mosaic_gpu.ACC((a_ref.shape[0], b_ref.shape[1]), jnp.float32))


def _turned(ref: Any) -> Any:
    return ref.transpose((1, 0))


def _down(x_B: Array, width: int = BLOCK) -> Float[Array, "B E"]:
    """A number for each row, in every column."""
    return lax.broadcast_in_dim(x_B, (BLOCK, width), [0])


def _across(x_B: Array) -> Float[Array, "B B"]:
    """A number for each column, in every row."""
    return lax.broadcast_in_dim(x_B, (BLOCK, BLOCK), [1])


def _full(value: float, *width: int) -> Array:
    layout = mosaic_gpu.Layout.WGMMA if width else ALONG_ROWS
    return mosaic_gpu.layout_cast(jnp.full((BLOCK, *width), value, jnp.float32), layout)


def _numbers(refs: Sequence[Any], at: tuple, layout: Any) -> list[Array]:
    """One for each token of a block."""
    return [mosaic_gpu.load(ref.at[at], layout=layout) for ref in refs]  # type: ignore[call-arg]  # of an older jax


def _masked(scores_BB: Array, queries: Sequence[Array], keys: Sequence[Array]) -> Float[Array, "B B"]:
    """MASKED where the query does not see the key."""
    (group_q, leaf_q, column_q), (group_k, leaf_k, column_k) = queries, keys
    visible = (group_k == group_q) & ((leaf_k == 0) | (leaf_k == leaf_q)) & (column_k <= column_q)
    return jnp.where(visible, scores_BB, MASKED)


def _put(ref: Any, x_BE: Array) -> Any:
    """Writes into shared memory, for a product or a copy to read."""
    ref[...] = x_BE.astype(ref.dtype)
    mosaic_gpu.commit_smem()
    return ref


def _output_kernel(q_ref, k_ref, v_ref, *rest):
    (
        *marks,
        seen_ref,
        count_ref,
        out_ref,
        log_total_ref,
        q_block,
        held,
        totals,
        weights_block,
        k_blocks,
        v_blocks,
        fetched,
    ) = rest
    block, head, row, here = _place()
    P, E = q_ref.shape[1] // k_ref.shape[1], q_ref.shape[-1]
    _copy([(q_ref.at[row, head, here], q_block)], held)

    def tokens(n):
        return pl.ds(seen_ref[row, block, n] * BLOCK, BLOCK)

    def fetch(n, slot):
        at = row, lax.div(head, jnp.int32(P)), tokens(n)
        _copy([(k_ref.at[at], k_blocks.at[slot]), (v_ref.at[at], v_blocks.at[slot])], fetched.at[slot])

    queries = _numbers(marks[:3], (row, here), ALONG_ROWS)
    mosaic_gpu.barrier_wait(held)

    def tile(n, slot, carry):
        acc_BE, top_B, total_B = carry
        keys = _numbers(marks[3:], (row, tokens(n)), ALONG_COLUMNS)
        scores = _masked(
            _dot(q_block, _turned(k_blocks.at[slot])), [_down(x) for x in queries], [_across(x) for x in keys]
        )
        higher_B = jnp.maximum(top_B, jnp.max(scores, axis=1))
        weights, shrink_B = jnp.exp(scores - _down(higher_B)), jnp.exp(top_B - higher_B)
        more_BE = _dot(_put(weights_block, weights), v_blocks.at[slot])
        return acc_BE * _down(shrink_B, E) + more_BE, higher_B, total_B * shrink_B + jnp.sum(weights, axis=1)

    empty = _full(0.0, E), _full(FLOOR), _full(0.0)
    acc_BE, top_B, total_B = _walk(count_ref[row, block], fetch, fetched, tile, empty)
    safe_B = jnp.where(total_B > 0, total_B, 1.0)
    _put(q_block, acc_BE / _down(safe_B, E)), _put(totals, top_B + jnp.log(safe_B))
    mosaic_gpu.copy_smem_to_gmem(q_block, out_ref.at[row, head, here])
    mosaic_gpu.copy_smem_to_gmem(totals, log_total_ref.at[row, head, here])
    mosaic_gpu.wait_smem_to_gmem(0)


def _query_kernel(q_ref, k_ref, v_ref, *rest):
    *marks, log_total_ref, delta_ref, d_out_ref, seen_ref, count_ref, d_q_ref = rest[:12]
    q_block, d_out_block, held, d_scores_block, k_blocks, v_blocks, fetched = rest[12:]
    block, head, row, here = _place()
    P, E = q_ref.shape[1] // k_ref.shape[1], q_ref.shape[-1]
    mine = row, head, here
    _copy([(q_ref.at[mine], q_block), (d_out_ref.at[mine], d_out_block)], held)

    def tokens(n):
        return pl.ds(seen_ref[row, block, n] * BLOCK, BLOCK)

    def fetch(n, slot):
        at = row, lax.div(head, jnp.int32(P)), tokens(n)
        _copy([(k_ref.at[at], k_blocks.at[slot]), (v_ref.at[at], v_blocks.at[slot])], fetched.at[slot])

    queries = _numbers(marks[:3], (row, here), ALONG_ROWS)
    log_total_B, delta_B = _numbers((log_total_ref, delta_ref), mine, ALONG_ROWS)
    mosaic_gpu.barrier_wait(held)

    def tile(n, slot, d_q_BE):
        keys = _numbers(marks[3:], (row, tokens(n)), ALONG_COLUMNS)
        scores = _masked(
            _dot(q_block, _turned(k_blocks.at[slot])), [_down(x) for x in queries], [_across(x) for x in keys]
        )
        weights, d_weights = jnp.exp(scores - _down(log_total_B)), _dot(d_out_block, _turned(v_blocks.at[slot]))
        d_scores = weights * (d_weights - _down(delta_B))
        return d_q_BE + _dot(_put(d_scores_block, d_scores), k_blocks.at[slot])

    _put(q_block, _walk(count_ref[row, block], fetch, fetched, tile, _full(0.0, E)))
    mosaic_gpu.copy_smem_to_gmem(q_block, d_q_ref.at[mine])
    mosaic_gpu.wait_smem_to_gmem(0)


def _key_kernel(q_ref, k_ref, v_ref, *rest):
    *marks, log_total_ref, delta_ref, d_out_ref, seen_ref, count_ref, d_k_ref, d_v_ref = rest[:13]
    k_block, v_block, held, tile_block, q_blocks, d_out_blocks, fetched = rest[13:]
    block, head, row, here = _place()
    P, E = q_ref.shape[1] // k_ref.shape[1], q_ref.shape[-1]
    mine, count = (row, head, here), count_ref[row, block]
    _copy([(k_ref.at[mine], k_block), (v_ref.at[mine], v_block)], held)

    def query_place(n):  # the query heads that share these keys, one after the other
        nth = lax.div(n, count)
        return row, head * P + nth, pl.ds(seen_ref[row, block, n - nth * count] * BLOCK, BLOCK)

    def fetch(n, slot):
        at = query_place(n)
        _copy([(q_ref.at[at], q_blocks.at[slot]), (d_out_ref.at[at], d_out_blocks.at[slot])], fetched.at[slot])

    keys = _numbers(marks[3:], (row, here), ALONG_ROWS)
    mosaic_gpu.barrier_wait(held)

    def tile(n, slot, carry):
        d_k_BE, d_v_BE = carry
        at = query_place(n)
        queries = _numbers(marks[:3], (row, at[2]), ALONG_COLUMNS)
        log_total_B, delta_B = _numbers((log_total_ref, delta_ref), at, ALONG_COLUMNS)
        scores = _masked(
            _dot(k_block, _turned(q_blocks.at[slot])), [_across(x) for x in queries], [_down(x) for x in keys]
        )
        weights, d_weights = jnp.exp(scores - _across(log_total_B)), _dot(v_block, _turned(d_out_blocks.at[slot]))
        d_v_BE += _dot(_put(tile_block, weights), d_out_blocks.at[slot])
        d_scores = weights * (d_weights - _across(delta_B))
        return d_k_BE + _dot(_put(tile_block, d_scores), q_blocks.at[slot]), d_v_BE

    found = _walk(count * P, fetch, fetched, tile, (_full(0.0, E), _full(0.0, E)))
    d_k_ref[mine], d_v_ref[mine] = found
