"""Where a LoRAMoE adapter sends what: share of mass by router, type, layer and expert, over a whole data set."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from rmjax.data.formats import Encoder
from rmjax.data.packing import Tree, pack
from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import fitting_shape
from rmjax.losses.balance import mass
from rmjax.models.forest import Forest
from rmjax.models.lora import ROUTING
from rmjax.models.parameters import flat
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import RewardModel

_log = logging.getLogger(__name__)


def expert_shares(
    model: RewardTransformer, params: Any, forests: Iterable[Forest], types: int
) -> dict[str, Float[ndarray, "types L N"]]:
    """Router → share of the mass that each expert gets from the groups of a type, at each layer; NaN without such groups.

    A router is named by the module that owns it, such as `mlp/gate`, or `mlp` where a block shares one. Groups count
    alike whatever their length; those without a type are left out.

    Raises:
      ValueError: the model has no LoRAMoE adapter, or there is no forest.
    """
    if model.config.adapter is None or model.config.adapter.kind != "loramoe":
        raise ValueError("the model has no LoRAMoE adapter, so nothing is routed")

    @jax.jit
    def sums(params: Any, forest: Forest) -> tuple[Any, jax.Array]:
        _, written = model.apply({"params": params}, forest, method="hidden", mutable=[ROUTING])
        is_type_RGZ = jax.nn.one_hot(forest.type_RG, types) * jnp.any(forest.readout_RGN >= 0, axis=-1)[..., None]

        def by_type(weights_LRTN: jax.Array) -> jax.Array:
            return jnp.einsum("lrgn,rgz->zln", mass(weights_LRTN, forest.group_RT, forest.shape[2]), is_type_RGZ)

        return jax.tree.map(by_type, written[ROUTING]), jnp.sum(is_type_RGZ, axis=(0, 1))

    added: Any = None
    for forest in forests:
        found = jax.device_get(sums(params, forest))
        added = found if added is None else jax.tree.map(np.add, added, found)
    if added is None:
        raise ValueError("there is no text to see the routing of")
    shares, counts_Z = added
    with np.errstate(invalid="ignore", divide="ignore"):
        by_path = {path: value[0] / counts_Z[:, None, None] for path, value in flat(shares).items()}
    return {path.removeprefix("backbone/layers/").removesuffix("/weights"): v for path, v in by_path.items()}


def describe_routing(
    config: TransformerConfig, params: Any, trees: Sequence[Tree], types: Sequence[str], batch_tokens: int = 4096
) -> dict[str, Any]:
    """`routing` of a report: the shares of `expert_shares` over these groups as lists, and how unevenly they are spread.

    Args:
      types: the name of each type of group.

    Raises:
      ValueError: the model has no LoRAMoE adapter, there is no group, or one of a type that has no name.
    """
    if (highest := max((tree.type for tree in trees), default=-1)) >= len(types):
        raise ValueError(
            f"a group is of type {highest}, and there are names for {len(types)} types ({', '.join(types)})"
        )
    forests = (forest for forest, _ in pack(trees, fitting_shape(trees, batch_tokens))) if trees else ()
    shares = expert_shares(RewardTransformer(config), params, forests, len(types))
    listed = {router: _nullable(share_ZLN) for router, share_ZLN in shares.items()}
    return {"types": list(types), "shares": listed, "variation": spread_of(shares)}


def routing_of(model: RewardModel, comparisons: Sequence[Comparison], types: Sequence[str] = ()) -> dict[str, Any]:
    """`describe_routing` of a reward model's records.

    Args:
      types: as there; empty: "type 0" and so on, as many as the records have.

    Raises:
      ValueError: as there, or no record has a type.
    """
    labels = [c.type for c in comparisons if c.type is not None]
    if not labels:
        raise ValueError(
            "no record has a `type`, so there is nothing to tell the routing apart by; give each record its number"
        )
    if without := len(comparisons) - len(labels):
        _log.warning("%d of %d records have no `type` and are left out of the routing", without, len(comparisons))
    encoder = Encoder(model.tokenizer, model.format, row_tokens=model.format.max_length)
    trees = [tree for i, row in enumerate(comparisons) for tree in encoder.trees(row, i)]
    return describe_routing(model.config, model.params, trees, types or [f"type {t}" for t in range(max(labels) + 1)])


def _nullable(values: Float[ndarray, "types L N"]) -> list:
    found = values.astype(object)
    found[np.isnan(values)] = None  # JSON has no NaN
    return found.tolist()


def served_share(routing: Mapping[str, Any], expert_types: Sequence[int]) -> list[float | None]:
    """For each type the share of its groups' mass that goes to the experts that serve it, mean over routers and layers; of
    what `describe_routing` gives. Under the constraint at its best that is (1 + δ) / 2 for two types, without one about 1 / 2.
    None for a type without groups.
    """
    serves_ZN = np.asarray(expert_types) == np.arange(len(routing["types"]))[:, None]
    shares = [np.asarray(share_ZLN, np.float64) for share_ZLN in routing["shares"].values()]
    each_Z = np.mean([np.mean(np.sum(share_ZLN * serves_ZN[:, None], -1), -1) for share_ZLN in shares], axis=0)
    return [None if np.isnan(share) else float(share) for share in each_Z]


def spread_of(shares: Mapping[str, Float[ndarray, "types L N"]]) -> float:
    """Coefficient of variation of the experts' mass, types counted alike, mean over routers and layers: 0 is an even
    spread, √(N − 1) one expert alone."""
    by_expert = [np.nanmean(share_ZLN, axis=0) for share_ZLN in shares.values()]
    return float(np.mean([np.std(x_LN, axis=-1) / np.mean(x_LN, axis=-1) for x_LN in by_expert]))
