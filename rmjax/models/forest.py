"""The one batch, a forest: rows that pack trees, and the mask under which their tokens attend.

R rows, T tokens a row, G groups (trees) a row, N branches a group. Token i may attend to j iff both are of the same group, j is
on the prefix or on i's own branch, and j <= i.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forest:
    """The batch. Absent groups and branches have readout −1; padding has group 0.

    What is known of the records stands in `columns`, by full name, and is read as an attribute: `forest.weight_RG`. Which columns
    there are is declared in `models.columns`: ranks_RGN, weight_RG, margin_RG, type_RG, target_RT, target_weight_RT and what
    a user declares.
    """

    tokens_RT: Array  # int32
    positions_RT: Array  # int32, from 0 in each group
    group_RT: Array  # int32, 1 … G; 0 = padding
    branch_RT: Array  # int32, 1 … N; 0 = the shared prefix
    readout_RGN: Array  # int32, column of each branch's last token, −1 = absent
    record_RG: Array  # int32, index in the source, −1 = none
    columns: Mapping[str, Array]  # the declared facts

    def __getattr__(self, name: str) -> Array:
        """A declared column; only called for what is no field."""
        columns = self.__dict__.get("columns", {})
        if name in columns:
            return columns[name]
        have = ", ".join(sorted(columns))
        raise AttributeError(
            f"the forest has no column {name}; declare it (rmjax.models.columns) before the batch is made; it has {have}"
        )

    def replace(self, **changes: Any) -> "Forest":
        """A copy with other arrays; columns are named as attributes are."""
        columns = {**self.columns, **{name: changes.pop(name) for name in [*changes] if name in self.columns}}
        return dataclasses.replace(self, **{"columns": columns, **changes})

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(R, T, G, N)."""
        (R, T), (_, G, N) = self.tokens_RT.shape, self.readout_RGN.shape
        return R, T, G, N


def attention_mask(group_RT: Array, branch_RT: Array) -> Bool[Array, "R T T"]:
    """mask[r, i, j]: token i may attend to token j."""
    T = group_RT.shape[1]
    same_group = (group_RT[:, :, None] == group_RT[:, None, :]) & (group_RT > 0)[:, :, None]
    visible = (branch_RT[:, None, :] == 0) | (branch_RT[:, None, :] == branch_RT[:, :, None])
    return same_group & visible & jnp.tril(jnp.ones((T, T), bool))[None]


def unshared_tokens(forest: Forest) -> jax.Array:
    """Tokens that the same candidates would take as separate sequences; over real tokens it is the sharing factor."""
    R, T, G, N = forest.shape
    prefix_RG = jnp.sum(
        (forest.group_RT[:, :, None] == jnp.arange(1, G + 1)) & (forest.branch_RT == 0)[:, :, None], axis=1
    )
    branches_RG = jnp.sum(forest.readout_RGN >= 0, axis=-1)
    return jnp.sum(prefix_RG * branches_RG) + jnp.sum((forest.group_RT > 0) & (forest.branch_RT > 0))
