"""The stages of a drifting writer: labeled groups to train on, unlabeled ones as meta sets, labeled ones as tests.

Every answer stands on two of three rungs of a ladder: as written, or with a fraction of its words moved. So the gold order is
known, no reward model made it, and neither length nor the choice of words says anything about it.
"""

import dataclasses
import itertools
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import train
from experiments.studies.drift.config import DRIFTED, FIRST, STAGES
from rmjax import sampler
from rmjax.data.messages import as_value
from rmjax.data.readers import read_all, write_records
from rmjax.data.record import Comparison, select
from rmjax.data.samplerows import parse_sample, sample_fields
from rmjax.data.samples import from_pool, unlabeled
from rmjax.data.sources import pool_rows
from rmjax.files import write_json, write_lines
from rmjax.reward_model import RewardModel

Found = Mapping[str, Sequence[Comparison]]
Rung = tuple[float, list[str]]  # rank (0 is best), texts that stand on it


def written(writer: Any, split: str, policies: str) -> list[Comparison]:
    """What policies of the pool wrote (a regular expression of their names), a group for each prompt."""
    return from_pool(list(pool_rows(writer.pool, "all", split)), policies, mixed=True)


def ladder(
    writer: Any, groups: Sequence[Comparison], shuffles: int = 1, proxy: RewardModel | None = None
) -> list[Comparison]:
    """Each answer on two rungs: ranks are rungs, 0 is as written. On a rung stands the one of `shuffles` texts that the proxy
    likes best: same quality, higher reward."""
    drawn = [list(rungs(writer, c, shuffles)) for c in groups]
    texts = [
        Comparison(c.prompt, tuple(each), id=c.id) for c, found in zip(groups, drawn, strict=True) for _, each in found
    ]
    best = iter(favorites(texts, proxy) if proxy else [0] * len(texts))
    ranks = [{each[next(best)]: rank for rank, each in found} for found in drawn]
    return [
        Comparison(c.prompt, tuple(found), ranks=tuple(found.values()), category=c.category, id=c.id)
        for c, found in zip(groups, ranks, strict=True)
    ]


def rungs(writer: Any, c: Comparison, shuffles: int) -> Iterator[Rung]:
    """Two rungs of each answer, drawn by its text, with `shuffles` texts on a rung that has an order to draw.

    Answers of few words stay out. The first text of a rung does not depend on `shuffles`.
    """
    for output in c.outputs:
        if len(output.split()) >= writer.least_words:
            rng, more = (np.random.default_rng([zlib.crc32(output.encode()), *key]) for key in ((), (1,)))
            for rung in rng.choice(len(writer.ladder), size=2, replace=False):
                moved = writer.ladder[rung]
                first = _moved_words(output, moved, rng)
                others = [_moved_words(output, moved, more) for _ in range(shuffles - 1 if moved else 0)]
                yield float(rung), list(dict.fromkeys((first, *others)))


def _moved_words(text: str, fraction: float, rng: np.random.Generator) -> str:
    """`fraction` of the words, at random places, each moved to the next of these places; the space between words stays."""
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if part.strip()]
    chosen = sorted(rng.choice(places, size=round(fraction * len(places)), replace=False))
    for place, word in zip(chosen, np.roll([parts[i] for i in chosen], 1), strict=True):
        parts[place] = str(word)
    return "".join(parts)


def favorites(groups: Sequence[Comparison], proxy: RewardModel) -> list[int]:
    """Of each group the answer with the highest reward."""
    return [int(np.argmax(rewards)) for rewards in proxy.score_groups(groups, progress=True)]


# --- what a study's folder holds ---------------------------------------------------------------------------------------


def write_training(writer: Any, folder: Path) -> None:
    """train.jsonl: labels of the first stage's answers to training prompts."""
    found = ladder(writer, written(writer, "seen", writer.policies[0]))
    _write(writer, folder, {"train": labeled(found, writer.answers)})


def write_pool_stages(writer: Any, folder: Path) -> None:
    """test_STAGE.jsonl and the meta sets, where a stage is what its policies of the pool wrote."""
    policies = dict(zip(STAGES, writer.policies, strict=True))
    tests = {stage: ladder(writer, written(writer, "unseen", names)) for stage, names in policies.items()}
    write_stages(writer, folder, tests, ladder(writer, written(writer, "seen", policies[DRIFTED])))


