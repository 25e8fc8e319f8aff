"""Models of which parts exist several times: members share all other leaves, and are run together by vmap.

R rows, G groups a row, N branches a group, K members.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmjax.models.forest import Forest
from rmjax.models.lora import ADAPTER_PATH
from rmjax.models.parameters import flat, nested
from rmjax.models.reward import READOUT

LOADED_NOISE = 0.1
"""Standard deviation of what members differ by from a loaded head, as a fraction of its own."""


def member_pattern(over: str, trainable: str = "") -> str:
    """Of the paths whose leaves have a leading axis of members: a head, an adapter and a head, or all that is trained."""
    return {"head": "^head/", "adapter": rf"^head/|{ADAPTER_PATH}", "trainable": trainable}[over]


def repeated(params: Mapping[str, Any], pattern: str, members: int, seed: int, apart: float = 0.0) -> dict[str, Any]:
    """What a loaded model has once and members have each, repeated for them, with noise that tells them apart.

    Args:
      params: loaded ones; those of an ensemble are left as they are, and a head of zeros is left out: members draw theirs.
      apart: standard deviation of the noise on leaves other than the head's and an adapter's, as a fraction of each leaf's; the
        first member has none of it.
    """
    head: Any = next((leaf for path, leaf in flat(params).items() if re.search(READOUT, path)), None)
    if np.ndim(head) == 3:
        return dict(params)
    if head is None or not np.any(np.asarray(head)):  # a language model's
        params = {name: part for name, part in params.items() if name != "head"}
    random = np.random.default_rng(seed)

    def of(path: str, leaf: Any) -> np.ndarray:
        leaf = np.asarray(jax.device_get(leaf))
        own = re.search(rf"^head/|{ADAPTER_PATH}", path) is not None
        noise = random.standard_normal((members, *leaf.shape)) * ((LOADED_NOISE if own else apart) * leaf.std())
        return (leaf + (noise if own else np.concatenate([0 * noise[:1], noise[1:]]))).astype(leaf.dtype)

    return nested({path: of(path, x) if re.search(pattern, path) else x for path, x in flat(params).items()})


class Ensemble:
    """A model whose members share all but the leaves that match a pattern; those have the members as their first axis."""

    def __init__(self, model: Any, members: int, pattern: str, init_scale: float):
        self.bare, self.config = model, getattr(model, "config", None)
        self.members, self.pattern, self.init_scale = members, pattern, init_scale

    def init(self, key: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Linen's `init`; the members' leaves are drawn apart."""
        drawn = [
            flat(self.bare.init(jax.random.fold_in(key, k), *args, **kwargs)["params"]) for k in range(self.members)
        ]
        first = flat(self.bare.init(key, *args, **kwargs)["params"])
        own = {
            path: self._stacked(path, [leaves[path] for leaves in drawn], key) for path in first if self.is_own(path)
        }
        return {"params": nested(first | own)}

    def is_own(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None

    def _stacked(self, path: str, leaves: list[Any], key: Any) -> Any:
        boxed = leaves[0]
        values = jnp.stack([nn.meta.unbox(leaf) for leaf in leaves])
        if path.startswith("head/"):  # the bare head starts at zero, and equal members would stay equal
            noise = jax.random.normal(jax.random.fold_in(key, self.members), values.shape, values.dtype)
            values = noise * (self.init_scale * values.shape[-2] ** -0.5)
        return boxed.replace(value=values, names=(None, *boxed.names)) if isinstance(boxed, nn.Partitioned) else values

    def axes(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Which leaves `jax.vmap` maps over: 0 or None."""
        return nested({path: 0 if self.is_own(path) else None for path in flat(params)})

    def rewards(self, params: Any, forest: Forest) -> Float[Array, "R G N K"]:
        """Every member's rewards. Members differ by a constant that means nothing (`centered`)."""
        each = jax.vmap(lambda p: self.bare.apply({"params": p}, forest), in_axes=(self.axes(params),), out_axes=-1)
        return each(params)

    def apply(self, variables: Mapping[str, Any], forest: Forest, **kwargs: Any) -> Any:
        """As Linen's `apply`, of the mean reward."""
        del kwargs
        return jnp.mean(self.rewards(variables["params"], forest), axis=-1)


def combined(rewards_NK: np.ndarray, score: str) -> np.ndarray:
    """One number for each of a record's N candidates, from the rewards of K members: their mean; the minimum, or the standard
    deviation (disagreement), of their rewards less each member's mean over the candidates.

    Raises:
      ValueError: the minimum of a single candidate, which has nothing that members' constants could be measured against.
    """
    if score == "mean":
        return rewards_NK.mean(axis=1)
    if score == "minimum" and len(rewards_NK) == 1:
        raise ValueError("an ensemble's minimum compares the candidates of a prompt; give two or more of each prompt")
    apart = rewards_NK - rewards_NK.mean(axis=0)
    return apart.std(axis=1) if score == "disagreement" else apart.min(axis=1)


def centered(rewards_KRGN: Float[Array, "K R G N"], present_RGN: Array) -> Float[Array, "K R G N"]:
    """Rewards less their group's mean; 0 where a branch is absent."""
    count_RG1 = jnp.maximum(jnp.sum(present_RGN, axis=-1, keepdims=True), 1)
    mean_KRG1 = jnp.sum(jnp.where(present_RGN, rewards_KRGN, 0.0), axis=-1, keepdims=True) / count_RG1
    return jnp.where(present_RGN, rewards_KRGN - mean_KRG1, 0.0)


def spread(rewards_KRGN: Any, present_RGN: Any) -> Float[Array, "R G N"]:
    """The members' disagreement on each candidate of a group: the standard deviation of their centered rewards."""
    return jnp.std(centered(rewards_KRGN, present_RGN), axis=0)


def learned(record_RG: Array, member: jax.Array, seen: float) -> Float[Array, "R G"]:
    """1 where a member learns from the record of this index, else 0; record and member alone decide, for a fraction `seen`."""
    if seen == 1:
        return jnp.ones(record_RG.shape, jnp.float32)
    key = jax.random.fold_in(jax.random.key(0), member)
    draws = jax.vmap(jax.vmap(lambda record: jax.random.uniform(jax.random.fold_in(key, record))))(record_RG)
    return (draws < seen).astype(jnp.float32)
