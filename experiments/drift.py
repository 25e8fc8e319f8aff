"""Does MetaRM help where the policy moved? `python -m experiments.drift --workdir=runs/drift` trains configs/drift.py's arms.

Stages of a drifting writer are cut from a policy pool. Every answer is put on one of three rungs of a quality ladder: as
written, or with a share of its words in random order. So the gold order is known, no reward model made it, and neither
length nor the choice of words says anything about it. All arms learn from the first stage's labels. The meta set is the
drifted stage without labels, on training prompts; tests are labeled groups of every stage on held-out prompts.

Writes data/, a folder per arm and seed with result.json (runs that have one are not run again; their checkpoints go, but for
the plain arm's), results.json, and for every stage gaps_STAGE.svg with the distributions of |Δr|. `--seeds=0` does one seed: so
several processes share the work, and the command without it sums up.
"""

import dataclasses
import functools
import itertools
import json
import re
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from configs import drift as grid
from experiments import train
from experiments.grids import credits_of, over_seeds, paired
from experiments.sources import pool_rows, records
from experiments.start import prepare
from rmjax.data.record import Comparison, to_row
from rmjax.data.samples import from_pool, take, unlabeled
from rmjax.evaluate import environment
from rmjax.evaluate.files import write_json, write_text
from rmjax.evaluate.gaps import describe_gaps, reward_gaps
from rmjax.evaluate.plots import gap_distributions, svg
from rmjax.reward_model import CHECKPOINTS, RewardModel
from rmjax.train.metrics import read_metrics

Credits = Sequence[float]  # one of each labeled group
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # arm → a result for each seed

DIAGNOSTICS = ("meta_difference", "meta_gradient_norm", "meta_ascent", "meta_ascent_share", "meta_cosine")


def ladder(c: Comparison) -> Comparison:
    """Each answer on two rungs drawn by its text: ranks are rungs, 0 is as written. Answers of few words stay out."""
    found: dict[str, float] = {}
    for output in c.outputs:
        if len(output.split()) >= grid.LEAST_WORDS:
            rng = np.random.default_rng(zlib.crc32(output.encode()))
            for rung in rng.choice(len(grid.LADDER), size=2, replace=False):
                found[_shuffled_words(output, grid.LADDER[rung], rng)] = float(rung)
    return Comparison(c.prompt, tuple(found), ranks=tuple(found.values()), category=c.category, id=c.id)


def _shuffled_words(text: str, share: float, rng: np.random.Generator) -> str:
    """`share` of the words, at random places, in another order; the space between words stays where it is."""
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if part.strip()]
    chosen = sorted(rng.choice(places, size=round(share * len(places)), replace=False))
    for place, word in zip(chosen, np.roll([parts[i] for i in chosen], 1), strict=True):
        parts[place] = str(word)
    return "".join(parts)


def labeled(rows: Sequence[tuple[str, Any]], policies: str, answers: int = sys.maxsize) -> list[Comparison]:
    """The stage's answers to each prompt, ranked, `answers` of them at most; prompts with a single rung have no order, and
    go."""
    groups = (_some(ladder(c), answers) for c in from_pool(rows, policies, mixed=True))
    return [c for c in groups if len(set(c.ranks or ())) > 1]


def _some(c: Comparison, answers: int) -> Comparison:
    assert c.ranks is not None
    chosen = np.random.default_rng(zlib.crc32(c.prompt.encode())).permutation(len(c.outputs))[:answers]
    return dataclasses.replace(c, outputs=tuple(c.outputs[i] for i in chosen), ranks=tuple(c.ranks[i] for i in chosen))


