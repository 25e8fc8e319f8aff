"""A policy that drifts towards a reward: tuned on the first stage's best answers by a proxy, sampled, tuned on the best of those.

Each round is a stage. Samples stand on the ladder like all answers; the proxy judges them as they were written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs import drift as grid
from experiments import sample, train
from experiments.drift_stages import ladder, write_stages, written
from rmjax.data.messages import as_value
from rmjax.data.readers import read_all
from rmjax.data.record import Comparison
from rmjax.data.samplerows import parse_sample, sample_fields
from rmjax.data.samples import from_pool
from rmjax.files import write_json, write_lines
from rmjax.reward_model import RewardModel


def write_distilled_stages(folder: Path, proxy: RewardModel) -> None:
    """test_STAGE.jsonl, the meta sets, and rewards.json: the proxy's mean reward of each stage's answers as written.

    Every round keeps a folder; one that was stopped goes on where it was.
    """
    seen, unseen = (written(split, grid.STAGES[grid.FIRST]) for split in ("seen", "unseen"))
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "prompts.jsonl", [{"id": c.id, "prompt": as_value(c.prompt)} for c in (*seen, *unseen)])
    held_out = {c.id for c in unseen}
    tests, rewards, init = {grid.FIRST: unseen}, {grid.FIRST: _mean_reward(unseen, proxy)}, "smollm2"
    for stage in grid.ROUNDS:
        answered = _next_policy(folder / stage, init, seen, folder / "prompts.jsonl", proxy)
        seen = [c for c in answered if c.id not in held_out]
        tests[stage] = [c for c in answered if c.id in held_out]
        rewards[stage], init = _mean_reward(tests[stage], proxy), str(folder / stage / "model")
        if stage == grid.DRIFTED:
            meta = [ladder(c) for c in seen]
    write_json(folder / "rewards.json", rewards)
    write_stages(folder, {stage: [ladder(c) for c in found] for stage, found in tests.items()}, meta)


def _next_policy(
    folder: Path, init: str, groups: Sequence[Comparison], prompts: Path, proxy: RewardModel
) -> list[Comparison]:
    """The samples of the policy that is tuned on each group's best answer, a group for each prompt."""
    if not (folder / "texts.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / "texts.jsonl", liked(groups, proxy))
    config = grid.distillation(init, folder / "texts.jsonl")
    train.run(config, folder / "model")
    sample.run(grid.sampling(folder, prompts, config.run.steps), folder / "samples")
    path = folder / "samples" / f"{grid.DISTILLED}.jsonl"
    return from_pool(read_all(path, parse_sample, sample_fields()), mixed=True)


def liked(groups: Sequence[Comparison], proxy: RewardModel) -> list[dict[str, Any]]:
    """Texts to tune on: of each group the answer with the highest reward."""
    best = [int(np.argmax(rewards)) for rewards in proxy.score_groups(groups, progress=True)]
    return [
        {"prompt": as_value(c.prompt), "output": as_value(c.outputs[i]), "id": c.id}
        for c, i in zip(groups, best, strict=True)
    ]


def _mean_reward(groups: Sequence[Comparison], proxy: RewardModel) -> float:
    return float(np.mean(np.concatenate(proxy.score_groups(groups))))
