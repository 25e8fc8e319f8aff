"""The reward model: a decoder, the hidden states at the read-outs, and a head on them, both of the latter in fp32."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rmjax.models.forest import Forest, attention_mask
from rmjax.models.tiles import ForestMask
from rmjax.models.transformer import Past, Transformer, TransformerConfig

READOUT = "(^|/)head/(output/)?kernel$"
"""Paths of the matrix that gives rewards, of either head: it is zero at the start."""
_FP32: Any = {"dtype": jnp.float32, "param_dtype": jnp.float32, "precision": "highest"}  # else a TPU multiplies in bf16
_ZERO = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
_ZEROS = nn.with_logical_partitioning(nn.initializers.zeros, ("embed", None))


class MlpHead(nn.Module):
    """Two matrices with biases and a ReLU between them, as Qwen2.5-Math-RM and others have it; zero at the start."""

    width: int

    @nn.compact
    def __call__(self, x_RND: Float[Array, "R N D"]) -> Float[Array, "R N 1"]:
        start = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None))
        bias: Any = {"bias_init": _ZERO}
        hidden_RNF = nn.relu(nn.Dense(self.width, kernel_init=start, name="hidden", **bias, **_FP32)(x_RND))
        return nn.Dense(1, kernel_init=_ZEROS, name="output", **bias, **_FP32)(hidden_RNF)


class RewardTransformer(nn.Module):
    """Rewards of every branch. The head is zero at the start, so the first loss is ln 2 exactly and rewards are 0."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.backbone = Transformer(c)
        self.head = (
            nn.Dense(1, use_bias=c.head_bias, kernel_init=_ZEROS, bias_init=_ZERO, **_FP32)
            if c.head == "linear"
            else MlpHead(c.head_hidden or c.width)
        )

    def __call__(self, forest: Forest) -> Float[Array, "R G N"]:
        """Rewards in fp32, 0 where a branch is absent."""
        return self._read(forest, self.hidden(forest))

    def continued(
        self, forest: Forest, past: Past, past_RCM: Int[Array, "R C 2"]
    ) -> tuple[Float[Array, "R G N"], Past]:
        """Rewards where groups continue prefixes whose keys and values are known, and the forest's own keys and values.
        Attention is in tiles; `past_RCM` is `ForestMask`'s, and positions of a group go on from its past."""
        mask = ForestMask(forest.group_RT, forest.branch_RT, past_RCM=past_RCM)
        hidden_RTD, new = self.backbone.continued(forest.tokens_RT, forest.positions_RT, mask, past)
        return self._read(forest, hidden_RTD), new

    def _read(self, forest: Forest, hidden_RTD: Float[Array, "R T D"]) -> Float[Array, "R G N"]:
        R, _, G, N = forest.shape
        columns = jnp.maximum(forest.readout_RGN, 0).reshape(R, G * N, 1)
        # The head acts on R·G·N gathered vectors, not on all tokens.
        readout = jnp.take_along_axis(hidden_RTD, columns, axis=1).astype(jnp.float32)
        rewards_RGN = self.head(readout).reshape(R, G, N)
        return jnp.where(forest.readout_RGN >= 0, rewards_RGN, 0.0)

    def hidden(self, forest: Forest) -> Float[Array, "R T D"]:
        """Hidden states of every token under the forest mask."""
        dense = self.config.attention == "dense"
        mask = (attention_mask if dense else ForestMask)(forest.group_RT, forest.branch_RT)
        return self.backbone(forest.tokens_RT, forest.positions_RT, mask)

    def logits_at(self, forest: Forest, columns_RT: Int[Array, "R T"]) -> Float[Array, "R T V"]:
        """For each token the logits at `columns_RT` of its row: at its predecessor they predict it."""
        return self.backbone.logits(jnp.take_along_axis(self.hidden(forest), columns_RT[..., None], axis=1))

    def values_at(self, forest: Forest, columns_RT: Int[Array, "R T"]) -> Float[Array, "R T"]:
        """For each token the head's number at `columns_RT` of its row, fp32; at its predecessor: a value of what is before it."""
        hidden_RTD = jnp.take_along_axis(self.hidden(forest), columns_RT[..., None], axis=1)
        return self.head(hidden_RTD.astype(jnp.float32))[..., 0]

    def projection_at(
        self, forest: Forest, columns_RT: Int[Array, "R T"]
    ) -> tuple[Float[Array, "R T D"], Float[Array, "V D"], float]:
        """The hidden states that `logits_at` projects, the vocabulary's projection, and the soft cap of the logits (0 = none):
        for losses that take them in chunks."""
        hidden_RTD = jnp.take_along_axis(self.hidden(forest), columns_RT[..., None], axis=1)
        return hidden_RTD, self.backbone.projection(), self.config.logit_softcap

    def logits(self, forest: Forest) -> Float[Array, "R T V"]:
        """Next-token logits of every token, for language-model losses on the same rows."""
        return self.backbone.logits(self.hidden(forest))
