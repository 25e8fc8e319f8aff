"""A decoder-only transformer (Llama / Qwen / InternLM2 / Mistral family) in Flax Linen.

Axis letters: R rows, T tokens a row, S key columns, D width, H query heads, J key-value heads, P query heads per
key-value head, E head width, F mlp width, V vocabulary, L layers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rmjax.models.adapters import adapted
from rmjax.models.attention import SAVED, blockwise, pallas_attention
from rmjax.models.contraction import product
from rmjax.models.lora import ROUTING, AdapterConfig
from rmjax.models.tiles import ForestMask

_ANY: Any = jax.sharding.PartitionSpec.UNCONSTRAINED
Past = dict[str, jax.Array]
"""Keys and values of earlier columns: `k` [L, R, J, E, S], `v` [L, R, J, S, E] (layouts that one-token dots like)."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The architecture: all that is needed to rebuild the parameter tree."""

    vocab_size: int
    width: int
    depth: int  # layers, the frozen ones included
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0  # linear position interpolation; 1 = none
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False  # Qwen 1.5 / 2 / 2.5
    qk_norm: bool = False  # Qwen 3: RMSNorm on each query and key head
    tied_embeddings: bool = True
    max_positions: int = 8192
    dtype: str = "float32"  # of activations; head and loss are fp32 whatever this says
    param_dtype: str = "float32"
    remat: str = (
        "none"  # none | dots (keep matmul results) | attention (keep its outputs) | full (keep layer inputs only)
    )
    attention: str = "dense"  # under a forest's mask: dense | in tiles: blockwise, pallas (TPU, GPU)
    attention_block: int = 512  # tokens along the side of a tile
    frozen_layers: int = 0  # first layers, stacked apart under this name: never trained, they cost a forward pass only
    adapter: AdapterConfig | None = None  # on Dense modules of the other layers

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.remat not in _REMAT:
            raise ValueError(f"remat is {self.remat!r}; choose one of {sorted(_REMAT)}")
        if self.attention not in ("dense", *_TILED):
            raise ValueError(f"attention is {self.attention!r}; choose one of dense, {', '.join(_TILED)}")
        if self.attention_block < 1:
            raise ValueError(f"attention_block is {self.attention_block}; it must be 1 or more")
        if not 0 <= self.frozen_layers < self.depth:
            raise ValueError(f"frozen_layers is {self.frozen_layers}; it must leave one of the {self.depth} layers")


_TILED = {"blockwise": blockwise, "pallas": pallas_attention}
_ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED)
_REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENTION
    ),
    "attention": _ATTENTION,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rope(
    x_RTHE: Float[Array, "R T H E"], positions_RT: Int[Array, "R T"], theta: float, scale: float = 1.0
) -> Float[Array, "R T H E"]:
    """Rotary position embedding, half-split form (RoFormer eq. 34; the layout of HF Llama), angles in fp32."""
    half = x_RTHE.shape[-1] // 2
    frequency_E = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_RT1E = (positions_RT[..., None, None] / scale) * frequency_E
    cos, sin = jnp.cos(angle_RT1E), jnp.sin(angle_RT1E)
    a, b = jnp.split(x_RTHE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_RTHE.dtype)


def attend(
    q_RTHE: Float[Array, "R T H E"],
    k_RSJE: Float[Array, "R S J E"],
    v_RSJE: Float[Array, "R S J E"],
    mask_RTS: Bool[Array, "R T S"],
    past: Past | None = None,
) -> Float[Array, "R T H E"]:
    """Grouped-query attention with an arbitrary mask; softmax in fp32. A row of False attends to nothing and gives 0.

    With `past` (one layer's, [R, J, E, C] and [R, J, C, E]) the mask has C + S columns, the past ones first.
    """
    R, T, H, E = q_RTHE.shape
    S, J = k_RSJE.shape[1:3]
    P = H // J
    # Plain batched matrix products: on CPU the einsum form is 1.4 times slower. Rows and heads stay axes of their own, and
    # tokens stay outside the heads of a group: merged otherwise, sharded axes would have to be gathered first.
    q = (q_RTHE * (E**-0.5)).reshape(R, T, J, P, E).transpose(0, 2, 1, 3, 4).reshape(R, J, T * P, E)
    k = k_RSJE.transpose(0, 2, 3, 1)
    v = v_RSJE.transpose(0, 2, 1, 3)
    scores = jax.lax.batch_matmul(q, k)
    C = 0 if past is None else past["k"].shape[-1]
    if past is not None:
        scores = jnp.concatenate([jax.lax.batch_matmul(q, past["k"]), scores], axis=-1)
    # A finite floor keeps fully masked (padding) rows free of NaN; the second `where` makes them exactly zero.
    mask = mask_RTS[:, None, :, None]
    scores_RJTPS = jnp.where(mask, scores.reshape(R, J, T, P, C + S).astype(jnp.float32), -1e30)
    weights = jnp.where(mask, jax.nn.softmax(scores_RJTPS, axis=-1), 0.0).astype(v_RSJE.dtype)
    weights = weights.reshape(R, J, T * P, C + S)
    out = jax.lax.batch_matmul(weights[..., C:], v)
    if past is not None:
        out = out + jax.lax.batch_matmul(weights[..., :C], past["v"])
    return out.reshape(R, J, T, P, E).transpose(0, 2, 1, 3, 4).reshape(R, T, H, E)


