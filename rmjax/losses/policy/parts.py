"""The parts of a policy objective by name: `config.policy`."""

import dataclasses

from rmjax.losses.policy.advantages import BASELINES, SCALES
from rmjax.losses.policy.aggregation import FORMS
from rmjax.losses.policy.kl import ESTIMATORS, GRADIENTS
from rmjax.losses.policy.ratios import LEVELS
from rmjax.sections import choice, number, one_of


@dataclasses.dataclass(frozen=True)
class Parts:
    """`config.policy`: docs/methods/policy.md has the formulas, `presets.PRESETS` the usual combinations."""

    advantage: str = choice("group", "group", "gae", "given")  # of a prompt's samples | of recorded values | recorded
    baseline: str = choice("group_mean", *BASELINES)  # group: what is subtracted from a reward
    scale: str = choice("group_std", *SCALES)  # group: what differences are divided by
    ddof: int = one_of(1, 0, 1)  # group_std: its denominator is the number of samples minus this
    eps: float = number(1e-6, low=0)  # group_std: added to it, in units of reward
    gamma: float = number(1.0, low=0, high=1)  # gae: discount a token
    lam: float = number(0.95, low=0, high=1)  # gae: λ, 1 = the whole return, 0 = one token ahead
    values: str = choice("recorded", "recorded", "critic")  # gae: V of the records | and a critic is trained beside
    value_weight: float = number(0.5, low=0)  # critic: of its loss beside the policy's
    value_clip: float = number(
        0.2, low=0
    )  # critic: its loss holds V within ± this of the recorded, in units of reward; 0 = off
    ratio: str = choice("token", "none", *LEVELS)  # π / π_old of each token | of its sequence | none: REINFORCE
    old: str = choice("behavior", "behavior", "trainer", "current")  # π_old: `log_probs` | `old_log_probs` | π itself
    clip: str = choice("both", "none", "both")  # of the ratio: none | to 1 − clip_low … 1 + clip_high
    clip_low: float = number(0.2, low=0, below=1)  # fraction
    clip_high: float = number(0.2, low=0)  # fraction
    correction: str = choice("none", "none", *LEVELS)  # weight π_old / π_behavior of each token | of its sequence
    cap: float = number(2.0, above=0)  # correction: its largest value
    kl: str = choice("k3", *ESTIMATORS)  # the estimator of KL(π ‖ π_ref)
    kl_weight: float = number(0.0, low=0)  # β, in units of reward per nat; 0 = no reference is run
    kl_place: str = choice(
        "loss", "loss", "reward"
    )  # a term of the loss | subtracted from the reward (recorded values)
    kl_gradient: str = choice("exact", *GRADIENTS)  # loss: that of KL(π ‖ π_ref) | of the estimator as it stands
    reference: str = choice("role", "role", "recorded")  # π_ref: the policy at its start | `reference_log_probs`
    entropy_weight: float = number(0.0, low=0)  # of the policy's entropy as a bonus, per nat
    aggregation: str = choice("token_mean", *FORMS)  # from tokens to one loss
    divisor: int = number(1024, low=1)  # constant: tokens, the longest answer allowed
    truncated: str = choice("train", "train", "mask", "penalize")  # what `truncated` answers are
    truncation_penalty: float = number(1.0, low=0)  # penalize: subtracted from their reward
    equal_groups: str = choice("keep", "keep", "drop")  # prompts whose samples all have one reward
    temperature: float = number(1.0, above=0)  # that of the samples
    vocabulary_chunk: int = number(8192, low=1)  # logits of a token in memory at once


def contradiction(parts: Parts) -> str | None:
    """Why these values go together with no training, or None: "config.policy.KEY is …; do …"."""
    in_loss, in_reward = (parts.kl_weight > 0 and parts.kl_place == place for place in ("loss", "reward"))
    given = parts.advantage == "given"
    for wrong, said in (
        (
            parts.values == "critic" and parts.advantage != "gae",
            f"values is 'critic', but policy.advantage={parts.advantage} reads no values; set policy.advantage=gae",
        ),
        (
            parts.ratio == "none" and parts.clip == "both",
            "clip is 'both', but policy.ratio=none has no ratio to clip; set policy.clip=none",
        ),
        (
            parts.correction != "none" and parts.old == "behavior",
            f"correction is {parts.correction!r}, but policy.old=behavior leaves nothing to correct; set policy.old=trainer or "
            "current, or no correction",
        ),
        (
            in_loss and parts.kl == "k1" and parts.kl_gradient == "estimator",
            "kl is 'k1' with kl_gradient=estimator, whose expected gradient is 0; set policy.kl_gradient=exact or policy.kl=k2",
        ),
        (
            in_reward and parts.reference == "role",
            "kl_place is 'reward', which is made of recorded log-probabilities; set policy.reference=recorded",
        ),
        (
            in_reward and given,
            "kl_place is 'reward', but policy.advantage=given reads no reward; set policy.kl_place=loss",
        ),
        (
            parts.truncated == "penalize" and given,
            "truncated is 'penalize', but policy.advantage=given reads no reward; choose train or mask",
        ),
    ):
        if wrong:
            return f"config.policy.{said}"
    return None
