"""Direct preference optimization: a policy learns from ranked answers, held near the reference that it started from.

Source: DPO, Rafailov et al. 2023 (arXiv 2305.18290), equations 5 and 7; IPO, Azar et al. 2023 (arXiv 2310.12036), equation 17;
label smoothing as in conservative DPO (Mitchell 2023).

The log-probabilities are those of whole sequences. What all candidates of a group share, the prompt above all, drops out of the
differences of their rewards, which are all that the loss and a ranking look at.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.data.votes import Order
from rmjax.losses import ranking
from rmjax.losses.direct import ipo, path_sums, predecessors, token_log_probabilities
from rmjax.losses.reduction import total
from rmjax.methods.method import Method, Rewards, Wrapped
from rmjax.models.forest import Forest
from rmjax.roles import Role, Roles
from rmjax.sections import choice, number
from rmjax.settings import Config
from rmjax.train.objective import Objective, Ranked, Terms, check_loss, preference_terms, reward_terms, terms_of

REFERENCE = "reference"
UNREAD = ("name", "label_smoothing", "tie", "regression_weight", "penalty", "penalty_weight")
"""Keys of `config.loss` that only `dpo.loss=rewards` reads."""
ROLES = Roles("policy", {REFERENCE: Role(anchor=True)})


@dataclasses.dataclass(frozen=True)
class Section:
    """`config.dpo`."""

    beta: float = number(0.1, above=0)  # strength of the pull to the reference: a reward is beta times a log-ratio
    loss: str = choice(
        "sigmoid", "sigmoid", "ipo", "rewards"
    )  # sigmoid: DPO | ipo: a squared distance to a gap of 1 / 2 beta | rewards: config.loss on implicit rewards
    label_smoothing: float = number(0.0, low=0, below=0.5)  # sigmoid: fraction of flipped labels assumed


def log_probabilities(model: Any, params: Any, forest: Forest, rng: Any = None) -> jax.Array:
    """log π of every token given those before it on its path, [R, T]; 0 where a path begins, and in padding."""
    columns_RT = predecessors(forest.group_RT, forest.branch_RT, forest.shape[2])
    rngs = {} if rng is None else {"dropout": rng}
    at_RT = jnp.maximum(columns_RT, 0)
    logits_RTV: Any = model.apply({"params": params}, forest, at_RT, rngs=rngs, method="logits_at")
    return jnp.where(columns_RT >= 0, token_log_probabilities(logits_RTV, forest.tokens_RT), 0.0)


def implicit_rewards(model: Any, beta: float) -> Callable[..., jax.Array]:
    """(parameters by role, forest, rng = None) → β log π / π_ref of every candidate, [R, G, N] (DPO, equation 5)."""

    bare = getattr(model, "bare", model)  # what records the policy's calls is not to see the reference's

    def rewards(params: Any, forest: Forest, rng: Any = None) -> jax.Array:
        policy_RT = log_probabilities(model, ROLES.of(params), forest, rng)
        reference_RT = jax.lax.stop_gradient(log_probabilities(bare, ROLES.of(params, REFERENCE), forest))
        # Ratios token by token: sums of log-probabilities are large, and their difference would drown in rounding.
        ratios_RGN = path_sums(policy_RT - reference_RT, forest.group_RT, forest.branch_RT, forest.shape[2:])
        return jnp.where(forest.readout_RGN >= 0, beta * ratios_RGN, 0.0)

    return rewards


def dpo(model: Any, section: Section, terms: Callable[[jax.Array, Forest], Terms] | None = None) -> Ranked:
    """−log σ of the difference of implicit rewards over the ordered pairs of a group, IPO's square, or any loss of rewards.

    Args:
      terms: with `loss=rewards`, what is made of the implicit rewards (`preference_terms`).
    """

    def squared(rewards_RGN: jax.Array, forest: Forest) -> Terms:
        labels = ranking.labels(forest.columns)
        loss_RG = ipo(rewards_RGN, labels.order_RGNN, labels.margin, section.beta)
        ranked_RG = jnp.any(labels.pairs_RGNN, axis=(-1, -2))
        found = reward_terms(rewards_RGN, labels.order_RGNN, forest)
        return found | {"loss": total(loss_RG, ranked_RG * labels.weight_RG)}

    sigmoid = preference_terms(label_smoothing=section.label_smoothing)
    chosen = {"sigmoid": sigmoid, "ipo": squared, "rewards": terms or sigmoid}
    return Ranked(implicit_rewards(model, section.beta), chosen[section.loss])


def _section(config: Config) -> Section:
    found: Section = config.sections["dpo"]
    return found


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    section, loss = _section(config), config.sections["loss"]
    if config.format.kind == "polar":
        raise ValueError(
            "config.format.kind is 'polar', which a policy does not write in; choose chat or plain for dpo"
        )
    unread = [name for name in UNREAD if getattr(loss, name) != type(loss).__dataclass_fields__[name].default]
    if unread and section.loss != "rewards":
        raise ValueError(
            f"config.loss.{unread[0]} is {getattr(loss, unread[0])!r}, which dpo reads with dpo.loss=rewards only; see "
            "config.dpo for its own"
        )
    check_loss(loss)
    Order.of(loss)
    if section.loss != "sigmoid" and section.label_smoothing:
        raise ValueError(
            f"config.dpo.label_smoothing is {section.label_smoothing}, but only dpo.loss=sigmoid has it; make it 0"
        )
    if section.loss == "ipo" and (order := loss.order) != "ranks":
        raise ValueError(f"config.loss.order is {order!r}, but dpo.loss=ipo takes ranks only; use sigmoid")


def _rewards(config: Config, model: Any) -> Rewards:
    return implicit_rewards(model, _section(config).beta)


def _wrapped(saved: Mapping[str, Any], model: Any) -> Wrapped:
    return Wrapped(model, implicit_rewards(model, saved["beta"]))


def _objective(config: Config, model: Any) -> Objective:
    return dpo(model, _section(config), terms_of(config.sections["loss"]))


METHOD = Method(
    "dpo",
    sections={"dpo": Section},
    active=lambda config: config.objective == "dpo",
    check=_check,
    columns=lambda config: Order.of(config.sections["loss"]).columns,
    data=("comparisons", "pool"),
    language_model=True,
    roles=lambda config: ROLES,
    objective=_objective,
    rewards=_rewards,
    saved=lambda config: {"beta": _section(config).beta},
    wrapped=_wrapped,
    example={"objective": "dpo", "format.kind": "plain"},
)