def _dense(config: TransformerConfig, features: int, axes: tuple[str, str], name: str, bias: bool = False) -> nn.Dense:
    kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        dot_general=product,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes[1],)),
        name=name,
    )


def _norm(config: TransformerConfig, name: str, axis: str = "embed") -> nn.RMSNorm:
    return nn.RMSNorm(
        epsilon=config.norm_epsilon,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
        name=name,
    )


class Attention(nn.Module):
    """Self-attention over this call's tokens and, when decoding, over the past; returns this call's (k, v) as well."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD, positions_RT, mask_RTS, past: Past | None):
        c = self.config
        R, T, _ = x_RTD.shape
        q = _dense(c, c.heads * c.head_width, ("embed", "heads"), "query", c.qkv_bias)(x_RTD)
        k = _dense(c, c.kv_heads * c.head_width, ("embed", "kv_heads"), "key", c.qkv_bias)(x_RTD)
        v = _dense(c, c.kv_heads * c.head_width, ("embed", "kv_heads"), "value", c.qkv_bias)(x_RTD)
        q_RTHE = q.reshape(R, T, c.heads, c.head_width)
        k_RTJE = k.reshape(R, T, c.kv_heads, c.head_width)
        v_RTJE = v.reshape(R, T, c.kv_heads, c.head_width)
        if c.qk_norm:
            q_RTHE = _norm(c, "query_norm", "head")(q_RTHE)
            k_RTJE = _norm(c, "key_norm", "head")(k_RTJE)
        q_RTHE = rope(q_RTHE, positions_RT, c.rope_theta, c.rope_scale)
        k_RTJE = rope(k_RTJE, positions_RT, c.rope_theta, c.rope_scale)
        # Where tokens are cut, every part of the queries needs all keys; heads stay as the projections left them.
        q_RTHE = nn.with_logical_constraint(q_RTHE, ("rows", "tokens", _ANY, _ANY))
        k_RTJE = nn.with_logical_constraint(k_RTJE, ("rows", None, _ANY, _ANY))
        v_RTJE = nn.with_logical_constraint(v_RTJE, ("rows", None, _ANY, _ANY))
        if isinstance(mask_RTS, ForestMask):
            out_RTHE = _TILED[c.attention](q_RTHE, k_RTJE, v_RTJE, mask_RTS, c.attention_block)
        else:
            out_RTHE = attend(q_RTHE, k_RTJE, v_RTJE, mask_RTS, past)
        out_RTD = _dense(c, c.width, ("heads", "embed"), "output")(out_RTHE.reshape(R, T, -1))
        return out_RTD, {"k": k_RTJE.transpose(0, 2, 3, 1), "v": v_RTJE.transpose(0, 2, 1, 3)}


class Mlp(nn.Module):
    """Gated SiLU: down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD):
        c = self.config
        gate_RTF = _dense(c, c.mlp_width, ("embed", "mlp"), "gate")(x_RTD)
        up_RTF = _dense(c, c.mlp_width, ("embed", "mlp"), "up")(x_RTD)
        return _dense(c, c.width, ("mlp", "embed"), "down")(nn.silu(gate_RTF) * up_RTF)


