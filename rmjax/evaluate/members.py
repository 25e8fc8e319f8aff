"""What each member of an ensemble says of records, and which of these it learned from."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import OfMembers, RewardScorer, score


def member_scores(scorer: RewardScorer, records: Sequence[Comparison], progress: bool = False) -> list[np.ndarray]:
    """Of every record the rewards of all members, [N outputs, K members].

    Raises:
      ValueError: the scorer is of one model, or a reward is not finite.
    """
    if not isinstance(scorer.rewards, OfMembers):
        raise ValueError("the model has no members; train one with ensemble.members above 1, or crm.review")
    each = dataclasses.replace(scorer.rewards, combine=lambda rewards_NK: rewards_NK)
    found = score(each, scorer.params, scorer.encoder, records, scorer.batch_tokens, progress)
    rewards = [np.asarray(rewards_NK, np.float64) for rewards_NK in found]
    for record, rewards_NK in zip(records, rewards, strict=True):
        if not np.isfinite(rewards_NK).all():
            raise ValueError(f"{record.place or record.id}: a reward of a member is not finite; the model is broken")
    return rewards
