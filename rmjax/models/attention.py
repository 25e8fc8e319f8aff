"""Attention under the forest mask, tile by tile, so that memory grows with the row's length and not with its square: on every
device of a mesh by the kernels for it.

Axis letters beside the transformer's (R rows, T query tokens, S key tokens, H query heads, J key-value heads, E head width): M
marks of a token (group, branch, column, and under a window one more), B tokens a block, C blocks of queries, D blocks of keys.
The mask is never built as a whole.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from rmjax.models.tiles import ForestMask, Marks, tiles_seen

SAVED = "attention"
"""What the backward pass would have to form again: its output and normalizers carry this name for remat policies."""

LANES = 128
"""Numbers along the last axis of a TPU's vector register: blocks are made of so many tokens."""
SMALLEST_TILE, LARGEST_TILE = 16, 64
"""Tokens a block on a GPU: what its matrix unit takes; and what leaves room on the chip in bf16, half as many in fp32."""
HEAD_WIDTHS = (64, 128)
"""That Mosaic GPU's kernels take."""
PLATFORMS = ("tpu", "gpu")
"""That have kernels of their own; those of any are called xla."""
MOSAIC_SINCE = (0, 12)
"""The jax from which a GPU's kernels are Mosaic GPU's: Triton's are deprecated there."""


