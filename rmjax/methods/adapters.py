"""LoRA, rsLoRA, DoRA and LoRAMoE as parts of a run: `config.adapter` → the adapter, what may then be trained, and LoRAMoE's
balancing constraint, which is added to any objective."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax.data.record import Comparison, require_type
from rmjax.losses import balance as constraint
from rmjax.losses.balance import FORMS, REDUCTIONS, Balance, equal_groups
from rmjax.losses.reduction import total
from rmjax.methods.method import Build, Method
from rmjax.models.forest import Forest
from rmjax.models.lora import ADAPTER_PATH, KINDS, ROUTERS, ROUTING, AdapterConfig
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import Rules, shards
from rmjax.sections import choice, number, pattern
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """`config.adapter`; with one, only its parameters and the head are trained, of `config.trainable`."""

    kind: str = choice("", "", *KINDS)  # none when empty
    pattern: str = pattern(
        "mlp/(gate|up|down)$"
    )  # regular expression over paths of Dense modules: backbone/layers/mlp/up
    rank: int = number(4, low=1)  # inner width, of each expert
    alpha: float = number(32.0, above=0)  # scale is alpha / rank; rslora: alpha / √rank
    dropout: float = number(
        0.0, low=0, below=1
    )  # fraction of the adapter's inputs dropped in training, for each expert
    experts: int = number(6, low=1)  # loramoe, as what follows (official script: 8)
    top_k: int = number(0, low=0)  # experts that a token keeps; 0 = all, as in the paper
    router: str = choice("linear", *ROUTERS)  # linear: one for each adapted Dense | block: one for an MLP or attention
    balance: str = choice("code", *FORMS)  # form of the balancing constraint: paper (σ²/μ) | code (σ²/μ²)
    beta: float = number(0.0, low=0)  # its factor in the loss; above 0 every record needs a `type`
    delta: float = number(0.1, low=0, high=1)  # its tilt: 0 treats types alike, 1 separates them
    reduce: str = choice("mean", *REDUCTIONS)  # of the constraint over routers and layers: mean | sum (official code)
    length_normalized: bool = True  # a sample's mass is a mean over its tokens; False: a sum (paper, official code)
    expert_types: tuple[int, ...] = ()  # type that each expert serves; empty: the first half 0, the second half 1


def adapter_config(section: Adapter) -> AdapterConfig | None:
    """From `config.adapter`; None where its kind is empty."""
    if not section.kind:
        return None
    mixture: dict[str, Any] = {"experts": section.experts, "top_k": section.top_k, "router": section.router}
    return AdapterConfig(
        section.kind, section.pattern, section.rank, section.alpha, section.dropout,
        **(mixture if section.kind == "loramoe" else {}),
    )  # fmt: skip


def _check(config: Config, mesh: Mesh, rules: Rules) -> None:
    """Says what `config.adapter` sets in vain; ValueError where its experts cannot be cut over the mesh."""
    section, parts = _section(config), shards(mesh, rules, "experts")
    if section.kind == "loramoe":
        if section.experts % parts:
            raise ValueError(
                f"config.adapter.experts is {section.experts}; make it a multiple of {parts}, over which config.sharding.experts "
                "cuts them, or set that to ()"
            )
        make_balance(section)
        return
    in_vain = [name for name in ("beta", "expert_types", "top_k") if getattr(section, name)]
    if in_vain:
        _log.warning("config.adapter.%s: of loramoe only, without effect; kind is %r", ", ".join(in_vain), section.kind)


def _section(config: Config) -> Adapter:
    found: Adapter = config.sections["adapter"]
    return found


def make_balance(section: Adapter) -> Balance | None:
    """From `config.adapter`; None where nothing is routed.

    Raises:
      ValueError: values that the constraint cannot have; experts that make no two equal groups where these are needed.
    """
    if section.kind != "loramoe":
        return None
    types = tuple(section.expert_types)
    if types and len(types) != section.experts:
        raise ValueError(
            f"config.adapter.expert_types has {len(types)} entries; give one for each of {section.experts}"
        )
    return Balance(
        types or equal_groups(section.experts, exactly=section.beta > 0), section.beta, section.delta, section.balance,
        section.reduce, section.length_normalized,
    )  # fmt: skip


def types_needed(section: Adapter) -> int:
    """How many types the records' labels must be of; 0 where they need none."""
    balance = make_balance(section)
    return balance.types if balance and balance.beta else 0


def trainable_paths(config: Config, before: str) -> str:
    """With an adapter only its parameters and the head among what `before` matches: the base is frozen."""
    return rf"^(?=.*(?:{ADAPTER_PATH}|^head/))(?=.*(?:{before}))"


def adapted_architecture(base: TransformerConfig, section: Adapter) -> TransformerConfig:
    """The architecture with the adapter of `config.adapter`.

    Raises:
      ValueError: the base has another adapter already.
    """
    wanted, present = adapter_config(section), base.adapter
    if present is not None and (wanted is None or dataclasses.replace(wanted, dropout=present.dropout) != present):
        raise ValueError(
            f"config.model.init has an adapter, {present}; set config.adapter to the same one to train it further, "
            "or merge it first: python -m experiments.export --to=merged"
        )
    return dataclasses.replace(base, adapter=wanted)


# --- LoRAMoE's constraint ------------------------------------------------------------------------------------------------


class _Recorder:
    """A model that keeps what the routers write in each call."""

    def __init__(self, model: Any):
        self.model = model
        self.bare = getattr(model, "bare", model)
        self.config = model.config
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
    """`routing/type<t>/expert<n>`: fraction of the mass of type t's groups, averaged over routers; `routing/variation`."""
    share_MRGN = constraint.mass(weights_MRTN, forest.group_RT, forest.shape[2])
    share_RGN, present_RG = jnp.mean(share_MRGN, axis=0), jnp.any(forest.readout_RGN >= 0, axis=-1)
    variation = jnp.mean(constraint.variation(share_MRGN, present_RG))
    terms = {"routing/variation": (variation * count, count)}
    for t in range(types):
        where_RG = present_RG & (forest.type_RG == t)
        for n in range(share_RGN.shape[-1]):
            terms[f"routing/type{t}/expert{n}"] = total(share_RGN[..., n], where_RG)
    return terms


def _around(config: Config, build: Build, model: Any) -> Objective:
    balance = make_balance(_section(config))
    return balanced(build, model, balance) if balance else build(model)


def _require(config: Config) -> Callable[[Comparison], None] | None:
    types = types_needed(_section(config))
    return (lambda c: require_type(c.type, types, c.place)) if types else None


def _in_parts(config: Config) -> str:
    """The constraint is one number of a whole batch."""
    if _section(config).beta:
        return "other"
    return "random" if _section(config).dropout else "exact"


METHOD = Method(
    "adapters",
    sections={"adapter": Adapter},
    active=lambda config: bool(config.sections["adapter"].kind),
    check=_check,
    require=_require,
    architecture=lambda config, base: adapted_architecture(base, _section(config)),
    trainable=trainable_paths,
    may_miss=lambda config: ADAPTER_PATH,
    around_objective=_around,
    in_parts=_in_parts,
    example={"adapter.kind": "loramoe", "adapter.experts": 2, "adapter.beta": 0.1},
)
