"""Policy gradients on rewarded samples: PPO, GRPO, RLOO, REINFORCE and their kin as parts of one objective.

Formulas and sources: `rmjax.losses.policy`; presets of `config.policy`: `rmjax.losses.policy.presets`. The n samples of a prompt
share its tokens, in the forward and in the backward pass. Samples, rewards and recorded log-probabilities come from a file;
nothing here generates.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data import rollouts
from rmjax.data.formats import Encoder
from rmjax.data.packing import Tree
from rmjax.data.record import Comparison, RecordError
from rmjax.data.sources import Records, samples
from rmjax.losses.direct import predecessors
from rmjax.losses.policy.advantages import all_equal, gae, group_advantages, require_finite
from rmjax.losses.policy.kl import kl
from rmjax.losses.policy.objective import Samples, policy_loss
from rmjax.losses.policy.parts import Parts, contradiction
from rmjax.losses.policy.sequences import at_last, of_forest, per_token
from rmjax.losses.policy.tokens import TokenStatistics, token_statistics
from rmjax.losses.reduction import total
from rmjax.methods.method import Method
from rmjax.models.forest import Forest
from rmjax.roles import Role, Roles
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms, batch_terms

REFERENCE = "reference"
ROLES = Roles("policy", {REFERENCE: Role(anchor=True)})


# --- what a batch has to have --------------------------------------------------------------------------------------------


def _in_loss(parts: Parts) -> bool:
    return parts.kl_weight > 0 and parts.kl_place == "loss"


def _in_reward(parts: Parts) -> bool:
    return parts.kl_weight > 0 and parts.kl_place == "reward"


def _reads_old(parts: Parts) -> bool:
    exact = _in_loss(parts) and parts.kl_gradient == "exact"
    return parts.old != "current" and (parts.ratio != "none" or parts.correction != "none" or exact)


def needed(parts: Parts) -> dict[str, str]:
    """Field that every record must have → the key of `config.policy` that asks for it."""
    found: dict[str, str] = {}
    found["advantages" if parts.advantage == "given" else "rewards"] = f"advantage={parts.advantage}"
    if parts.advantage == "gae":
        found["values"] = "advantage=gae"
    if parts.truncated != "train":
        found["truncated"] = f"truncated={parts.truncated}"
    if parts.correction != "none":
        found["log_probs"] = f"correction={parts.correction}"
    if _reads_old(parts):
        found[{"behavior": "log_probs", "trainer": "old_log_probs"}[parts.old]] = f"old={parts.old}"
    if _in_reward(parts):
        found |= {"log_probs": "kl_place=reward", "reference_log_probs": "kl_place=reward"}
    if _in_loss(parts) and parts.reference == "recorded":
        found["reference_log_probs"] = "reference=recorded"
    return found


_OVER_TOKENS = {
    "log_probs": "behavior_RT",
    "old_log_probs": "old_RT",
    "reference_log_probs": "reference_RT",
    "values": "value_RT",
}


def columns(parts: Parts) -> tuple[str, ...]:
    """Full names of the on-demand columns that its batches have."""
    over_tokens = [_OVER_TOKENS[field] for field in needed(parts) if field in _OVER_TOKENS]
    own = [] if parts.advantage == "given" else ["reward_RGN"]
    return ("trained_RT", *own, *([] if parts.advantage == "gae" else ["advantage_RGN"]), *over_tokens)


# --- records ------------------------------------------------------------------------------------------------------------


def prepare(c: Comparison, parts: Parts) -> Comparison | str:
    """The record with the rewards that are learned from and, unless a critic's values give them, advantages; or why it is left
    out.

    Raises:
      RecordError: it lacks what `config.policy` asks for.
      ValueError: an advantage is not finite.
    """
    for field, key in needed(parts).items():
        if field not in c.columns:
            remedy = f"add it, or change policy.{key}"
            raise RecordError(c.place, field, f"missing, and config.policy.{key} needs it", remedy)
    if parts.advantage == "given":
        require_finite(c.columns["advantages"], c.place)
        return c
    rewards_N = np.asarray(c.columns["rewards"], np.float64)
    present_N = np.ones(len(rewards_N), bool)
    if parts.truncated == "penalize":
        rewards_N = rewards_N - parts.truncation_penalty * np.asarray(c.columns["truncated"])
    if parts.equal_groups == "drop" and all_equal(rewards_N, present_N):
        return "all samples of one reward"
    changed: dict[str, Any] = {"rewards": tuple(rewards_N.tolist())}
    if parts.advantage == "group":
        if _in_reward(parts):
            rewards_N = rewards_N - parts.kl_weight * _divergences(c, parts)
        found = group_advantages(rewards_N, present_N, parts.baseline, parts.scale, parts.ddof, parts.eps)
        require_finite(found, c.place)
        changed["advantages"] = tuple(found.tolist())
    return dataclasses.replace(c, columns={**c.columns, **changed})


def _divergences(c: Comparison, parts: Parts) -> np.ndarray:
    """Σ over an answer's tokens, of those that the policy wrote, of the estimate of KL(π ‖ π_ref), of what was recorded."""
    both = zip(c.columns["log_probs"], c.columns["reference_log_probs"], strict=True)
    found, masks = [], c.columns.get("loss_mask")
    for n, (own, other) in enumerate(both):
        if len(own) != len(other):
            raise RecordError(
                c.place,
                f"reference_log_probs[{n}]",
                "length differs from that of log_probs",
                "give one number per token",
            )
        x = np.asarray(own, np.float64) - np.asarray(other, np.float64)
        if masks is not None:
            x = np.where(np.asarray(masks[n]) > 0, x, 0.0)
        found.append(float(np.sum({"k1": x, "k2": 0.5 * x * x, "k3": np.expm1(-x) + x}[parts.kl])))
    return np.asarray(found)