@dataclasses.dataclass(frozen=True)
class _Form:
    """How the kernels are run."""

    kernels: str  # tpu, triton, mosaic, xla: NAME_kernels.py
    block: int
    interpret: bool
    itemsize: int  # bytes of a number of q
    softcap: float = 0.0  # of scores; XLA's kernels alone have it

    def module(self) -> Any:
        """Where the kernels are; each is imported where it runs, since Mosaic GPU alone takes a second."""
        return importlib.import_module(f"rmjax.models.{self.kernels}_kernels")

    def run(self, name: str, *arrays: Any) -> Any:
        """The kernels' `outputs` or `gradients`."""
        more = {"softcap": self.softcap} if self.softcap else {}
        return getattr(self.module(), name)(*arrays, self.interpret, **more)

    def edge(self, tokens: int) -> int:
        """Tokens a block, where a device has `tokens` queries a row."""
        if self.kernels == "xla":
            return min(self.block, -(-tokens // 2))
        if self.kernels == "mosaic":
            return LARGEST_TILE
        if self.kernels == "triton":
            largest = LARGEST_TILE if self.itemsize < 4 else LARGEST_TILE // 2
            return min(self.block, largest, max(SMALLEST_TILE, 1 << (tokens - 1).bit_length()))
        return min(self.block, -(-tokens // LANES) * LANES)

    def in_blocks(self, x: Array, edge: int) -> Array:
        """Tokens (axis 1) padded with 0 to whole blocks; an even number of them for XLA's kernels, which pair them."""
        edge *= 2 if self.kernels == "xla" else 1
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % edge)) + ((0, 0),) * (x.ndim - 2))


def blockwise(
    q_RTHE: Float[Array, "R T H E"],
    k_RTJE: Float[Array, "R T J E"],
    v_RTJE: Float[Array, "R T J E"],
    mask: ForestMask,
    block: int,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Float[Array, "R T H E"]:
    """`pallas_attention`'s values on any device, with derivatives of any order. Tiles that no row of a device has need of are
    left out: many short groups in a long row cost what they would cost in rows of their own.

    block: tokens of a query block and of a key block. What lies in memory at once are H · block² scores of a row.
    scale: of products of queries and keys; 0 = 1 / √E. softcap: of scores, see `tiles.capped`; 0 = none.
    Source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4.
    """
    form = _Form("xla", block, False, q_RTHE.dtype.itemsize, softcap)
    return _attend(q_RTHE, k_RTJE, v_RTJE, mask, form, scale)


def pallas_attention(
    q_RTHE: Float[Array, "R T H E"],
    k_RTJE: Float[Array, "R T J E"],
    v_RTJE: Float[Array, "R T J E"],
    mask: ForestMask,
    block: int,
    interpret: bool = False,
    kernels: str = "",
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Float[Array, "R T H E"]:
    """Grouped-query attention, softmax in fp32; a padding token gives 0. Tiles that no token sees are left out.

    Under a mesh every device runs the kernels on its own rows, heads and queries, by the sharding rules in force; where tokens
    are cut, it has the keys of all. In memory lie queries, keys, values, outputs and a number for each head and token:
    nothing grows with T².

    Args:
      block: tokens of a query block and of a key block. On a TPU a multiple of 128; of Triton's a power of two, 16 at least, and
        of Mosaic GPU's a multiple of 64; a GPU takes no more than 64.
      interpret: run without either, slowly; for tests.
      kernels: tpu, triton or mosaic; empty: a GPU's where JAX's default device is one (`kernels_for`), a TPU's else (a program
        may be compiled for TPUs where there is none).
      scale: of products of queries and keys; 0 = 1 / √E.
      softcap: must be 0: the kernels have none.

    Raises:
      ValueError: heads that do not divide over the mesh, a softcap, a mask with a window, or what `refusal` says.

    Source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4.
    """
    kernels = kernels or kernels_for("gpu" if jax.default_backend() == "gpu" else "tpu")
    if reason := refusal(kernels, block, q_RTHE.shape[-1], q_RTHE.dtype, interpret):
        raise ValueError(reason)
    if softcap or mask.window is not None:
        raise ValueError("attention=pallas has neither windows nor a softcap; use blockwise")
    return _attend(q_RTHE, k_RTJE, v_RTJE, mask, _Form(kernels, block, interpret, q_RTHE.dtype.itemsize), scale)


def kernels_for(platform: str) -> str:
    """tpu, triton or mosaic: the kernels that this JAX runs there; the platform where it has none."""
    if platform == "gpu":
        return "mosaic" if jax.__version_info__ >= MOSAIC_SINCE else "triton"
    return platform


def refusal(kernels: str, block: int, head_width: int, dtype: Any, interpret: bool = False) -> str:
    """Why `kernels` do not run here with such sizes; empty where they do."""
    if kernels == "tpu":
        refused = block < 1 or block % LANES
        return f"attention_block is {block}; attention=pallas needs a multiple of {LANES}" if refused else ""
    if kernels == "triton":
        return _triton_s_refusal(block, head_width, interpret)
    if kernels == "mosaic":
        return _mosaic_s_refusal(block, head_width, dtype, interpret)
    return f"attention=pallas is for TPUs and GPUs, and this is {kernels}; use blockwise"


def _triton_s_refusal(block: int, head_width: int, interpret: bool) -> str:
    if block < SMALLEST_TILE or not _power_of_two(block):
        return f"attention_block is {block}; attention=pallas needs a power of two here, {SMALLEST_TILE} at least"
    if not _power_of_two(head_width) or (head_width < SMALLEST_TILE and not interpret):
        return (
            f"attention=pallas needs a head width that is a power of two on a GPU, {SMALLEST_TILE} at least, not {head_width}; "
            "use blockwise"
        )
    return ""


def _mosaic_s_refusal(block: int, head_width: int, dtype: Any, interpret: bool) -> str:
    if block < 1 or block % LARGEST_TILE:
        return f"attention_block is {block}; attention=pallas needs a multiple of {LARGEST_TILE} here"
    if interpret:
        return ""
    if head_width not in HEAD_WIDTHS:
        return (
            f"attention=pallas needs a head width of 64 or 128 on a GPU with this jax, not {head_width}; use blockwise"
        )
    if jnp.dtype(dtype).itemsize != 2:
        return (
            f"attention=pallas takes numbers of 16 bits on a GPU with this jax, not {jnp.dtype(dtype)}; set model.dtype to "
            "bfloat16, or use blockwise"
        )
    if (capability := _compute_capability()) not in ("9.0", ""):
        return (
            f"attention=pallas is for GPUs of compute capability 9.0 (Hopper) with this jax, and this one has {capability}; "
            "use blockwise"
        )
    return ""


def _compute_capability() -> str:
    """Of the GPU; empty where there is none, and a program is only lowered for one."""
    return str(getattr(jax.local_devices()[0], "compute_capability", ""))


def _power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _attend(q_RTHE, k_RTJE, v_RTJE, mask: ForestMask, form: _Form, scale: float):
    return _tiled(q_RTHE * (scale or q_RTHE.shape[-1] ** -0.5), k_RTJE, v_RTJE, *mask.marks(), form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _tiled(q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM, form: _Form):
    return _forward(q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM, form)[0]


def _forward(q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM, form: _Form):
    given = (q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM)
    return _on_each_device(form, _outputs, "qkkmn", "ql", given)


def _save(q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM, form: _Form):
    given = (q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM)
    out, log_total = (checkpoint_name(x, SAVED) for x in _forward(*given, form))
    return out, (*given, out, log_total)


def _backward(form: _Form, saved, d_out_RTHE):
    return *_on_each_device(form, _gradients, "qkkmnqlq", "qkk", (*saved, d_out_RTHE)), None, None


_tiled.defvjp(_save, _backward)


def _on_each_device(form: _Form, local: Callable, given: str, made: str, arrays: tuple) -> Any:
    """`local(form, token_axes, …)` on each device's part: the compiler cannot divide a kernel by itself, and in XLA's a device
    leaves out tiles for itself. Letters: q queries, k keys or values, l normalizers, m marks of queries, n of keys."""
    local, mesh = functools.partial(local, form), jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local((), *arrays)
    axes: Any = nn.logical_to_mesh_axes(("rows", "tokens", "heads"))
    rows, tokens, heads = axes
    parts = math.prod(mesh.shape[name] for name in _names(heads))
    if form.kernels == "xla" and arrays[0].shape[1] < 2 * math.prod(mesh.shape[name] for name in _names(tokens)):
        raise ValueError(
            f"attention=blockwise: rows of {arrays[0].shape[1]} tokens leave a device of mesh axis {' · '.join(_names(tokens))} "
            "fewer than two; use attention=dense"
        )
    if arrays[1].shape[2] % parts and form.kernels == "xla":
        heads = None  # each device computes all
    elif arrays[1].shape[2] % parts:
        raise ValueError(
            f"attention=pallas: {arrays[1].shape[2]} key-value heads do not divide into the {parts} parts of mesh axis "
            f"{' · '.join(_names(heads))}; make mesh.tensor a divisor of them, or use attention=blockwise"
        )
    specs = {
        "q": PartitionSpec(rows, tokens, heads), "k": PartitionSpec(rows, None, heads),
        "l": PartitionSpec(rows, heads, tokens), "m": PartitionSpec(rows, tokens), "n": PartitionSpec(rows),
    }  # fmt: skip
    divided = jax.shard_map(
        functools.partial(local, _names(tokens)), in_specs=tuple(specs[x] for x in given),
        out_specs=tuple(specs[x] for x in made), check_vma=False,
    )  # fmt: skip
    return divided(*arrays)


def _names(axes: Any) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _outputs(form: _Form, token_axes, q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM):
    del token_axes
    T = q_RTHE.shape[1]
    B = form.edge(T)
    q, k, v = (form.in_blocks(x, B).transpose(0, 2, 1, 3) for x in (q_RTHE, k_RSJE, v_RSJE))
    marks, seen_RCD = _marks(form, queries_RTM, keys_RSM, B)
    out_RHTE, log_total_RHT = form.run("outputs", q, k, v, marks, seen_RCD)
    return out_RHTE.transpose(0, 2, 1, 3)[:, :T], log_total_RHT[:, :, :T]


def _gradients(
    form: _Form, token_axes, q_RTHE, k_RSJE, v_RSJE, queries_RTM, keys_RSM, out_RTHE, log_total_RHT, d_out_RTHE
):
    T, S = q_RTHE.shape[1], k_RSJE.shape[1]
    B = form.edge(T)
    q, k, v, d_out = (form.in_blocks(x, B).transpose(0, 2, 1, 3) for x in (q_RTHE, k_RSJE, v_RSJE, d_out_RTHE))
    delta_RHT = jnp.einsum("rthe,rthe->rht", d_out_RTHE, out_RTHE, preferred_element_type=jnp.float32)
    log_total, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, q.shape[2] - T))) for x in (log_total_RHT, delta_RHT))
    marks, seen_RCD = _marks(form, queries_RTM, keys_RSM, B)
    d_q, *d_kv = form.run("gradients", q, k, v, marks, seen_RCD, log_total, delta, d_out)
    d_k, d_v = (x.transpose(0, 2, 1, 3)[:, :S] for x in d_kv)
    if token_axes:  # each device has the sum over its own queries
        d_k, d_v = jax.lax.psum((d_k, d_v), token_axes)
    return d_q.transpose(0, 2, 1, 3)[:, :T], d_k.astype(k.dtype), d_v.astype(v.dtype)


def _marks(form: _Form, queries_RTM: Array, keys_RSM: Array, B: int) -> tuple[Marks, Bool[Array, "R C D"]]:
    """Marks as the kernels read them, and which key blocks a query block may see something of."""
    queries_RTM, keys_RSM = (form.in_blocks(x, B) for x in (queries_RTM, keys_RSM))
    M = keys_RSM.shape[-1]
    padding = (keys_RSM[..., :1] == 0) & (jnp.arange(M) == 0)
    seen_RCD = tiles_seen(*(x.reshape(len(x), -1, B, M) for x in (queries_RTM, keys_RSM)))
    return (queries_RTM, jnp.where(padding, -1, keys_RSM)), seen_RCD
