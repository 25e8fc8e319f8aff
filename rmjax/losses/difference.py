"""MetaRM's difference loss: how far apart a reward model puts the answers of one policy to one prompt.

R rows, G groups a row, N branches a group, k ≤ N branches that are there. All is fp32, one value a group, never a mean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Rewards = Float[Array, "R G N"]
Present = Bool[Array, "R G N"]
PerGroup = Float[Array, "R G"]


def difference(rewards_RGN: Rewards, present_RGN: Present) -> PerGroup:
    """J = (2/k²) Σ_{i<j} σ(|r_i − r_j|) over the branches of a group that are there; 0 where fewer than two are.

    Higher is better: it is maximized, though the paper calls it a loss. Its gradient is 0 at equal rewards (those of a
    head of zeros are all equal) and fades at large gaps. Source: MetaRM, equation 2; arXiv 2401.06080, equation 11.
    """
    there_RGN = jnp.where(present_RGN, rewards_RGN, 0.0)  # before the gaps: masked-out NaN has a gradient of NaN
    values = jnp.where(pairs(present_RGN), jax.nn.sigmoid(gaps(there_RGN)), 0.0)
    return 2 * jnp.sum(values, axis=(-1, -2)) / jnp.square(jnp.maximum(_count(present_RGN), 1))


def bounds(present_RGN: Present) -> tuple[PerGroup, PerGroup]:
    """(all rewards equal, all infinitely far apart): ((k−1)/2k, (k−1)/k); both 0 where k < 2.

    The factor is 2/k², not 2/k(k−1), so J of groups of different k cannot be compared. With k = 2 it lies in
    [0.25, 0.5), with k = 5 in [0.4, 0.8).
    """
    k_RG = jnp.maximum(_count(present_RGN), 1)
    return (k_RG - 1) / (2 * k_RG), (k_RG - 1) / k_RG


def rescaled(difference_RG: PerGroup, present_RGN: Present) -> PerGroup:
    """J put from its bounds to [0, 1), whatever k; 0 where k < 2."""
    lower_RG, upper_RG = bounds(present_RGN)
    return (difference_RG - lower_RG) / jnp.where(upper_RG > lower_RG, upper_RG - lower_RG, 1.0)


def gaps(rewards_RGN: Rewards) -> Float[Array, "R G N N"]:
    """|r_i − r_j|, of gradient 0 where they are equal.

    `jnp.abs` has the gradient 1 at 0: from equal rewards it would raise whichever answer stands first.
    """
    rewards = rewards_RGN.astype(jnp.float32)
    differences_RGNN = rewards[..., :, None] - rewards[..., None, :]
    return differences_RGNN * jnp.sign(differences_RGNN)


def pairs(present_RGN: Present) -> Bool[Array, "R G N N"]:
    """Which (i, j) with i < j are both there."""
    both_RGNN = present_RGN[..., :, None] & present_RGN[..., None, :]
    return jnp.triu(both_RGNN, k=1)


def several(present_RGN: Present) -> Bool[Array, "R G"]:
    """The groups that J is about: at least two branches."""
    return _count(present_RGN) > 1


def _count(present_RGN: Present) -> PerGroup:
    return jnp.sum(present_RGN, axis=-1).astype(jnp.float32)
