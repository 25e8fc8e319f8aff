"""What kernels for attention under the forest mask share. A tile is a block of queries and a block of keys."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MASKED, FLOOR = -1e30, -1e29
"""A score that is not visible, and where maxima start: so far above it that exp(MASKED − FLOOR) is 0. Both are finite, so that a
token that sees none is free of NaN."""

Marks = tuple[Int[Array, "R T M"], Int[Array, "R S M"]]
"""Group, branch and column of queries and of keys; the keys' group is −1 where they are padding. Under a window a fourth: of a
key its position, of a query the last position before its window."""


@flax.struct.dataclass
class ForestMask:
    """Which token may attend to which, by its parts: see `models.forest.attention_mask`."""

    group_RT: Int[Array, "R T"]  # 0 = padding
    branch_RT: Int[Array, "R T"]  # 0 = the shared prefix
    position_RT: Int[Array, "R T"] | None = None  # on the token's path; only read under a window
    window: Int[Array, ""] | None = None  # tokens that one sees, itself included; None = all
    past_RCM: Int[Array, "R C 2"] | None = (
        None  # group (0 = padding) and position of keys before the row's own, prefixes all
    )

    def marks(self) -> Marks:
        """Of queries and of keys, which are padding where their group is 0."""
        columns = 0 if self.past_RCM is None else self.past_RCM.shape[1]
        column_RT = jnp.broadcast_to(columns + jnp.arange(self.group_RT.shape[1], dtype=jnp.int32), self.group_RT.shape)
        alike = [self.group_RT, self.branch_RT, column_RT]
        if self.window is None or self.position_RT is None:
            queries_RTM = keys_RSM = jnp.stack(alike, axis=-1)
        else:
            queries_RTM = jnp.stack([*alike, self.position_RT - self.window], axis=-1)
            keys_RSM = jnp.stack([*alike, self.position_RT], axis=-1)
        return queries_RTM, keys_RSM if self.past_RCM is None else self._after_past(keys_RSM)

    def _after_past(self, keys_RTM: Int[Array, "R T M"]) -> Int[Array, "R S M"]:
        """Marks of the past's keys, then of the row's own."""
        group_RC, position_RC = self.past_RCM[..., 0], self.past_RCM[..., 1]  # type: ignore[index]
        column_RC = jnp.broadcast_to(jnp.arange(group_RC.shape[1], dtype=jnp.int32), group_RC.shape)
        marks = [group_RC, jnp.zeros_like(group_RC), column_RC, position_RC]
        return jnp.concatenate([jnp.stack(marks[: keys_RTM.shape[-1]], axis=-1), keys_RTM], axis=1)


def capped(scores: Array, softcap: float) -> Array:
    """c · tanh(scores / c), which stays between −c and c (Gemma 2); the scores as they are where c is 0."""
    return softcap * jnp.tanh(scores / softcap) if softcap else scores


def tiles_seen(queries_RCBM: Int[Array, "R C B M"], keys_RDBM: Int[Array, "R D B M"]) -> Bool[Array, "R C D"]:
    """Which tiles may have a token that sees another, by the ranges of the blocks' marks. A tile may be in it although no token
    sees one, but not the other way round."""

    def ranges(marks_RCBM):
        real, most = marks_RCBM[..., :1] > 0, jnp.iinfo(jnp.int32).max
        low = jnp.min(marks_RCBM, axis=2, where=real, initial=most)
        return low, jnp.max(marks_RCBM, axis=2, where=real, initial=-most)

    q_low, q_high = (x[:, :, None] for x in ranges(queries_RCBM))
    k_low, k_high = (x[:, None] for x in ranges(keys_RDBM))
    overlap = (k_low <= q_high) & (q_low <= k_high)
    seen = overlap[..., 0] & ((k_low[..., 1] == 0) | overlap[..., 1]) & (k_low[..., 2] <= q_high[..., 2])
    return seen & (k_high[..., 3] > q_low[..., 3]) if queries_RCBM.shape[-1] == 4 else seen


def apart(marks: Marks) -> Sequence[Int[Array, "R T"]]:
    """Groups, branches, columns of queries, then of keys."""
    return [found[..., n] for found in marks for n in range(3)]


def listed(seen_RAB: Bool[Array, "R A B"]) -> tuple[Int[Array, "R A B"], Int[Array, "R A"]]:
    """For each block along A the numbers of those along B that it sees, these first; and how many they are."""
    return jnp.argsort(~seen_RAB, axis=-1, stable=True).astype(jnp.int32), jnp.sum(seen_RAB, axis=-1, dtype=jnp.int32)