def write_best_of_stages(writer: Any, folder: Path, proxy: RewardModel) -> None:
    """The same, where a stage is the best of so many shuffles of the first stage's answers by the proxy's reward."""
    shuffles = dict(zip(STAGES, writer.best_of, strict=True))
    seen, unseen = (written(writer, split, writer.policies[0]) for split in ("seen", "unseen"))
    tests = {stage: ladder(writer, unseen, count, proxy) for stage, count in shuffles.items()}
    write_stages(writer, folder, tests, ladder(writer, seen, shuffles[DRIFTED], proxy))


def write_distilled_stages(writer: Any, folder: Path, proxy: RewardModel) -> None:
    """The same of a policy that is tuned on the answers that the proxy likes best, and sampled, round by round; and rewards.json:
    the proxy's mean reward of each stage's answers as written. A round that was stopped goes on where it was."""
    seen, unseen = (written(writer, split, writer.policies[0]) for split in ("seen", "unseen"))
    write_lines(folder / "prompts.jsonl", [{"id": c.id, "prompt": as_value(c.prompt)} for c in (*seen, *unseen)])
    held_out, tests, init = {c.id for c in unseen}, {FIRST: unseen}, writer.tuning.model.init
    trained = {FIRST: seen}
    for before, stage in itertools.pairwise(STAGES):
        answered = _next_policy(writer, folder / stage, init, trained[before], proxy)
        trained[stage], tests[stage] = ([c for c in answered if (c.id in held_out) == out] for out in (False, True))
        init = str(folder / stage / "model")
    rewards = {stage: np.concatenate(proxy.score_groups(found)) for stage, found in tests.items()}
    write_json(folder / "rewards.json", {stage: float(found.mean()) for stage, found in rewards.items()})
    found = {stage: ladder(writer, groups) for stage, groups in tests.items()}
    write_stages(writer, folder, found, ladder(writer, trained[DRIFTED]))


def _next_policy(
    writer: Any, folder: Path, init: str, groups: Sequence[Comparison], proxy: RewardModel
) -> list[Comparison]:
    """The samples of the policy that is tuned on each group's best answer, a group for each prompt."""
    tuning, sampling = (part.copy_and_resolve_references() for part in (writer.tuning, writer.sampling))
    tuning.model.init, tuning.data.path = init, str(folder / "texts.jsonl")
    if not Path(tuning.data.path).exists():
        folder.mkdir(parents=True, exist_ok=True)
        best = zip(groups, favorites(groups, proxy), strict=True)
        write_records(tuning.data.path, [Comparison(c.prompt, (c.outputs[i],), id=c.id) for c, i in best])
    train.run(tuning, folder / "model")
    (policy,) = sampling.policies
    sampling.policies = ({**policy, "checkpoint": f"model/{tuning.run.steps}"},)
    sampling.checkpoints, sampling.prompts = str(folder), str(folder.parent / "prompts.jsonl")
    sampler.run(sampling, folder / "samples")
    return from_pool(
        read_all(folder / "samples" / f"{policy['name']}.jsonl", parse_sample, sample_fields()), mixed=True
    )


def write_stages(writer: Any, folder: Path, tests: Found, meta: Sequence[Comparison]) -> None:
    """test_STAGE.jsonl and the meta sets, from answers on the ladder."""
    sets = {f"test_{stage}": labeled(found, writer.tested_answers) for stage, found in tests.items()}
    sets["meta"] = [unlabeled(c) for c in labeled(meta)]
    _write(writer, folder, sets | {"random": _shuffled(sets["meta"])})


def labeled(ranked: Sequence[Comparison], answers: int = sys.maxsize) -> list[Comparison]:
    """The groups with `answers` outputs at most, drawn by the prompt; those on a single rung have no order, and go."""
    order = (np.random.default_rng(zlib.crc32(c.prompt.encode())).permutation(len(c.outputs)) for c in ranked)
    some = (select(c, drawn[:answers].tolist()) for c, drawn in zip(ranked, order, strict=True))
    return [c for c in some if len(set(c.ranks or ())) > 1]


def _shuffled(groups: Sequence[Comparison]) -> list[Comparison]:
    """The control: as many answers to as many prompts, but each answer to a random prompt."""
    outputs = [output for c in groups for output in c.outputs]
    mixed = iter([outputs[i] for i in np.random.default_rng(0).permutation(len(outputs))])
    return [dataclasses.replace(c, outputs=tuple(itertools.islice(mixed, len(c.outputs)))) for c in groups]


def _write(writer: Any, folder: Path, sets: Found) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in sets.items():
        if not found:
            raise ValueError(f"{writer.pool} gives no group for {name}; change config.writer.policies")
        write_records(folder / f"{name}.jsonl", found)