def make_data(folder: Path) -> None:
    """The files of all arms, from the pool."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: list(pool_rows(grid.POOL, "all", split)) for split in ("seen", "unseen")}
    sets = {
        f"test_{name}": labeled(rows["unseen"], policies, grid.TEST_ANSWERS) for name, policies in grid.STAGES.items()
    }
    sets["train"] = labeled(rows["seen"], grid.STAGES[grid.FIRST], grid.ANSWERS)
    sets["meta"] = [unlabeled(c) for c in labeled(rows["seen"], grid.STAGES[grid.DRIFTED])]
    sets["random"] = _shuffled(sets["meta"])
    for name, found in sets.items():
        if not found:
            raise ValueError(f"{grid.POOL} gives no group for {name}; change the stages in configs/drift.py")
        _write(folder / f"{name}.jsonl", found)


def _shuffled(groups: Sequence[Comparison]) -> list[Comparison]:
    """The control: as many answers to as many prompts, but each answer to a random prompt."""
    rng = np.random.default_rng(0)
    outputs = [output for c in groups for output in c.outputs]
    mixed = iter([outputs[i] for i in rng.permutation(len(outputs))])
    return [
        Comparison(c.prompt, tuple(itertools.islice(mixed, len(c.outputs))), id=c.id, category=c.category)
        for c in groups
    ]


def _write(path: Path, found: Sequence[Comparison]) -> None:
    write_text(path, "".join(json.dumps(to_row(c), ensure_ascii=False) + "\n" for c in found))


def self_labeled(model: RewardModel, groups: Sequence[Comparison]) -> list[Comparison]:
    """The groups with the order that the model itself gives: pseudo-labels on the same answers MetaRM sees."""
    scores = model.score_groups(groups)
    different = [(c, s) for c, s in zip(groups, scores, strict=True) if len(set(c.outputs)) == len(c.outputs)]
    return [Comparison(c.prompt, c.outputs, ranks=tuple(-float(r) for r in s), id=f"self/{c.id}") for c, s in different]


def run_one(arm: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Trains an arm with a seed and judges it; the stored result where it is finished."""
    folder, data = workdir / arm / f"seed{seed}", workdir / "data"
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    config = grid.get_config(arm, seed, str(data))
    if grid.ARMS[arm].self_labeled:
        run_one("plain", seed, workdir)
        groups = [take(c, np.random.default_rng([seed, i]), samples=config.data.leaves)
                  for i, c in enumerate(records(str(data / "meta.jsonl")))]  # fmt: skip
        own = self_labeled(RewardModel.load(workdir / "plain" / f"seed{seed}"), groups)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "train.jsonl", [*records(str(data / "train.jsonl")), *own])
        config.data.path = str(folder / "train.jsonl")
    train.run(config, folder)
    result = judge(RewardModel.load(folder), data) | {"diagnostics": diagnostics(folder)}
    write_json(folder / "result.json", result)
    if arm != "plain":  # whose rewards label the self-labeled arm's pairs
        shutil.rmtree(folder / CHECKPOINTS)
    return result


def diagnostics(folder: Path) -> dict[str, float]:
    """Means over a run's logged steps with an ascent, of what says how far it went and where to."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row.get("train/meta_ascent")]
    found = {name: [row[f"train/{name}"] for row in rows if f"train/{name}" in row] for name in DIAGNOSTICS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def judge(model: RewardModel, data: Path) -> dict[str, Any]:
    """Accuracy on every stage's labels, and the distribution of |Δr| on its answers."""
    found = {}
    for stage in grid.STAGES:
        labels = list(records(str(data / f"test_{stage}.jsonl")))
        scores = model.score_groups(labels)
        spread, gaps = describe_gaps(scores), reward_gaps(scores).tolist()
        found[stage] = {"credits": credits_of(scores, labels), "spread": spread, "gaps": gaps}
    return found


def summary(results: Results, prompts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Arm → stage → accuracy, its difference to `plain` and to `plain-longer`, and the rewards' spread.

    Of accuracies the prompts are resampled, each with its groups of all seeds; each seed's own mean stands beside. prompts:
    stage → that of each labeled group.
    """
    return {arm: {"diagnostics": _means(runs)} | _stages(arm, results, prompts) for arm, runs in results.items()}


def _stages(arm: str, results: Results, prompts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    found = {}
    for stage, items in prompts.items():
        credits = {name: [run[stage]["credits"] for run in results[name]] for name in (arm, *grid.COMPARED)}
        spreads = [run[stage]["spread"] for run in results[arm]]
        found[stage] = {
            "accuracy": over_seeds(credits[arm], items),
            "over": {name: _over(credits[arm], credits[name], items) for name in grid.COMPARED},
            "spread": {name: [float(spread[name]) for spread in spreads] for name in ("gap_mean", "gap_share")},
        }
    return found


def _over(ours: Sequence[Credits], theirs: Sequence[Credits], items: Sequence[str]) -> dict[str, Any]:
    gained = [float(np.mean(a) - np.mean(b)) for a, b in zip(ours, theirs, strict=True)]
    return {"mean": paired(ours, theirs, items), "seeds": gained}


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = [run["diagnostics"] for run in runs]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def run(workdir: Path, seeds: Sequence[int]) -> None:
    """All arms with these seeds; the summary and the plots where they are all of them."""
    make_data(workdir / "data")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in grid.ARMS}
    for seed, arm in itertools.product(seeds, grid.ARMS):
        results[arm].append(run_one(arm, seed, workdir))
    if set(seeds) != set(grid.SEEDS):
        return
    tests = {stage: records(str(workdir / "data" / f"test_{stage}.jsonl")) for stage in grid.STAGES}
    prompts = {stage: [c.prompt for c in found] for stage, found in tests.items()}
    write_json(workdir / "results.json", {"arms": summary(results, prompts), **environment()})
    for stage in grid.STAGES:
        gaps = {arm: np.concatenate([run[stage]["gaps"] for run in runs]) for arm, runs in results.items()}
        shown = {arm: gaps[arm] for arm in grid.PLOTTED}
        write_text(workdir / f"gaps_{stage}.svg", svg(gap_distributions(shown), f"reward gaps, {stage}"))


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
    sys.exit(train.guarded(functools.partial(run, Path(flags.FLAGS.workdir), seeds)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/drift", "folder of the runs")
    flags.DEFINE_list("seeds", [str(seed) for seed in grid.SEEDS], "do these only")
    prepare()
    app.run(main)
