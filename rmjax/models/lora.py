"""LoRA, rsLoRA and DoRA: what an adapter is, what it adds to one Dense, and how it is merged into it.

Axis letters: D inputs, O outputs, K rank, N experts. Layers are stacked, so in the tree every array has L in front.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

KINDS = ("lora", "rslora", "dora", "loramoe")
ROUTERS = ("linear", "block")
ROUTING = "routing"
"""The collection that routers write to when it is mutable: `<path of the router's owner>/weights`, [L, R, T, N]."""
ADAPTER_PATH = r"/lora_\w+$"
"""Paths of the adapter's parameters: `lora_a`, `lora_b`, `lora_magnitude`, `lora_router`."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An adapter: all that is needed to rebuild its parameters beside those of the base."""

    kind: str  # lora | rslora | dora | loramoe
    pattern: str = "mlp/(gate|up|down)$"  # of the paths of the Dense modules, such as backbone/layers/mlp/up
    rank: int = 4
    alpha: float = 32.0  # scale is alpha / rank, for rslora alpha / √rank
    dropout: float = 0.0  # of the adapter's input, in training; drawn for each expert apart
    experts: int = 1  # loramoe only
    top_k: int = 0  # loramoe: experts a token keeps; 0 = all of them, as in the paper
    router: str = "linear"  # loramoe: linear (each Dense has one) | block (the adapted Dense of a module share one)

    def __post_init__(self) -> None:
        for field, choices in (("kind", KINDS), ("router", ROUTERS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"adapter.{field} is {getattr(self, field)!r}; choose one of {', '.join(choices)}")
        if min(self.rank, self.experts) < 1:
            raise ValueError(f"adapter.rank is {self.rank} and experts {self.experts}; both must be 1 or more")
        if self.kind != "loramoe" and (self.experts, self.top_k) != (1, 0):
            raise ValueError(f"adapter.kind is {self.kind}: experts and top_k are of loramoe only")
        if not 0 <= self.top_k <= self.experts:
            raise ValueError(f"adapter.top_k is {self.top_k}; give 1 to {self.experts} experts, or 0 for all")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"adapter.alpha is {self.alpha}; it must be above 0 (the scale is alpha / rank)")
        if not self.pattern:
            raise ValueError("adapter.pattern is empty, which matches every Dense; give `.` if that is meant")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout is {self.dropout}; it must be at least 0 and below 1")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"adapter.pattern is {self.pattern!r}, not a regular expression: {error}") from error

    @property
    def routed(self) -> bool:
        """Whether routers weigh several experts anew for every token (LoRAMoE)."""
        return self.kind == "loramoe"

    @property
    def scale(self) -> float:
        """α/r (LoRA, section 4.1), or α/√r (rsLoRA, arXiv 2312.03732, theorem 3.2)."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(±1/√D): Kaiming-uniform with a = √5, the start of A and of routers in the official code. (D is the axis before the
last.)"""


def low_rank(dense: nn.Dense, x: Array, base: Array, config: AdapterConfig) -> Array:
    """What an adapted `dense` gives for `x`, where it gave `base` alone: W0 x + s B A x, or DoRA of it.

    DoRA (arXiv 2402.09353, eq. 5): m ∘ V x / ‖V‖ with V = W0 + s B A, norms over inputs; no gradient through ‖V‖ (its
    section 4.3). `lora_magnitude` is m − ‖W0‖, zero at the start whatever base is loaded later.
    """
    row, column = kernel_axes(dense)
    a_DK = parameter(dense, "lora_a", uniform, (x.shape[-1], config.rank), (row, None))
    b_KO = parameter(dense, "lora_b", nn.initializers.zeros, (config.rank, dense.features), (None, column))
    hidden = dropped(dense, x, config.dropout) @ a_DK.astype(base.dtype)
    delta = (config.scale * hidden) @ b_KO.astype(base.dtype)
    if config.kind != "dora":
        return base + delta
    offset_O = parameter(dense, "lora_magnitude", nn.initializers.zeros, (dense.features,), (column,))
    _, ratio_O = _decomposed(kernel(dense), a_DK, b_KO, offset_O, config.scale)
    ratio_O = ratio_O.astype(base.dtype)
    if not dense.use_bias:
        return ratio_O * (base + delta)
    bias_O = nn.meta.unbox(dense.get_variable("params", "bias")).astype(base.dtype)
    return ratio_O * (base - bias_O + delta) + bias_O