def _records(config: Config) -> Records:
    return samples(config.data, functools.partial(prepare, parts=_parts(config)))


def _encode(config: Config, encoder: Encoder) -> Callable[[Any, int], list[Tree]]:
    parts = _parts(config)

    def trees(c: Comparison, record: int) -> list[Tree]:
        found = rollouts.answers(encoder, c)
        tokens = rollouts.per_token(c, found, (rollouts.MASK, *_OVER_TOKENS))
        trained = tokens.get("trained_RT", [np.ones(len(ids), np.float32) for ids in found.outputs])
        if parts.truncated == "mask":
            trained = [mask * (not cut) for mask, cut in zip(trained, c.columns["truncated"], strict=True)]
        numbers = {f"{name}_RGN": c.columns[field] for field, name in _PER_ANSWER.items() if field in c.columns}
        return rollouts.trees(
            found, {**tokens, "trained_RT": trained}, numbers, encoder.row_tokens, config.data.candidates,
            record=record, weight=c.weight, type=-1 if c.type is None else c.type,
        )  # fmt: skip

    return trees


_PER_ANSWER = {"rewards": "reward", "advantages": "advantage"}


# --- objective -----------------------------------------------------------------------------------------------------------


def statistics(model: Any, params: Any, forest: Forest, parts: Parts, rng: Any = None) -> TokenStatistics:
    """log π of every token given those before it on its path, at the samples' temperature, and the entropy there, [R, T]; what
    stands where a path begins and in padding means nothing."""
    columns_RT = predecessors(forest.group_RT, forest.branch_RT, forest.shape[2])
    rngs = {} if rng is None else {"dropout": rng}
    hidden_RTD, table_VD = model.apply(
        {"params": params}, forest, jnp.maximum(columns_RT, 0), rngs=rngs, method="projection_at"
    )
    softcap = getattr(
        getattr(model, "config", None), "logit_softcap", 0.0
    )  # a model without a decoder's config has none
    return token_statistics(hidden_RTD, table_VD, forest.tokens_RT, parts.temperature, parts.vocabulary_chunk, softcap)


