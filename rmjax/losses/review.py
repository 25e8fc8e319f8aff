"""Which pairs of a batch two models learn from: those of small loss, in the eyes of the other one, or of itself.

R rows, G groups a row, K = 2 models. The selection is a mask of the batch's shape, whatever its size, so that one compiled step
serves every noise rate.

Source: CRM, arXiv 2505.10597 (peer review by small loss); Co-teaching, Han et al. 2018, for the exchange and the ramp.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rmjax.losses.reduction import Term, total

REVIEWS = ("peer", "self", "random", "none")
PerModel = Float[Array, "K R G"]
Masks = Bool[Array, "K R G"]


def smallest(losses_RG: Float[Array, "R G"], usable_RG: Bool[Array, "R G"], discard: Array) -> Bool[Array, "R G"]:
    """The round((1 − discard) · n) of the n usable groups with the smallest loss; of equal ones the first."""
    flat = jnp.where(usable_RG, losses_RG.astype(jnp.float32), jnp.inf).reshape(-1)
    place = jnp.argsort(jnp.argsort(flat))  # stable
    count = jnp.round((1 - discard) * jnp.sum(usable_RG))
    return (place < count).reshape(losses_RG.shape) & usable_RG


def selections(
    losses_KRG: PerModel, usable_RG: Bool[Array, "R G"], discard: Array, review: str, rng: jax.Array
) -> Masks:
    """The groups that each model learns from.

    Args:
      losses_KRG: of each model on each group; nothing is differentiated through them.
      usable_RG: groups with a pair and a weight; others are in no selection.
      discard: fraction of them that is left out.
      review: peer: the other model's smallest losses | self: its own | random: so many by chance, each its own | none: all.
    """
    if review == "none":
        return jnp.broadcast_to(usable_RG, losses_KRG.shape)
    if review == "random":
        losses_KRG = jax.random.uniform(rng, losses_KRG.shape)
    found_KRG = jax.vmap(smallest, in_axes=(0, None, None))(jax.lax.stop_gradient(losses_KRG), usable_RG, discard)
    return found_KRG[::-1] if review == "peer" else found_KRG


def diagnostics(kept_KRG: Masks, usable_RG: Bool[Array, "R G"], flipped_RG: Float[Array, "R G"]) -> dict[str, Term]:
    """What the selections have in common and what they leave out.

    `jaccard`: pairs in both over pairs in one of them; `discarded`: the fraction that a model leaves out; of those whose label
    is known to be flipped (1) or not (0), `discard_precision`: flipped ones among the discarded, `discard_recall`: discarded
    ones among the flipped, and `flipped`: their fraction.
    """
    both_RG, any_RG = jnp.all(kept_KRG, axis=0), jnp.any(kept_KRG, axis=0)
    left_KRG = usable_RG & ~kept_KRG
    known_RG, is_flipped_RG = usable_RG & (flipped_RG >= 0), usable_RG & (flipped_RG > 0.5)
    return {
        "jaccard": (jnp.sum(both_RG).astype(jnp.float32), jnp.sum(any_RG).astype(jnp.float32)),
        "discarded": total(left_KRG, jnp.broadcast_to(usable_RG, left_KRG.shape)),
        "discard_precision": total(jnp.broadcast_to(is_flipped_RG, left_KRG.shape), left_KRG & known_RG),
        "discard_recall": total(left_KRG, jnp.broadcast_to(is_flipped_RG, left_KRG.shape)),
        "flipped": total(is_flipped_RG, known_RG),
    }


def flipped_fraction(margins: np.ndarray, steps: int = 500) -> float:
    """The fraction η of flipped labels that a model's margins let one guess, 0 to 0.5; on the host.

    A flip turns a margin round, so margins are a mixture of N(μ, s²), of weight 1 − η, and N(−μ, s²), fitted by expectation
    maximization. A Bradley–Terry loss is a monotone function of the margin: this is the mixture of losses in other units. What
    the model has wrong counts as flipped, and what it has learned by heart does not.
    """
    d = np.asarray(margins, np.float64)
    if d.size < 2 or not np.any(d):
        return 0.0
    mean, rate = float(np.mean(np.abs(d))), 0.25
    for _ in range(steps):
        variance = max(float(np.mean(d**2)) - mean**2, 1e-6 * float(np.mean(d**2)))
        odds = np.log(rate / (1 - rate)) - 2 * mean * d / variance
        guilt = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
        mean, rate = abs(float(np.mean((1 - 2 * guilt) * d))), float(np.clip(np.mean(guilt), 1e-4, 0.5))
    return rate