def _decomposed(kernel_DO: Array, a_DK: Array, b_KO: Array, offset_O: Array, scale: float) -> tuple[Array, Array]:
    """V, and m / ‖V‖, both in fp32; leading axes broadcast. V carries no gradient."""
    base_DO = kernel_DO.astype(jnp.float32)
    v_DO = jax.lax.stop_gradient(base_DO + scale * (a_DK @ b_KO))
    norm_O, base_norm_O = (jnp.sqrt(jnp.sum(jnp.square(w), axis=-2)) for w in (v_DO, base_DO))
    return v_DO, (jax.lax.stop_gradient(base_norm_O) + offset_O) / jnp.maximum(norm_O, 1e-12)


def merged(params: Mapping[str, Any], config: AdapterConfig) -> dict[str, Any]:
    """The base's tree with the adapter added into its kernels; computed in fp32, kept in the kernel's dtype.

    Raises:
      ValueError: LoRAMoE with several experts, whose routers depend on the input.
    """
    config, params = plain_of_one(config, params)
    if config.kind == "loramoe":
        raise ValueError(
            "a LoRAMoE adapter cannot be merged: its routers weigh the experts anew for every token; keep it as an adapter"
        )
    leaves = flatten_dict(dict(params), sep="/")
    kept = {path: leaf for path, leaf in leaves.items() if not re.search(ADAPTER_PATH, path)}
    for path in leaves:
        place, _, name = path.rpartition("/")
        if name != "lora_a":
            continue
        a, b, whole = leaves[path], leaves[f"{place}/lora_b"], leaves[f"{place}/kernel"]
        if config.kind == "dora":
            v, ratio = _decomposed(whole, a, b, leaves[f"{place}/lora_magnitude"], config.scale)
            new = v * ratio[..., None, :]
        else:
            new = whole.astype(jnp.float32) + config.scale * (a @ b)
        kept[f"{place}/kernel"] = new.astype(whole.dtype)
    return unflatten_dict(kept, sep="/")


def plain_of_one(config: AdapterConfig, params: Mapping[str, Any]) -> tuple[AdapterConfig, dict[str, Any]]:
    """LoRAMoE with a single expert as the LoRA that it is, since its router always gives 1; others as they are."""
    if config.kind != "loramoe" or config.experts > 1:
        return config, dict(params)
    leaves = flatten_dict(dict(params), sep="/")
    kept = {path: leaf for path, leaf in leaves.items() if not path.endswith("/lora_router")}
    for path in (path for path in kept if re.search(ADAPTER_PATH, path)):
        kept[path] = kept[path][:, 0]  # [L, N = 1, …]
    return AdapterConfig("lora", config.pattern, config.rank, config.alpha, config.dropout), unflatten_dict(kept, "/")


def kernel(dense: nn.Dense) -> Float[Array, "D O"]:
    """The base's kernel, from within a call of `dense`."""
    boxed: Any = dense.get_variable("params", "kernel")
    return nn.meta.unbox(boxed)  # type: ignore[return-value]


def kernel_axes(dense: nn.Dense) -> tuple[str | None, str | None]:
    """Logical axis names of the kernel while it is made; (None, None) later, when they no longer matter."""
    return getattr(dense.get_variable("params", "kernel"), "names", (None, None))


def parameter(owner: nn.Module, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Array:
    """A parameter of the adapter among those of `owner`; fp32 whatever the base's dtype, since it is trained."""
    made: Any = owner.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)  # unboxed by then
    return made


def dropped(module: nn.Module, x: Array, rate: float) -> Array:
    """Dropout where the caller gave a `dropout` key, that is in training; `x` itself otherwise."""
    if not rate or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return masked(x, keep, rate)


def masked(x: Array, keep: Array, rate: float) -> Array:
    """What dropout leaves of x; scaled in fp32, since 1 / (1 − rate) in bf16 would be off by up to 0.4 %."""
    return jnp.where(keep, x.astype(jnp.float32) / (1 - rate), 0).astype(x.dtype)
