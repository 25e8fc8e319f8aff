"""What a LoRAMoE adapter adds to any objective: routing as metrics, and the balancing constraint in the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.losses import balance as constraint
from rmjax.losses.balance import Balance
from rmjax.losses.reduction import total
from rmjax.models.forest import Forest
from rmjax.models.loramoe import ROUTING
from rmjax.train.objective import Objective, Terms


class _Recorder:
    """A model that keeps what the routers write in each call."""

    def __init__(self, model: Any):
        self.model = model
        self.calls: list[Any] = []

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        out, written = self.model.apply(variables, *args, **kwargs, mutable=[ROUTING])
        self.calls.append(written[ROUTING])
        return out


def balanced(build: Callable[[Any], Objective], model: Any, balance: Balance) -> Objective:
    """The objective that `build` makes of `model`, with the constraint and the routing terms.

    The constraint is one number of the whole batch (of each microbatch, where there are several) and stands beside the
    mean loss: mean + β · balance. Groups without a type take no part in it.

    Args:
      build: model → objective. The objective may call the model more than once; every call is constrained.

    Raises:
      ValueError: the model has no LoRAMoE adapter, or one of another number of experts.
    """
    adapter = model.config.adapter
    if adapter is None or adapter.kind != "loramoe" or adapter.experts != len(balance.expert_types):
        raise ValueError(
            f"the constraint is for a LoRAMoE adapter with {len(balance.expert_types)} experts, one for each entry of "
            f"expert_types; the model's adapter is {adapter}"
        )
    recorder = _Recorder(model)
    build_once = build(recorder)

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        recorder.calls.clear()
        terms = build_once(params, forest, rng)
        weights_MRTN = jnp.concatenate(jax.tree.leaves(recorder.calls))
        loss, count = terms["loss"]
        value = balance_of(weights_MRTN, forest, balance)
        return {
            **terms,
            **routing_terms(weights_MRTN, forest, balance.types, count),
            "balance": (value * count, count),
            "loss": (loss + balance.beta * value * count, count),
        }

    return objective


def balance_of(weights_MRTN: jax.Array, forest: Forest, balance: Balance) -> jax.Array:
    """The constraint of one batch, a scalar."""
    mass_MRGN = constraint.mass(weights_MRTN, forest.group_RT, forest.shape[2], balance.length_normalized)
    coefficient_RGN = constraint.coefficients(forest.type_RG, balance.expert_types, balance.delta)
    labeled_RG = (forest.type_RG >= 0) & (forest.weight_RG > 0)
    each_M = constraint.balance(mass_MRGN, coefficient_RGN, labeled_RG, balance.form)
    return jnp.mean(each_M) if balance.reduce == "mean" else jnp.sum(each_M)


def routing_terms(weights_MRTN: jax.Array, forest: Forest, types: int, count: jax.Array) -> Terms:
    """`routing/type<t>/expert<n>`: share of the mass of type t's groups, averaged over routers; `routing/variation`."""
    share_MRGN = constraint.mass(weights_MRTN, forest.group_RT, forest.shape[2])
    share_RGN, present_RG = jnp.mean(share_MRGN, axis=0), jnp.any(forest.readout_RGN >= 0, axis=-1)
    variation = jnp.mean(constraint.variation(share_MRGN, present_RG))
    terms = {"routing/variation": (variation * count, count)}
    for t in range(types):
        where_RG = present_RG & (forest.type_RG == t)
        for n in range(share_RGN.shape[-1]):
            terms[f"routing/type{t}/expert{n}"] = total(share_RGN[..., n], where_RG)
    return terms
