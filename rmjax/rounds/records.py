"""What records of a policy's answers must have for an objective, and what is made of them before they are learned from."""

import dataclasses
from typing import Any

import numpy as np

from rmjax.data.record import Comparison, RecordError
from rmjax.losses.policy.advantages import all_equal, group_advantages, require_finite
from rmjax.losses.policy.parts import Parts


def in_loss(parts: Parts) -> bool:
    """Whether KL is a term of the loss."""
    return parts.kl_weight > 0 and parts.kl_place == "loss"


def in_reward(parts: Parts) -> bool:
    """Whether KL is subtracted from the rewards."""
    return parts.kl_weight > 0 and parts.kl_place == "reward"


def reads_old(parts: Parts) -> bool:
    """Whether the loss reads recorded log-probabilities of π_old."""
    exact = in_loss(parts) and parts.kl_gradient == "exact"
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
    if reads_old(parts):
        found[{"behavior": "log_probs", "trainer": "old_log_probs"}[parts.old]] = f"old={parts.old}"
    if in_reward(parts):
        found |= {"log_probs": "kl_place=reward", "reference_log_probs": "kl_place=reward"}
    if in_loss(parts) and parts.reference == "recorded":
        found["reference_log_probs"] = "reference=recorded"
    return found


OVER_TOKENS = {
    "log_probs": "behavior_RT",
    "old_log_probs": "old_RT",
    "reference_log_probs": "reference_RT",
    "values": "value_RT",
}
"""Field over an answer's tokens → full name of its column."""


def columns(parts: Parts) -> tuple[str, ...]:
    """Full names of the on-demand columns that its batches have."""
    over_tokens = [OVER_TOKENS[field] for field in needed(parts) if field in OVER_TOKENS]
    own = [] if parts.advantage == "given" else ["reward_RGN"]
    return ("trained_RT", *own, *([] if parts.advantage == "gae" else ["advantage_RGN"]), *over_tokens)


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
        if in_reward(parts):
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