def policy_gradient(model: Any, parts: Parts) -> Objective:
    """`policy_loss` on a forest of samples."""
    bare = getattr(model, "bare", model)  # what records the policy's calls is not to see the reference's

    def reference(params: Any, forest: Forest) -> jax.Array | None:
        if not _in_loss(parts):
            return None
        if parts.reference == "recorded":
            return forest.reference_RT
        found = statistics(bare, ROLES.of(params, REFERENCE), forest, parts).log_probability_RT
        return jax.lax.stop_gradient(found)

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        policy = statistics(model, ROLES.of(params), forest, parts, rng)
        sequence_RT, trained_RT, weight_RS = layout(forest)
        old = {"behavior": "behavior_RT", "trainer": "old_RT"}[parts.old] if _reads_old(parts) else ""
        terms = policy_loss(
            parts,
            Samples(
                log_probability_RT=policy.log_probability_RT, entropy_RT=policy.entropy_RT,
                advantage_RT=advantages(parts, forest, trained_RT, sequence_RT), trained_RT=trained_RT,
                sequence_RT=sequence_RT, weight_RS=weight_RS, old_RT=forest.columns.get(old),
                behavior_RT=forest.columns.get("behavior_RT"), reference_RT=reference(params, forest),
            ),
        )  # fmt: skip
        return terms | _measures(forest, trained_RT) | batch_terms(forest)

    return objective


def layout(forest: Forest) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sequence_RT, trained_RT, weight_RS) of a forest of samples: a sequence for each branch. A token that nothing stands
    before, the first one without a prompt, is not trained."""
    R, _, G, N = forest.shape
    sequence_RT = of_forest(forest.group_RT, forest.branch_RT, N)
    before_RT = predecessors(forest.group_RT, forest.branch_RT, G)
    trained_RT = (forest.trained_RT > 0) & (before_RT >= 0) & (sequence_RT >= 0)
    weight_RS = (forest.weight_RG[..., None] * (forest.readout_RGN >= 0)).reshape(R, G * N)
    return sequence_RT, trained_RT, weight_RS


def advantages(parts: Parts, forest: Forest, trained_RT: jax.Array, sequence_RT: jax.Array) -> jax.Array:
    """Of every token: its sequence's, or by GAE from rewards and a critic's values."""
    R, _, G, N = forest.shape
    if parts.advantage != "gae":
        return per_token(forest.advantage_RGN.reshape(R, G * N), sequence_RT)
    rewards_RT = at_last(forest.reward_RGN.reshape(R, G * N), trained_RT, sequence_RT)
    if _in_reward(parts):
        rewards_RT = rewards_RT - parts.kl_weight * kl(forest.behavior_RT, forest.reference_RT, parts.kl)
    return gae(rewards_RT, forest.value_RT, trained_RT, sequence_RT, parts.gamma, parts.lam)


def _measures(forest: Forest, trained_RT: jax.Array) -> Terms:
    """Of the samples: their mean reward, and trained tokens of each."""
    present_RGN = forest.readout_RGN >= 0
    tokens = jnp.sum(trained_RT).astype(jnp.float32)
    found: Terms = {"answer_tokens": (tokens, jnp.sum(present_RGN).astype(jnp.float32))}
    if "reward_RGN" in forest.columns:
        found["reward"] = total(forest.reward_RGN, present_RGN)
    return found


# --- the method ---------------------------------------------------------------------------------------------------------


def _parts(config: Config) -> Parts:
    found: Parts = config.sections["policy"]
    return found


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    if config.format.kind == "polar":
        raise ValueError("config.format.kind is 'polar', which a policy does not write in; choose chat or plain")
    if said := contradiction(_parts(config)):
        raise ValueError(said)


METHOD = Method(
    "policy_gradient",
    sections={"policy": Parts},
    active=lambda config: config.objective == "policy_gradient",
    check=_check,
    kinds={"samples": _records},
    data=("samples",),
    language_model=True,
    columns=lambda config: columns(_parts(config)),
    encode=_encode,
    roles=ROLES,
    objective=lambda config, model: policy_gradient(model, _parts(config)),
    example={
        "objective": "policy_gradient", "format.kind": "plain", "data.kind": "samples", "policy.old": "current",
        "policy.kl_weight": 0.1,
    },
)  # fmt: skip
