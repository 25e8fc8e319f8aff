"""POLAR groups scored as forests, and with a row for each candidate; both by this library, with one model."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.trainers.exchange import padded
from experiments.trainers.start import config_of, start_of
from rmjax.data import sources
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import pack
from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import Rewards, fitting_shape, score
from rmjax.models.reward import RewardTransformer

ROWS = 8  # candidates a batch, where each has a row
ROUNDED_TO = 32  # tokens: a batch is as long as its longest candidate, rounded up, so that few shapes are compiled
Scores = list[list[float]]


def drawn(groups: int, candidates: int) -> list[Comparison]:
    """Groups of the shipped pool: a reference, a positive and one sample each of other policies."""
    pool = sources.pool("shipped:policy_pool", "all", "all")
    found = [c for c in pool.triples(seed=0, per_prompt=1, negatives=candidates - 1) if len(c.outputs) == candidates]
    if len(found) < groups:
        raise ValueError(f"the shipped pool has {len(found)} groups of {candidates} candidates, not {groups}")
    return found[:groups]


def alone(
    rewards: Rewards,
    params: Any,
    encoder: Encoder,
    groups: Sequence[Comparison],
    key: Callable[[list[int]], Any] | None,
    batch: int = ROWS,
) -> tuple[Scores, int]:
    """A row for each candidate, batches in the order of `key`: scores by group, and the tokens that were run."""
    rows = [ids for c in groups for _, tree in encoder.scoring_trees(c) for ids in _sequences(tree)]
    order = sorted(range(len(rows)), key=lambda i: key(rows[i])) if key else list(range(len(rows)))
    found, cells = np.zeros(len(rows)), 0
    for i in range(0, len(order), batch):
        part = order[i : i + batch]
        tokens = -(-max(len(rows[n]) for n in part) // ROUNDED_TO) * ROUNDED_TO
        forest = padded([rows[n] for n in part], tokens, batch)
        found[part] = np.asarray(rewards(params, forest))[: len(part), 0, 0]
        cells += batch * tokens
    return found.reshape(len(groups), -1).tolist(), cells


def _sequences(tree: Any) -> list[list[int]]:
    return [[*tree.prefix.tolist(), *branch.tolist()] for branch in tree.branches]


def score_groups(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each way in every round after one that is not counted, and tokens that each runs.

    `padded` takes the candidates as they come, `sorted` by length, which leaves least padding. Without padding there are
    `shared` tokens where a group's common beginning counts once, `separate` where every candidate has its own.

    Raises:
      ValueError: the ways differ in a reward by more than the job's tolerance.
    """
    config, groups = config_of(job), drawn(job["groups"], job["candidates"])
    start = start_of(config)
    model, params = RewardTransformer(start.config), jax.tree.map(jax.numpy.asarray, start.params)
    rewards = jax.jit(lambda params, forest: model.apply({"params": params}, forest))
    encoder = Encoder(start.tokenizer, Format(**config.format.to_dict()), 2 * config.format.max_length)
    trees = [tree for c in groups for _, tree in encoder.scoring_trees(c)]
    shape = fitting_shape(trees, job["batch_tokens"])
    cells = sum(np.size(forest.tokens_RT) for forest, _ in pack(trees, shape))
    ways: dict[str, Callable[[], tuple[Scores, int]]] = {
        "forest": lambda: (score(rewards, params, encoder, groups, batch_tokens=job["batch_tokens"]), cells),
        "padded": lambda: alone(rewards, params, encoder, groups, None, job.get("rows", ROWS)),
        "sorted": lambda: alone(rewards, params, encoder, groups, len, job.get("rows", ROWS)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for number in range(1 + job["rounds"]):
        scores = {}
        for name, way in ways.items():
            began = time.perf_counter()
            scores[name], tokens[name] = way()
            if number:
                seconds[name].append(time.perf_counter() - began)
    apart = max(float(np.max(np.abs(np.subtract(scores["forest"], scores[name])))) for name in ("padded", "sorted"))
    if apart > job["tolerance"]:
        raise ValueError(f"rewards of forests and of padded rows differ by {apart:.2g}, more than {job['tolerance']}")
    tokens |= {"shared": sum(t.size for t in trees), "separate": sum(len(s) for t in trees for s in _sequences(t))}
    return {"seconds": seconds, "tokens": tokens, "largest_difference": apart} | {
        "groups": len(groups), "candidates": job["candidates"],
    }  # fmt: skip