class Block(nn.Module):
    """One pre-norm layer; gives its new keys and values when `keep_past`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD, past, positions_RT, mask_RTS, keep_past: bool):
        c = self.config
        y, new = Attention(c, name="attention")(_norm(c, "attention_norm")(x_RTD), positions_RT, mask_RTS, past)
        x_RTD = nn.with_logical_constraint(x_RTD + y, ("rows", "tokens", None))
        x_RTD = x_RTD + Mlp(c, name="mlp")(_norm(c, "mlp_norm")(x_RTD))
        return nn.with_logical_constraint(x_RTD, ("rows", "tokens", None)), new if keep_past else None


def _stacked(config: TransformerConfig, depth: int) -> Any:
    """`depth` blocks as one scan."""
    block: Any = Block
    if config.remat != "none":
        block = nn.remat(Block, policy=_REMAT[config.remat], prevent_cse=False, static_argnums=(5,))
    return nn.scan(
        block,
        variable_axes={"params": 0, ROUTING: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)


class Transformer(nn.Module):
    """Token ids to hidden states (after the final norm). Parameters of the layers are stacked on a leading L axis."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = nn.Embed(
            c.vocab_size,
            c.width,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed")),
        )
        if c.frozen_layers:
            self.frozen_layers = _stacked(c, c.frozen_layers)
        self.layers = _stacked(c, c.depth - c.frozen_layers)
        self.final_norm = _norm(c, "final_norm")
        if not c.tied_embeddings:
            head = dataclasses.replace(c, dtype="float32")
            self.output = _dense(head, c.vocab_size, ("embed", "vocab"), "output")

    def __call__(
        self,
        tokens_RT: Int[Array, "R T"],
        positions_RT: Int[Array, "R T"],
        mask_RTS: Bool[Array, "R T S"] | ForestMask,
    ) -> Float[Array, "R T D"]:
        """Hidden states. `mask_RTS[r, t, s]` says whether token t may attend to token s of its row; a `ForestMask` says the
        same by the parts of a forest, and is attended under tile by tile."""
        return self._run(tokens_RT, positions_RT, mask_RTS, None, False)[0]

    def _run(self, tokens_RT, positions_RT, mask_RTS, past, keep_past: bool):
        x_RTD = nn.with_logical_constraint(self._embed(tokens_RT), ("rows", "tokens", None))
        below, above, k = None, past, self.config.frozen_layers
        if k:
            if past is not None:
                below, above = ({name: x[part] for name, x in past.items()} for part in (slice(k), slice(k, None)))
            x_RTD, below = self.frozen_layers(x_RTD, below, positions_RT, mask_RTS, keep_past)
        with adapted(self.config.adapter):
            x_RTD, new = self.layers(x_RTD, above, positions_RT, mask_RTS, keep_past)
        if k and keep_past:
            new = jax.tree.map(lambda *parts: jnp.concatenate(parts), below, new)
        return self.final_norm(x_RTD), new

    def _embed(self, tokens_RT):
        """Looks up whole rows: from a table that is cut along the width, the compiler would gather the batch instead."""
        table_VD = nn.with_logical_constraint(self.embedding.embedding, ("vocab", None))
        return jnp.take(table_VD.astype(self.config.dtype), tokens_RT, axis=0)

    def logits(self, hidden_RTD: Float[Array, "R T D"]) -> Float[Array, "R T V"]:
        """Next-token logits, computed in fp32: bf16 would round a logit of 18 to a multiple of 1/8."""
        hidden_RTD = hidden_RTD.astype(jnp.float32)
        if not self.config.tied_embeddings:
            return self.output(hidden_RTD)
        return jnp.dot(hidden_RTD, self.embedding.embedding.astype(jnp.float32).T)

    def projection(self) -> Float[Array, "V D"]:
        """What hidden states are multiplied with for logits, a row per token of the vocabulary; there once parameters are."""
        if self.config.tied_embeddings:
            return self.embedding.embedding
        return self.output.variables["params"]["kernel"].T

    def decode(
        self,
        tokens_RT: Int[Array, "R T"],
        positions_RT: Int[Array, "R T"],
        mask_RTS: Bool[Array, "R T S"],
        past: Past | None = None,
    ) -> tuple[Float[Array, "R V"], Past]:
        """Logits of each row's last token, and the keys and values of the T new tokens, for the caller to keep.

        The mask has the past's columns first, then the T new ones.
        """
        hidden_RTD, new = self._run(tokens_RT, positions_RT, mask_RTS, past, True)
        return self.logits(hidden_RTD[:, -1:])[:, 0], new


def causal_mask(valid_RT: Bool[Array, "R T"]) -> Bool[Array, "R T T"]:
    """Plain causal mask over the valid tokens of each row."""
    T = valid_RT.shape[1]
    return jnp.tril(jnp.ones((T, T), bool))[None] & valid_RT[:, None, :] & valid_RT[:, :, None]
