"""LoRAMoE's localized balancing constraint: it spreads the routers' mass over the experts, tilted by a sample's type.

M routers (Dense modules × layers), R rows, T tokens a row, G groups a row, N experts. All is fp32.

Direction: the constraint is smallest where every I·Q is equal, so mass goes as 1/I and experts with I = 1 + δ get *less*
than those with 1 − δ: at δ = 0.1 they share 45 : 55, at any δ (1 − δ) : (1 + δ). Types are therefore defined by what
they do: an expert that serves type t has I = 1 − δ on samples of type t, and so gets more of their mass.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FORMS = ("paper", "code")
REDUCTIONS = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class Balance:
    """The constraint as a part of a loss: loss + beta · balance."""

    expert_types: tuple[int, ...]  # the type that each expert serves
    beta: float = 0.1  # 0 = routing is measured, not constrained
    delta: float = 0.1  # tilt between types, 0 to 1
    form: str = "code"  # paper: σ²/μ | code: σ²/μ², free of scale
    reduce: str = "mean"  # over the routers: mean | sum (official code)
    length_normalized: bool = True  # mass of a sample is its mean over tokens, not its sum (paper and official code)

    def __post_init__(self) -> None:
        for field, choices in (("form", FORMS), ("reduce", REDUCTIONS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"balance {field} is {getattr(self, field)!r}; choose {' or '.join(choices)}")
        if not 0 <= self.beta < math.inf or not 0 <= self.delta <= 1:
            raise ValueError(f"beta is {self.beta} and delta {self.delta}; beta is at least 0, delta from 0 to 1")
        if not self.expert_types or min(self.expert_types) < 0:
            raise ValueError(f"expert_types is {self.expert_types}; give the type that each expert serves, 0 or more")
        unserved = set(range(self.types)) - set(self.expert_types)
        if unserved:
            raise ValueError(
                f"expert_types is {self.expert_types}; no expert serves type {min(unserved)}: number the types from 0"
            )

    @property
    def types(self) -> int:
        """Number of types: labels run from 0 to this, exclusive."""
        return max(self.expert_types) + 1


def equal_groups(experts: int, exactly: bool = True) -> tuple[int, ...]:
    """The paper's experts: the first half serves type 0, the second half type 1 (and the middle one of an odd number
    type 0, unless `exactly`).

    That gives the coefficients of the official code, where task_type 1 (knowledge) has 1 + δ on the first half.

    Raises:
      ValueError: an odd number of experts, though the groups must be equal.
    """
    if exactly and experts % 2:
        raise ValueError(
            f"adapter.experts is {experts}, which does not make two equal groups; make it even or set adapter.expert_types"
        )
    return tuple(2 * n // experts for n in range(experts))


def mass(
    weights_MRTN: Float[Array, "M R T N"],
    group_RT: Int[Array, "R T"],
    groups: int,
    length_normalized: bool = True,
) -> Float[Array, "M R G N"]:
    """Q: each expert's routing weight summed over the tokens of a group, or (normalized) averaged over them.

    A group's tokens are its prefix, once, and all its branches. Padding has no group and no part; absent groups give 0.
    """
    member_RTG = (group_RT[..., None] == jnp.arange(1, groups + 1)).astype(jnp.float32)
    mass_MRGN = jnp.einsum("mrtn,rtg->mrgn", weights_MRTN, member_RTG, precision="highest")
    if not length_normalized:
        return mass_MRGN
    return mass_MRGN / jnp.maximum(jnp.sum(member_RTG, axis=1), 1)[..., None]


def coefficients(type_RG: Int[Array, "R G"], expert_types: tuple[int, ...], delta: float) -> Float[Array, "R G N"]:
    """I: 1 − δ where the expert serves the group's type, else 1 + δ (see the direction above).

    The paper prints 1 + δ for "equal types": with two types the same up to their names, which are exchangeable.
    """
    serves_RGN = type_RG[..., None] == jnp.asarray(expert_types)
    return jnp.where(serves_RGN, 1.0 - delta, 1.0 + delta)


def balance(
    mass_MRGN: Float[Array, "M R G N"],
    coefficient_RGN: Float[Array, "R G N"],
    labeled_RG: Bool[Array, "R G"],
    form: str = "code",
) -> Float[Array, "M"]:
    """L_lbc of each router, Z = I ∘ Q flattened over the labeled groups and the experts; 0 where none is labeled.

    paper: σ²(Z) / μ(Z), population variance; grows with the length of the samples unless the mass is normalized.
    code:  σ²(Z) / (μ(Z)² + 1e-10), unbiased variance, the squared coefficient of variation.
    """
    z_MRGN = coefficient_RGN * mass_MRGN
    where_RG1 = labeled_RG[..., None].astype(jnp.float32)
    count = jnp.sum(where_RG1) * z_MRGN.shape[-1]
    mean_M = jnp.sum(z_MRGN * where_RG1, axis=(1, 2, 3)) / jnp.maximum(count, 1)
    squares_M = jnp.sum(jnp.square(z_MRGN - mean_M[:, None, None, None]) * where_RG1, axis=(1, 2, 3))
    if form == "paper":
        return squares_M / jnp.maximum(count, 1) / jnp.maximum(mean_M, 1e-10)
    return squares_M / jnp.maximum(count - 1, 1) / (jnp.square(mean_M) + 1e-10)


def variation(share_MRGN: Float[Array, "M R G N"], present_RG: Bool[Array, "R G"]) -> Float[Array, "M"]:
    """Coefficient of variation of the experts' mass over all groups: 0 is an even spread, √(N − 1) one expert alone."""
    total_MN = jnp.sum(share_MRGN * present_RG[..., None], axis=(1, 2))
    return jnp.std(total_MN, axis=-1) / jnp.maximum(jnp.mean(total_MN, axis=-1), 1e-10)
