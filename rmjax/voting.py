"""Vote models: what a run of an ensemble says of the records that it learned from, written onto them.

Source: Secrets of RLHF in Large Language Models, Part II (arXiv 2401.06080), section 2.2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rmjax import methods
from rmjax.config import complete, settle
from rmjax.data.record import Comparison
from rmjax.data.strength import KINDS, strength_of, with_strengths
from rmjax.evaluate.members import member_scores
from rmjax.models.members import learned
from rmjax.reward_model import RewardModel


def voted(run: Path, progress: bool = False) -> list[Comparison]:
    """The records of a run, each with the strengths that its members give it: in-sample, and cross-fitted where
    `ensemble.seen` let some of them not learn from it.

    Raises:
      FileNotFoundError: no run.
      ValueError: the run is of one model, or its data are not what it learned from: strengths of another data set.
    """
    config = settle(complete(ConfigDict(json.loads((run / "config.json").read_text(encoding="utf-8")))))
    chosen = methods.choose(config)
    if config.data.kind != "comparisons":
        raise ValueError(f"{run} learned from data.kind={config.data.kind}, which has no fixed pairs; use comparisons")
    records = chosen.records()
    _check_digest(run, records.digest())
    found: list[Comparison] = list(records.each())
    model = RewardModel.load(run, mesh="all")
    scorer = model.measures.get("disagreement", model.scorer)
    rewards = member_scores(scorer, found, progress)
    seen = config.sections["ensemble"].seen
    learned_MI = _learned(len(found), rewards[0].shape[1], seen)
    return [with_strengths(c, each, learned_MI[:, i]) for i, (c, each) in enumerate(zip(found, rewards, strict=True))]


def _check_digest(run: Path, digest: str) -> None:
    then = json.loads((run / "data.json").read_text(encoding="utf-8"))[methods.MAIN]["sha256"]
    if then != digest:
        raise ValueError(
            f"{run} learned from other data than its config names now (SHA-256 {then[:12]} and {digest[:12]}): strengths would "
            "be of another data set; bring the data back, or train on these"
        )


def _learned(records: int, members: int, seen: float) -> np.ndarray:
    """[M, I]: which member learned from which record."""
    of_member = jax.jit(lambda k: learned(jnp.arange(records)[None], k, seen)[0])
    return np.asarray([of_member(k) for k in range(members)], bool)


def summary(records: Sequence[Comparison]) -> dict[str, Any]:
    """Records, and of each kind of strength how many have it, and the fraction of these that the models contradict."""
    found: dict[str, Any] = {"records": len(records)}
    for kind in KINDS:
        field = "pair_strength" if kind == KINDS[0] else "pair_cross_strength"
        values = [strength_of(c, kind) for c in records if field in c.columns]
        found[kind] = {"records": len(values)} | ({"below 0": float(np.mean(np.less(values, 0)))} if values else {})
    return found
