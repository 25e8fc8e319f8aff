"""The stages of a drifting writer: labeled groups for training, unlabeled ones as meta sets, labeled ones as tests.

Every answer is put on two of three rungs of a quality ladder: as written, or with a share of its words moved. So
the gold order is known, no reward model made it, and neither length nor the choice of words says anything about it.
"""

import itertools
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from configs import drift as grid
from rmjax.data.record import Comparison, select, to_row
from rmjax.data.samples import from_pool, unlabeled
from rmjax.data.sources import pool_rows
from rmjax.files import write_lines
from rmjax.reward_model import RewardModel

Rung = tuple[float, list[str]]  # rank (0 is best), texts that stand on it


def rungs(c: Comparison, shuffles: int = 1) -> Iterator[Rung]:
    """Two rungs of each answer, drawn by its text, with `shuffles` texts on a rung that has an order to draw.

    Answers of few words stay out. The first text of a rung does not depend on `shuffles`.
    """
    for output in c.outputs:
        if len(output.split()) >= grid.LEAST_WORDS:
            rng, more = (np.random.default_rng([zlib.crc32(output.encode()), *key]) for key in ((), (1,)))
            for rung in rng.choice(len(grid.LADDER), size=2, replace=False):
                share = grid.LADDER[rung]
                first = _shuffled_words(output, share, rng)
                others = [_shuffled_words(output, share, more) for _ in range(shuffles - 1 if share else 0)]
                yield float(rung), list(dict.fromkeys((first, *others)))


def _shuffled_words(text: str, share: float, rng: np.random.Generator) -> str:
    """`share` of the words, at random places, each moved to the next of these places; the space between words stays."""
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if part.strip()]
    chosen = sorted(rng.choice(places, size=round(share * len(places)), replace=False))
    for place, word in zip(chosen, np.roll([parts[i] for i in chosen], 1), strict=True):
        parts[place] = str(word)
    return "".join(parts)


def ladder(c: Comparison) -> Comparison:
    """Each answer on two rungs: ranks are rungs, 0 is as written."""
    return _ranked(c, ((rank, texts[0]) for rank, texts in rungs(c)))


def _ranked(c: Comparison, found: Iterator[tuple[float, str]]) -> Comparison:
    ranks = {text: rank for rank, text in found}
    return Comparison(c.prompt, tuple(ranks), ranks=tuple(ranks.values()), category=c.category, id=c.id)


def best_of(groups: Sequence[Comparison], shuffles: int, proxy: RewardModel) -> list[Comparison]:
    """As `ladder`, but of each rung the one of `shuffles` texts that the proxy likes best: same quality, higher reward."""
    drawn = [list(rungs(c, shuffles)) for c in groups]
    asked = [
        Comparison(c.prompt, tuple(texts), id=c.id)
        for c, found in zip(groups, drawn, strict=True)
        for _, texts in found
    ]
    rewards = iter(proxy.score_groups(asked, progress=True))
    return [
        _ranked(c, ((rank, texts[int(np.argmax(next(rewards)))]) for rank, texts in found))
        for c, found in zip(groups, drawn, strict=True)
    ]


def labeled(ranked: Sequence[Comparison], answers: int = sys.maxsize) -> list[Comparison]:
    """The groups with `answers` outputs at most, drawn by the prompt; those on a single rung have no order, and go."""
    return [c for c in (_some(c, answers) for c in ranked) if len(set(c.ranks or ())) > 1]


def _some(c: Comparison, answers: int) -> Comparison:
    chosen = np.random.default_rng(zlib.crc32(c.prompt.encode())).permutation(len(c.outputs))[:answers]
    return select(c, chosen.tolist())


def write_training(folder: Path, policies: str = grid.STAGES[grid.FIRST]) -> None:
    """train.jsonl: the labels of these policies' answers to training prompts."""
    _write(folder, {"train": labeled([ladder(c) for c in written("seen", policies)], grid.ANSWERS)})


def write_pool_stages(folder: Path, policies: Mapping[str, str] = grid.STAGES) -> None:
    """test_STAGE.jsonl and the meta sets, where a stage is what its policies of the pool wrote."""
    tests = {stage: [ladder(c) for c in written("unseen", names)] for stage, names in policies.items()}
    write_stages(folder, tests, [ladder(c) for c in written("seen", policies[grid.DRIFTED])])


def write_best_of_stages(folder: Path, proxy: RewardModel) -> None:
    """The same, where a stage is the best of so many shuffles of the first stage's answers by the proxy's reward."""
    seen, unseen = (written(split, grid.STAGES[grid.FIRST]) for split in ("seen", "unseen"))
    tests = {stage: best_of(unseen, shuffles, proxy) for stage, shuffles in grid.BEST_OF.items()}
    write_stages(folder, tests, best_of(seen, grid.BEST_OF[grid.DRIFTED], proxy))


def written(split: str, policies: str) -> list[Comparison]:
    """What policies of the pool wrote (a regular expression of their names), a group for each prompt."""
    return from_pool(list(pool_rows(grid.POOL, "all", split)), policies, mixed=True)


def write_stages(folder: Path, tests: Mapping[str, Sequence[Comparison]], meta: Sequence[Comparison]) -> None:
    """test_STAGE.jsonl and the meta sets, from answers on the ladder."""
    sets = {f"test_{stage}": labeled(found, grid.TEST_ANSWERS) for stage, found in tests.items()}
    sets["meta"] = [unlabeled(c) for c in labeled(meta)]
    _write(folder, sets | {"random": _shuffled(sets["meta"])})


def _shuffled(groups: Sequence[Comparison]) -> list[Comparison]:
    """The control: as many answers to as many prompts, but each answer to a random prompt."""
    rng = np.random.default_rng(0)
    outputs = [output for c in groups for output in c.outputs]
    mixed = iter([outputs[i] for i in rng.permutation(len(outputs))])
    return [
        Comparison(c.prompt, tuple(itertools.islice(mixed, len(c.outputs))), id=c.id, category=c.category)
        for c in groups
    ]


def _write(folder: Path, sets: Mapping[str, Sequence[Comparison]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in sets.items():
        if not found:
            raise ValueError(f"{grid.POOL} gives no group for {name}; change the stages in configs/drift.py")
        write_groups(folder / f"{name}.jsonl", found)


def write_groups(path: Path, found: Sequence[Comparison]) -> None:
    """A file of comparisons."""
    write_lines(path, map(to_row, found))


def is_written(folder: Path) -> bool:
    """Whether a stages' folder is whole: the meta sets are written last."""
    return (folder / "random.jsonl").exists()
