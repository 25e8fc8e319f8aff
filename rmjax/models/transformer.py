"""A decoder-only transformer (Llama, Mistral, Qwen, SmolLM, InternLM, Gemma, Phi-3 families) in Flax Linen.

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
from rmjax.models.architecture import ACTIVATIONS, TransformerConfig
from rmjax.models.attention import SAVED, blockwise, pallas_attention
from rmjax.models.contraction import product
from rmjax.models.lora import ROUTING
from rmjax.models.rope import frequencies, rotate
from rmjax.models.tiles import ForestMask, capped

_ANY: Any = jax.sharding.PartitionSpec.UNCONSTRAINED
Past = dict[str, jax.Array]
"""Keys and values of earlier columns: `k` [L, R, J, E, S], `v` [L, R, J, S, E] (layouts that one-token dots like). Where
there are windows their positions too: `position` [L, R, S]. Under a `ForestMask`, which knows positions itself, both are
[L, R, S, J, E].

Columns that W rows in a row have in common stand once, before the others: `shared_k` [L, G, J, E, S], `shared_v` [L, G, J, S, E],
`shared_position` [L, G, S], where R = G · W."""


_TILED: dict[str, Any] = {"blockwise": blockwise, "pallas": pallas_attention}
_ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED)
_REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENTION
    ),
    "attention": _ATTENTION,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_UNLIMITED = jnp.iinfo(jnp.int32).max


def attend(
    q_RTHE: Float[Array, "R T H E"],
    k_RSJE: Float[Array, "R S J E"],
    v_RSJE: Float[Array, "R S J E"],
    mask_RTS: Bool[Array, "R T S"],
    past: Past | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Float[Array, "R T H E"]:
    """Grouped-query attention with an arbitrary mask; softmax in fp32. A row of False attends to nothing and gives 0.

    With `past` (one layer's, [R, J, E, C] and [R, J, C, E]) the mask has C + S columns, the past ones first, and of these the
    shared ones.

    scale: of products of queries and keys; 0 = 1 / √E. softcap: of scores, see `tiles.capped`; 0 = none.
    """
    R, T, H, E = q_RTHE.shape
    S, J = k_RSJE.shape[1:3]
    P = H // J
    # Plain batched matrix products: on CPU the einsum form is 1.4 times slower. Rows and heads stay axes of their own, and
    # tokens stay outside the heads of a group: merged otherwise, sharded axes would have to be gathered first.
    q = (q_RTHE * (scale or E**-0.5)).reshape(R, T, J, P, E).transpose(0, 2, 1, 3, 4).reshape(R, J, T * P, E)
    k = k_RSJE.transpose(0, 2, 3, 1)
    v = v_RSJE.transpose(0, 2, 1, 3)
    parts = [_together(q, past["shared_k"])] if past and "shared_k" in past else []
    parts += [jax.lax.batch_matmul(q, past["k"])] if past else []
    scores = jnp.concatenate([*parts, jax.lax.batch_matmul(q, k)], axis=-1) if parts else jax.lax.batch_matmul(q, k)
    C = scores.shape[-1] - S
    # A finite floor keeps fully masked (padding) rows free of NaN; the second `where` makes them exactly zero.
    mask = mask_RTS[:, None, :, None]
    scores_RJTPS = capped(scores.reshape(R, J, T, P, C + S).astype(jnp.float32), softcap)
    scores_RJTPS = jnp.where(mask, scores_RJTPS, -1e30)
    weights = jnp.where(mask, jax.nn.softmax(scores_RJTPS, axis=-1), 0.0).astype(v_RSJE.dtype)
    weights = weights.reshape(R, J, T * P, C + S)
    out = jax.lax.batch_matmul(weights[..., C:], v)
    if past is not None:
        B = C - past["k"].shape[-1]
        out = out + jax.lax.batch_matmul(weights[..., B:C], past["v"])
        out = out + _together(weights[..., :B], past["shared_v"]) if B else out
    return out.reshape(R, J, T, P, E).transpose(0, 2, 1, 3, 4).reshape(R, T, H, E)


def _together(x_RJQA: Array, shared_GJAB: Array) -> Array:
    """Each row's product with what its group shares, read once a group: [R, J, Q, B]."""
    R, J, Q, A = x_RJQA.shape
    G, _, _, B = shared_GJAB.shape
    x = x_RJQA.reshape(G, R // G, J, Q, A).transpose(0, 2, 1, 3, 4).reshape(G, J, R // G * Q, A)
    out = jax.lax.batch_matmul(x, shared_GJAB)
    return out.reshape(G, J, R // G, Q, B).transpose(0, 2, 1, 3, 4).reshape(R, J, Q, B)


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


def _norm(config: TransformerConfig, name: str, axis: str = "embed") -> nn.Module:
    if config.norm_offset:
        return OffsetNorm(config, axis, name=name)
    return nn.RMSNorm(
        epsilon=config.norm_epsilon,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
        name=name,
    )


class OffsetNorm(nn.Module):
    """Gemma's RMSNorm: x / rms(x) times 1 + scale, both in fp32 until the end."""

    config: TransformerConfig
    axis: str

    @nn.compact
    def __call__(self, x_RTD):
        c = self.config
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
        scale_D: Any = self.param("scale", zeros, (x_RTD.shape[-1],), c.param_dtype)
        x = x_RTD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + c.norm_epsilon)
        return (x * (1 + scale_D.astype(jnp.float32))).astype(c.dtype)


def by_layer(config: TransformerConfig) -> dict[str, jax.Array]:
    """What differs from layer to layer, on a leading axis L, for the scan over them: `frequency` [L, F] and `attention_factor`
    [L] of rotary positions, `window` [L]. What all layers have alike is not in it, so that nothing is computed for it."""
    c, found = config, {}
    windowed_L = c.windowed or (c.window > 0,) * c.depth
    if len({*windowed_L}) > 1:
        found["window"] = jnp.where(jnp.array(windowed_L), c.window, _UNLIMITED)
    if not all(c.rotary) or ("window" in found and c.local_rope):
        still = jnp.zeros(c.rope.turned(c.head_width) // 2), 1.0
        of_layers = [
            _frequencies(c, windowed) if rotary else still
            for windowed, rotary in zip(windowed_L, c.rotary or (True,) * c.depth, strict=True)
        ]
        found["frequency"] = jnp.stack([frequency_F for frequency_F, _ in of_layers])
        found["attention_factor"] = jnp.array([factor for _, factor in of_layers])
    return found


def _frequencies(config: TransformerConfig, windowed: bool) -> tuple[jax.Array, float]:
    rope = config.local_rope if windowed and config.local_rope else config.rope
    return frequencies(rope, config.head_width, config.max_positions)


def _turning(config: TransformerConfig, layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array | float]:
    """A layer's frequencies, and the factor of cosine and sine."""
    if "frequency" in layer:
        return layer["frequency"], layer["attention_factor"]
    return _frequencies(config, _shared_window(config) > 0)


def _shared_window(config: TransformerConfig) -> int:
    """Of a model whose layers are all windowed, or none; 0 = none."""
    return config.window if not config.windowed or all(config.windowed) else 0


class Attention(nn.Module):
    """Self-attention over this call's tokens and, when decoding, over the past; returns this call's (k, v) as well."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD, positions_RT, mask_RTS, past: Past | None, layer: dict[str, jax.Array]):
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
        turning = _turning(c, layer)
        q_RTHE, k_RTJE = (rotate(x, positions_RT, *turning) for x in (q_RTHE, k_RTJE))
        # Where tokens are cut, every part of the queries needs all keys; heads stay as the projections left them.
        q_RTHE = nn.with_logical_constraint(q_RTHE, ("rows", "tokens", _ANY, _ANY))
        k_RTJE = nn.with_logical_constraint(k_RTJE, ("rows", None, _ANY, _ANY))
        v_RTJE = nn.with_logical_constraint(v_RTJE, ("rows", None, _ANY, _ANY))
        out_RTHE = self._attend(
            q_RTHE, k_RTJE, v_RTJE, positions_RT, mask_RTS, past, layer.get("window", _shared_window(c))
        )
        out_RTD = _dense(c, c.width, ("heads", "embed"), "output", c.output_bias)(out_RTHE.reshape(R, T, -1))
        if isinstance(mask_RTS, ForestMask):
            return out_RTD, {"k": k_RTJE, "v": v_RTJE}
        new = {"k": k_RTJE.transpose(0, 2, 3, 1), "v": v_RTJE.transpose(0, 2, 1, 3)}
        return out_RTD, new | ({"position": positions_RT} if c.window else {})

    def _attend(self, q_RTHE, k_RSJE, v_RSJE, positions_RT, mask, past: Past | None, window: jax.Array | int):
        """window: tokens; the Python number 0 = none."""
        c, windowed = self.config, not isinstance(window, int) or window > 0
        if isinstance(mask, ForestMask):
            if windowed:
                mask = dataclasses.replace(mask, position_RT=positions_RT, window=jnp.asarray(window))
            if past is not None:
                k_RSJE, v_RSJE = (
                    jnp.concatenate([past[name], x], axis=1) for name, x in (("k", k_RSJE), ("v", v_RSJE))
                )
            return _TILED[c.attention](
                q_RTHE, k_RSJE, v_RSJE, mask, c.attention_block, scale=c.attention_scale, softcap=c.attention_softcap
            )
        if windowed:
            keys_RS = positions_RT if past is None else _positions(past, positions_RT)
            mask = mask & (positions_RT[:, :, None] - keys_RS[:, None] < window)
        return attend(q_RTHE, k_RSJE, v_RSJE, mask, past, c.attention_scale, c.attention_softcap)


def _positions(past: Past, positions_RT: Int[Array, "R T"]) -> Int[Array, "R S"]:
    """Of a layer's past and of the tokens behind it."""
    parts = [past["position"], positions_RT]
    if "shared_position" in past:
        shared_GS = past["shared_position"]
        parts = [jnp.repeat(shared_GS, positions_RT.shape[0] // shared_GS.shape[0], axis=0), *parts]
    return jnp.concatenate(parts, axis=-1)


class Mlp(nn.Module):
    """Gated: down(activation(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD):
        c = self.config
        gate_RTF = _dense(c, c.mlp_width, ("embed", "mlp"), "gate", c.mlp_bias)(x_RTD)
        up_RTF = _dense(c, c.mlp_width, ("embed", "mlp"), "up", c.mlp_bias)(x_RTD)
        return _dense(c, c.width, ("mlp", "embed"), "down", c.mlp_bias)(ACTIVATIONS[c.activation](gate_RTF) * up_RTF)


class Block(nn.Module):
    """One pre-norm layer, of some families with norms after its parts too; gives its new keys and values when `keep_past`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_RTD, past, layer, positions_RT, mask_RTS, keep_past: bool):
        c = self.config
        y, new = Attention(c, name="attention")(_norm(c, "attention_norm")(x_RTD), positions_RT, mask_RTS, past, layer)
        y = _norm(c, "attention_post_norm")(y) if c.post_norms else y
        x_RTD = nn.with_logical_constraint(x_RTD + y, ("rows", "tokens", None))
        y = Mlp(c, name="mlp")(_norm(c, "mlp_norm")(x_RTD))
        y = _norm(c, "mlp_post_norm")(y) if c.post_norms else y
        return nn.with_logical_constraint(x_RTD + y, ("rows", "tokens", None)), new if keep_past else None


def _stacked(config: TransformerConfig, depth: int) -> Any:
    """`depth` blocks as one scan."""
    block: Any = Block
    if config.remat != "none":
        block = nn.remat(Block, policy=_REMAT[config.remat], prevent_cse=False, static_argnums=(6,))
    return nn.scan(
        block,
        variable_axes={"params": 0, ROUTING: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
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

    def continued(
        self, tokens_RT: Int[Array, "R T"], positions_RT: Int[Array, "R T"], mask: ForestMask, past: Past
    ) -> tuple[Float[Array, "R T D"], Past]:
        """Hidden states of tokens of which some continue the mask's past, and the tokens' own keys and values.

        Raises:
          ValueError: the past is shorter than two blocks of attention: its tiles could be taken for the row's own.
        """
        columns, least = past["k"].shape[2], 2 * self.config.attention_block
        if columns < least:
            raise ValueError(
                f"the past has {columns} columns; two blocks of attention ({least}) are needed, of padding if need be"
            )
        return self._run(tokens_RT, positions_RT, mask, past, True)

    def _run(self, tokens_RT, positions_RT, mask_RTS, past, keep_past: bool):
        x_RTD = nn.with_logical_constraint(self._embed(tokens_RT), ("rows", "tokens", None))
        below, above, k = None, past, self.config.frozen_layers
        layers = by_layer(self.config)
        if k:
            if past is not None:
                below, above = _parted(past, k)
            lower, layers = _parted(layers, k)
            x_RTD, below = self.frozen_layers(x_RTD, below, lower, positions_RT, mask_RTS, keep_past)
        with adapted(self.config.adapter):
            x_RTD, new = self.layers(x_RTD, above, layers, positions_RT, mask_RTS, keep_past)
        if k and keep_past:
            new = jax.tree.map(lambda *parts: jnp.concatenate(parts), below, new)
        return self.final_norm(x_RTD), new

    def _embed(self, tokens_RT):
        """Looks up whole rows: from a table that is cut along the width, the compiler would gather the batch instead."""
        table_VD = nn.with_logical_constraint(self.embedding.embedding, ("vocab", None))
        x_RTD = jnp.take(table_VD.astype(self.config.dtype), tokens_RT, axis=0)
        if self.config.embedding_scale == 1:
            return x_RTD
        return x_RTD * jnp.asarray(self.config.embedding_scale, self.config.param_dtype).astype(x_RTD.dtype)

    def logits(self, hidden_RTD: Float[Array, "R T D"]) -> Float[Array, "R T V"]:
        """Next-token logits, computed in fp32: bf16 would round a logit of 18 to a multiple of 1/8."""
        hidden_RTD = hidden_RTD.astype(jnp.float32)
        if not self.config.tied_embeddings:
            logits_RTV = self.output(hidden_RTD)
        else:
            logits_RTV = jnp.dot(hidden_RTD, self.embedding.embedding.astype(jnp.float32).T)
        return capped(logits_RTV, self.config.logit_softcap)

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


def _parted(stacked: dict[str, jax.Array], k: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The first k layers' part, and the others'."""
    return {name: x[:k] for name, x in stacked.items()}, {name: x[k:] for name, x in stacked.items()}


def causal_mask(valid_RT: Bool[Array, "R T"]) -> Bool[Array, "R T T"]:
    """Plain causal mask over the valid tokens of each row."""
    T = valid_RT.shape[1]
    return jnp.tril(jnp.ones((T, T), bool))[None] & valid_RT[:, None, :] & valid_RT[:, :, None]
