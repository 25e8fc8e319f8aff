"""The kernels of `attention.pallas_attention`, for GPUs, by Triton: those of `tpu_kernels`, with the same arguments and results.

A program holds one block of what a result is made for and loops over the blocks that it sees, in the order of a list made
beforehand: what nobody sees costs nothing, not even a step.

Axis letters: R rows, T query tokens, S key tokens, H query heads, J key-value heads, P query heads per key-value head, E head
width, B tokens a block, C blocks of queries, D blocks of keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from rmjax.models.tiles import FLOOR, MASKED, Marks, apart, listed


def outputs(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R H T"]]:  # fmt: skip
    """Outputs, and for each query the logarithm of its softmax's denominator, in fp32."""
    R, H, T, E = q_RHTE.shape
    B, P = T // seen_RCD.shape[1], H // k_RJSE.shape[1]
    given = (q_RHTE, k_RJSE, v_RJSE, *apart(marks), *listed(seen_RCD))
    made = jax.ShapeDtypeStruct((R, H, T, E), q_RHTE.dtype), jax.ShapeDtypeStruct((R, H, T), jnp.float32)
    return _call(_output_kernel, (T // B, H, R), B, P, "qkkmmmnnnsc", given, "ql", made, interpret)


def gradients(
    q_RHTE: Float[Array, "R H T E"], k_RJSE: Float[Array, "R J S E"], v_RJSE: Float[Array, "R J S E"],
    marks: Marks, seen_RCD: Bool[Array, "R C D"], log_total_RHT: Float[Array, "R H T"],
    delta_RHT: Float[Array, "R H T"], d_out_RHTE: Float[Array, "R H T E"], interpret: bool,
) -> tuple[Float[Array, "R H T E"], Float[Array, "R J S E"], Float[Array, "R J S E"]]:  # fmt: skip
    """Of queries, and in fp32 of keys and of values. delta: the sum over E of output times its gradient."""
    (R, H, T, _), (J, S) = q_RHTE.shape, k_RJSE.shape[1:3]
    B, P = T // seen_RCD.shape[1], H // J
    given = (q_RHTE, k_RJSE, v_RJSE, *apart(marks), log_total_RHT, delta_RHT, d_out_RHTE)
    of_queries = (jax.ShapeDtypeStruct(q_RHTE.shape, q_RHTE.dtype),)
    of_keys = (jax.ShapeDtypeStruct(k_RJSE.shape, jnp.float32),) * 2
    by_queries, by_keys = listed(seen_RCD), listed(seen_RCD.transpose(0, 2, 1))
    (d_q,) = _call(
        _query_kernel, (T // B, H, R), B, P, "qkkmmmnnnllqsc", (*given, *by_queries), "q", of_queries, interpret
    )
    d_kv = _call(_key_kernel, (S // B, J, R), B, P, "QKKMMMNNNLLQsc", (*given, *by_keys), "KK", of_keys, interpret)
    return d_q, *d_kv


def _call(
    kernel: Callable, grid: tuple[int, int, int], B: int, P: int, kinds: str, given: Sequence[Array], kinds_made: str,
    made: Sequence[jax.ShapeDtypeStruct], interpret: bool,
) -> Any:  # fmt: skip
    """Runs `kernel` for every block, head and row. A small letter is an array of which a program of a query block reads or
    makes its block (q; l one number a query; m marks) or all keys (k, n); a capital one the same for a program of a key block.
    s, c: the list of blocks seen, and its length."""
    widths, T, S = given[0].shape[-1], given[0].shape[2], given[1].shape[2]
    specs: dict[str, tuple[tuple[int | None, ...], Callable]] = {
        "q": ((None, None, B, widths), lambda i, h, r: (r, h, i, 0)),
        "l": ((None, None, B), lambda i, h, r: (r, h, i)),
        "m": ((None, B), lambda i, h, r: (r, i)),
        "k": ((None, None, S, widths), lambda i, h, r: (r, jax.lax.div(h, P), 0, 0)),
        "n": ((None, S), lambda i, h, r: (r, 0)),
        "Q": ((None, P, T, widths), lambda i, j, r: (r, j, 0, 0)),
        "L": ((None, P, T), lambda i, j, r: (r, j, 0)),
        "M": ((None, T), lambda i, j, r: (r, 0)),
        "K": ((None, None, B, widths), lambda i, j, r: (r, j, i, 0)),
        "N": ((None, B), lambda i, j, r: (r, i)),
        "s": ((None, None, given[-2].shape[-1]), lambda i, h, r: (r, i, 0)),
        "c": ((None, 1), lambda i, h, r: (r, i)),
    }
    return pl.pallas_call(
        functools.partial(kernel, B=B, P=P), grid=grid, in_specs=[pl.BlockSpec(*specs[kind]) for kind in kinds],
        out_specs=[pl.BlockSpec(*specs[kind]) for kind in kinds_made], out_shape=list(made), interpret=interpret,
        name=kernel.__name__.strip("_"), compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    )(*given)  # fmt: skip


def _dot(a: Array, b: Array) -> Array:
    """A product in fp32; products of fp32 are not rounded to TF32 first."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _scores(q_BE: Array, k_BE: Array, queries: Sequence[Array], keys: Sequence[Array]) -> Float[Array, "B B"]:
    """Of a tile, queries first; MASKED where the query does not see the key."""
    (group_q, leaf_q, column_q), (group_k, leaf_k, column_k) = ([x[:, None] for x in queries], [x[None] for x in keys])
    visible = (group_k == group_q) & ((leaf_k == 0) | (leaf_k == leaf_q)) & (column_k <= column_q)
    return jnp.where(visible, _dot(q_BE, k_BE.T), MASKED)


def _output_kernel(q_ref, k_ref, v_ref, *rest, B: int, P: int):
    del P
    *marks, seen_ref, count_ref, out_ref, log_total_ref = rest
    q_BE, queries = q_ref[...], [ref[...] for ref in marks[:3]]

    def tile(n, carry):
        acc_BE, top_B, total_B = carry
        at = pl.ds(seen_ref[n] * B, B)
        scores = _scores(q_BE, k_ref[at, :], queries, [ref[at] for ref in marks[3:]])
        higher_B = jnp.maximum(top_B, jnp.max(scores, axis=1))
        weights, shrink_B = jnp.exp(scores - higher_B[:, None]), jnp.exp(top_B - higher_B)
        more_BE = _dot(weights.astype(v_ref.dtype), v_ref[at, :])
        return acc_BE * shrink_B[:, None] + more_BE, higher_B, total_B * shrink_B + jnp.sum(weights, axis=1)

    zeros_B = jnp.zeros(B, jnp.float32)
    empty = jnp.zeros(q_BE.shape, jnp.float32), zeros_B + FLOOR, zeros_B
    acc_BE, top_B, total_B = jax.lax.fori_loop(0, count_ref[0], tile, empty)
    safe_B = jnp.where(total_B > 0, total_B, 1.0)
    out_ref[...] = (acc_BE / safe_B[:, None]).astype(out_ref.dtype)
    log_total_ref[...] = top_B + jnp.log(safe_B)


def _weights(q_BE, k_BE, v_BE, queries, keys, log_total_B, delta_B, d_out_BE) -> tuple[Array, Array]:
    """Attention weights of a tile, and the gradient of its scores."""
    weights = jnp.exp(_scores(q_BE, k_BE, queries, keys) - log_total_B[:, None])
    d_weights = _dot(d_out_BE, v_BE.T)
    return weights, (weights * (d_weights - delta_B[:, None])).astype(q_BE.dtype)


def _query_kernel(q_ref, k_ref, v_ref, *rest, B: int, P: int):
    del P
    *marks, log_total_ref, delta_ref, d_out_ref, seen_ref, count_ref, d_q_ref = rest
    q_BE, queries = q_ref[...], [ref[...] for ref in marks[:3]]
    of_queries = log_total_ref[...], delta_ref[...], d_out_ref[...]

    def tile(n, d_q_BE):
        at = pl.ds(seen_ref[n] * B, B)
        k_BE = k_ref[at, :]
        _, d_scores = _weights(q_BE, k_BE, v_ref[at, :], queries, [ref[at] for ref in marks[3:]], *of_queries)
        return d_q_BE + _dot(d_scores, k_BE)

    d_q_BE = jax.lax.fori_loop(0, count_ref[0], tile, jnp.zeros(q_BE.shape, jnp.float32))
    d_q_ref[...] = d_q_BE.astype(d_q_ref.dtype)


def _key_kernel(q_ref, k_ref, v_ref, *rest, B: int, P: int):
    *marks, log_total_ref, delta_ref, d_out_ref, seen_ref, count_ref, d_k_ref, d_v_ref = rest
    k_BE, v_BE, keys = k_ref[...], v_ref[...], [ref[...] for ref in marks[3:]]

    def tile(p, n, carry):
        d_k_BE, d_v_BE = carry
        at = pl.ds(seen_ref[n] * B, B)
        q_BE, d_out_BE = q_ref[p, at, :], d_out_ref[p, at, :]
        weights, d_scores = _weights(
            q_BE, k_BE, v_BE, [ref[at] for ref in marks[:3]], keys, log_total_ref[p, at], delta_ref[p, at], d_out_BE
        )
        return d_k_BE + _dot(d_scores.T, q_BE), d_v_BE + _dot(weights.astype(q_BE.dtype).T, d_out_BE)

    found = (jnp.zeros(k_BE.shape, jnp.float32),) * 2
    for p in range(P):  # query heads that share these keys
        found = jax.lax.fori_loop(0, count_ref[0], functools.partial(tile, p), found)
    d_k_ref[...], d_v_ref[...] = found
