"""A decoder's architecture as data: what differs between families of models are values here."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from rmjax.models.lora import AdapterConfig
from rmjax.models.rope import Rope

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"silu": nn.silu, "gelu_tanh": nn.gelu}
"""nn.gelu is the approximation by tanh."""
HEADS = ("linear", "mlp")
ATTENTIONS = ("dense", "blockwise", "pallas")
REMATS = ("none", "dots", "attention", "full")


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
    rope: Rope = Rope()  # rotary positions
    local_rope: Rope | None = None  # those of windowed layers (Gemma 3); None = the same
    window: int = 0  # tokens that a windowed layer sees, itself included, by positions on its own path; 0 = no windows
    windowed: tuple[bool, ...] = ()  # layer by layer; () = all, if window is above 0
    rotary: tuple[bool, ...] = ()  # layers with rotary positions; () = all (SmolLM3 leaves out some)
    norm_epsilon: float = 1e-5
    norm_offset: bool = False  # Gemma: a norm multiplies by 1 + its scale, in fp32
    post_norms: bool = False  # Gemma: norms after attention and after the mlp too, before the sum
    qkv_bias: bool = False  # Qwen 1.5 / 2 / 2.5
    output_bias: bool = False  # of the attention's output
    mlp_bias: bool = False  # of all three matrices
    qk_norm: bool = False  # Qwen 3, Gemma 3: RMSNorm on each query and key head
    activation: str = "silu"  # of the mlp's gate: silu | gelu_tanh
    embedding_scale: float = 1.0  # of looked-up embeddings, rounded to param_dtype (Gemma: √width)
    attention_scale: float = 0.0  # of products of queries and keys; 0 = 1 / √head_width
    attention_softcap: float = 0.0  # c: scores x become c · tanh(x / c) (Gemma 2); 0 = they stay
    logit_softcap: float = 0.0  # the same of next-token logits
    tied_embeddings: bool = True
    max_positions: int = 8192
    head: str = "linear"  # of a reward model: linear | mlp (Dense, ReLU, Dense, both with bias)
    head_bias: bool = False  # of the linear head, for models that were made elsewhere (GRM)
    head_hidden: int = 0  # width between the mlp head's matrices; 0 = width
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.attention_block < 1:
            raise ValueError(f"attention_block is {self.attention_block}; it must be 1 or more")
        if not 0 <= self.frozen_layers < self.depth:
            raise ValueError(f"frozen_layers is {self.frozen_layers}; it must leave one of the {self.depth} layers")
        for name in ("window", "head_hidden", "attention_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        self._check_layers()
        self._check_ropes()
        if self.attention == "pallas" and (self.window or self.attention_softcap):
            found = f"a window of {self.window} tokens" if self.window else f"a softcap of {self.attention_softcap}"
            raise ValueError(
                f"attention is pallas, whose kernels do not have {found}; set model.attention to blockwise or dense"
            )

    def _check_layers(self) -> None:
        for name in ("windowed", "rotary"):
            if (found := len(getattr(self, name))) not in (0, self.depth):
                raise ValueError(f"{name} says it of {found} layers; it must do so of all {self.depth}, or be empty")
        if not self.window and (self.windowed or self.local_rope):
            raise ValueError(
                f"window is 0, but {'windowed' if self.windowed else 'local_rope'} is set; set window, too"
            )

    def _check_ropes(self) -> None:
        for rope in (self.rope, self.local_rope or self.rope):
            rope.check(self.head_width, self.max_positions)
        if self.local_rope and self.local_rope.partial != self.rope.partial:
            raise ValueError(
                f"local_rope.partial is {self.local_rope.partial} and rope.partial {self.rope.partial}; they must be the same"
            )

    @classmethod
    def parse(cls, described: Mapping[str, Any]) -> "TransformerConfig":
        """From what `dataclasses.asdict` and JSON made of one, or of an older version's.

        Raises:
          TypeError, ValueError: a field is unknown, missing, or has a value that it cannot have.
        """
        fields = dict(described)
        if "rope_theta" in fields:  # before other kinds of scaling
            theta, scale = fields.pop("rope_theta"), fields.pop("rope_scale", 1.0)
            fields["rope"] = {"theta": theta, "kind": "none" if scale == 1 else "linear", "factor": scale}
        for name in ("rope", "local_rope"):
            if fields.get(name) is not None:
                fields[name] = Rope(**{key: _hashable(value) for key, value in fields[name].items()})
        if fields.get("adapter"):  # older descriptions lack it
            fields["adapter"] = AdapterConfig(**fields["adapter"])
        return cls(**{name: _hashable(value) for name, value in fields.items()})

    def with_layers(self, kept: Sequence[int], **changes: Any) -> "TransformerConfig":
        """The architecture of these layers of it alone (0-based), with other fields changed."""
        of_layers = {
            name: tuple(found[i] for i in kept if i < len(found))
            for name in ("windowed", "rotary")
            if (found := getattr(self, name))
        }
        return dataclasses.replace(self, **{"depth": len(kept), **of_layers, **changes})


_CHOICES = {"remat": REMATS, "attention": ATTENTIONS, "activation": tuple(ACTIVATIONS), "head": HEADS}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
