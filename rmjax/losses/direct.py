"""Log-probabilities of candidates on a forest, and the losses of direct preference optimization.

R rows, T tokens a row, G groups a row, N branches a group, V vocabulary. All is fp32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def predecessors(group_RT: Int[Array, "R T"], branch_RT: Int[Array, "R T"], groups: int) -> Int[Array, "R T"]:
    """The column whose logits predict each token: the one before it on its path, −1 where there is none.

    The first token of a branch is predicted at the end of its group's prefix, which is not the column before it.
    """
    columns_T = jnp.arange(group_RT.shape[1])
    before = [jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=-1) for x in (group_RT, branch_RT)]
    first_RT = (group_RT != before[0]) | (branch_RT != before[1])
    is_prefix_RTG = (group_RT[..., None] == jnp.arange(1, groups + 1)) & (branch_RT == 0)[..., None]
    prefix_end_RG = jnp.max(jnp.where(is_prefix_RTG, columns_T[:, None], -1), axis=1)
    own_end_RT = jnp.take_along_axis(prefix_end_RG, jnp.maximum(group_RT - 1, 0), axis=1)
    start_RT = jnp.where(branch_RT > 0, own_end_RT, -1)
    return jnp.where(group_RT == 0, -1, jnp.where(first_RT, start_RT, columns_T - 1))


def token_log_probabilities(logits_RTV: Float[Array, "R T V"], tokens_RT: Int[Array, "R T"]) -> Float[Array, "R T"]:
    """log p of each token under the logits that predict it (`predecessors` says which)."""
    log_probability = jax.nn.log_softmax(logits_RTV.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probability, tokens_RT[..., None], axis=-1)[..., 0]


def path_sums(
    values_RT: Float[Array, "R T"], group_RT: Int[Array, "R T"], branch_RT: Int[Array, "R T"], shape: tuple[int, int]
) -> Float[Array, "R G N"]:
    """Sums of `values` over the path of each candidate: its group's prefix and its own branch.

    Args:
      shape: (G, N).
    """
    in_group_RTG = (group_RT[..., None] == jnp.arange(1, shape[0] + 1)).astype(jnp.float32)
    on_branch_RTN = (branch_RT[..., None] == jnp.arange(1, shape[1] + 1)) | (branch_RT == 0)[..., None]
    # Highest precision, else a TPU would multiply in bf16.
    kept_RTN = on_branch_RTN.astype(jnp.float32)
    return jnp.einsum("rt,rtg,rtn->rgn", values_RT, in_group_RTG, kept_RTN, precision="highest")


def ipo(
    rewards_RGN: Float[Array, "R G N"], order_RGNN: Bool[Array, "R G N N"], margin_RG: Float[Array, "R G"], beta: float
) -> Float[Array, "R G"]:
    """(h_i − h_j − (1/2 + m) / β)² averaged over the ordered pairs of a group, with h = reward / β, the log-ratio to the
    reference, and m the margin of the rewards, 0 in the paper.

    Source: Azar et al. 2023 (arXiv 2310.12036), equation 17.
    """
    ratios_RGN = rewards_RGN.astype(jnp.float32) / beta
    wanted_RG11 = ((0.5 + margin_RG) / beta)[..., None, None]
    gap_RGNN = ratios_RGN[..., :, None] - ratios_RGN[..., None, :] - wanted_RG11
    pairs_RG = jnp.sum(order_RGNN, axis=(-1, -2))
    return jnp.sum(jnp.where(order_RGNN, jnp.square(gap_RGNN), 0.0), axis=(-1, -2)) / jnp.maximum(pairs_RG, 1)
