"""Does MetaRM help where the policy moved? `python -m experiments.drift --workdir=runs/drift` trains configs/drift.py's arms.

All arms learn from the first stage's labels (experiments/drift_stages.py). The meta set is the drifted stage without labels,
on training prompts; tests are labeled groups of every stage on held-out prompts. A series says where the writer drifts to:

  --series=pool       what other policies of a pool write
  --series=steps, depth, temperature
                      the same, where one thing moves: steps of fine-tuning, which layers are left out, how answers are drawn
  --series=best_of_n  the order of words that a reward model likes: a further run of the plain arm, so that no arm is tested
                      against itself
  --series=distilled  what a policy writes that was tuned on the best of its samples by that reward model, once and twice

Writes data/, a folder per arm and seed with result.json (runs that have one are not run again; their checkpoints go, but for
the plain arm's), results.json, results.md with its tables, and for every stage gaps_STAGE.svg with the distributions of |Δr|.
`--seeds=0` does one seed: so several processes share the work, and the command without it sums up.
"""

import contextlib
import itertools
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import drift as grid
from experiments import drift_stages as stages
from experiments import train
from experiments.drift_distilled import write_distilled_stages
from experiments.drift_tables import tables
from experiments.start import guarded, parse_flags, prepare
from rmjax.config import chosen, keep_config
from rmjax.data.record import Comparison
from rmjax.data.samples import take
from rmjax.data.sources import choose, records
from rmjax.evaluate import environment
from rmjax.evaluate.comparisons import credits_of
from rmjax.evaluate.gaps import describe_gaps, reward_gaps
from rmjax.evaluate.plots import gap_distributions, svg
from rmjax.evaluate.statistics import over_seeds, paired
from rmjax.files import write_json, write_text
from rmjax.locks import locked
from rmjax.reward_model import CHECKPOINTS, RewardModel
from rmjax.start import load_start
from rmjax.streams import format_of, open_stream
from rmjax.train.metrics import read_metrics

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # arm → a result for each seed

DIAGNOSTICS = ("meta_difference", "meta_gradient_norm", "meta_ascent", "meta_ascent_share", "meta_cosine")


def self_labeled(model: RewardModel, groups: Sequence[Comparison]) -> list[Comparison]:
    """The groups with the order that the model itself gives: pseudo-labels on the same answers MetaRM sees."""
    scores = model.score_groups(groups)
    different = [(c, s) for c, s in zip(groups, scores, strict=True) if len(set(c.outputs)) == len(c.outputs)]
    return [Comparison(c.prompt, c.outputs, ranks=tuple(-float(r) for r in s), id=f"self/{c.id}") for c, s in different]


def keep_series(workdir: Path, series: str) -> None:
    """Writes down whose results a folder has; ValueError where it has another's."""
    path = workdir / "series"
    if path.exists() and path.read_text() != series:
        raise ValueError(f"{workdir} has --series={path.read_text()}; use another --workdir for {series}")
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, series)


def make_data(workdir: Path, series: str, seed: int) -> Path:
    """The folder with a seed's meta sets and tests; where the series has a proxy it is trained, if it is not yet."""
    data, policies = workdir / "data", grid.POOLED.get(series, grid.STAGES)
    stages.write_training(data, policies[grid.FIRST])
    if series in grid.POOLED:
        stages.write_pool_stages(data, policies)
        return data
    found = data / f"seed{seed}"
    if not stages.is_written(found):
        train.run(grid.get_config("plain", grid.PROXY_SEED + seed, data), workdir / "proxy" / f"seed{seed}")
        write = stages.write_best_of_stages if series == "best_of_n" else write_distilled_stages
        write(found, RewardModel.load(workdir / "proxy" / f"seed{seed}", mesh="all"))
    return found


def _folder(workdir: Path, arm: str, seed: int) -> Path:
    return workdir / arm / f"seed{seed}"


def configured(arm: str, seed: int, workdir: Path, data: Path) -> ConfigDict:
    """An arm's config. data: where the meta sets are."""
    config = grid.get_config(arm, seed, workdir / "data", data)
    if grid.ARMS[arm].again or grid.ARMS[arm].self_labeled:
        config.data.path = str(_folder(workdir, arm, seed) / "train.jsonl")
    return config


def write_labels(arm: str, seed: int, workdir: Path, data: Path) -> None:
    """An arm's own labels, where it has some."""
    shared, chosen = grid.get_config("plain", seed, workdir / "data"), grid.ARMS[arm]
    if not chosen.again and not chosen.self_labeled:
        return
    groups = list(records(shared.data.path))
    if chosen.again:
        groups = [groups[i] for i in seen_by(shared)]
    if chosen.self_labeled:
        fit("plain", seed, workdir, data)
        meta = [take(c, np.random.default_rng([seed, i]), samples=shared.data.candidates)
                for i, c in enumerate(records(str(data / "meta.jsonl")))]  # fmt: skip
        groups += self_labeled(RewardModel.load(_folder(workdir, "plain", seed), mesh="all"), meta)
    path = _folder(workdir, arm, seed) / "train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    stages.write_groups(path, groups)


def seen_by(config: ConfigDict) -> list[int]:
    """The records that a run's batches hold."""
    methods = chosen(config)
    tokenizer = load_start(methods.config.model).tokenizer
    stream = open_stream(methods, tokenizer, format_of(methods, tokenizer))
    batches = itertools.islice(stream.batches, config.run.steps)
    return sorted({int(i) for forest in batches for i in forest.record_RG.ravel() if i >= 0})


def fit(arm: str, seed: int, workdir: Path, data: Path) -> None:
    """Trains an arm with a seed; a finished run is left as it is."""
    write_labels(arm, seed, workdir, data)
    train.run(configured(arm, seed, workdir, data), _folder(workdir, arm, seed))


def run_one(arm: str, seed: int, workdir: Path, data: Path) -> dict[str, Any]:
    """Trains an arm with a seed and judges it; the stored result where it is finished. ValueError where that is of another
    config."""
    folder = _folder(workdir, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    keep_config(configured(arm, seed, workdir, data), folder / "config.json")
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text()) | {"diagnostics": diagnostics(folder)}
    fit(arm, seed, workdir, data)
    result = judge(RewardModel.load(folder, mesh="all"), data)
    write_json(folder / "result.json", result)
    if arm != "plain":  # whose rewards label the self-labeled arm's pairs
        shutil.rmtree(folder / CHECKPOINTS)
    return result | {"diagnostics": diagnostics(folder)}


def diagnostics(folder: Path) -> dict[str, float]:
    """Means of what says how far the ascent went and where to, over the logged windows in which every step had one."""
    rows = read_metrics(folder / "metrics.jsonl")
    every = rows[0]["step"]
    ascents = [row for row in rows if row.get("train/meta_ascent") and row["step"] - every >= grid.WARMUP]
    found = {name: [row[f"train/{name}"] for row in ascents if f"train/{name}" in row] for name in DIAGNOSTICS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def judge(model: RewardModel, data: Path) -> dict[str, Any]:
    """Accuracy on every stage's labels, and the distribution of |Δr| on its answers."""
    found = {}
    for stage in grid.STAGES:
        labels = list(records(str(data / f"test_{stage}.jsonl")))
        scores = model.score_groups(labels)
        spread, gaps = describe_gaps(scores), reward_gaps(scores).tolist()
        found[stage] = {"credits": credits_of(labels, scores), "spread": spread, "gaps": gaps}
    return found


def summary(results: Results, prompts: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    """Arm → stage → accuracy, its difference to those of `COMPARED`, and the rewards' spread.

    Of accuracies the prompts are resampled, each with its groups of all seeds; each seed's own mean stands beside. prompts:
    stage → seed → that of each labeled group.
    """
    return {arm: {"diagnostics": _means(runs)} | _stages(arm, results, prompts) for arm, runs in results.items()}


def _stages(arm: str, results: Results, prompts: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    found = {}
    for stage, items in prompts.items():
        credits = {name: [run[stage]["credits"] for run in results[name]] for name in (arm, *grid.COMPARED)}
        spreads = [run[stage]["spread"] for run in results[arm]]
        found[stage] = {
            "accuracy": over_seeds(credits[arm], items),
            "over": {name: paired(credits[arm], credits[name], items) for name in grid.COMPARED},
            "spread": {name: [float(spread[name]) for spread in spreads] for name in ("gap_mean", "gap_share")},
        }
    return found


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = [run["diagnostics"] for run in runs]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def run(workdir: Path, series: str, seeds: Sequence[int]) -> None:
    """The series' arms with these seeds; the summary and the plots where they are all of them.

    Raises:
      ValueError: a series that there is not, or a `workdir` that has another one's.
      InUseError: another run is at work on one of these seeds in `workdir`.
    """
    chosen = [arm for arm in grid.ARMS if re.fullmatch(grid.SERIES[choose("series", series, list(grid.SERIES))], arm)]
    keep_series(workdir, series)
    with contextlib.ExitStack() as held:
        for seed in seeds:  # not the whole folder: several processes share the work by seeds
            held.enter_context(locked(workdir / f"seed{seed}"))
        _run(workdir, series, seeds, chosen)


def _run(workdir: Path, series: str, seeds: Sequence[int], chosen: Sequence[str]) -> None:
    data = {seed: make_data(workdir, series, seed) for seed in seeds}
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in chosen}
    for seed, arm in itertools.product(seeds, chosen):
        results[arm].append(run_one(arm, seed, workdir, data[seed]))
    if set(seeds) != set(grid.SEEDS):
        print(f"done; the command with seeds {', '.join(map(str, grid.SEEDS))} sums up")
        return
    prompts = {
        stage: [[c.prompt for c in records(str(folder / f"test_{stage}.jsonl"))] for folder in data.values()]
        for stage in grid.STAGES
    }
    table = summary(results, prompts)
    write_json(workdir / "results.json", {"series": series, "arms": table, **environment()})
    write_text(workdir / "results.md", tables(table))
    print(tables(table))
    for stage in grid.STAGES:
        gaps = {arm: np.concatenate([run[stage]["gaps"] for run in runs]) for arm, runs in results.items()}
        shown = {arm: gaps[arm] for arm in grid.PLOTTED}
        write_text(workdir / f"gaps_{stage}.svg", svg(gap_distributions(shown), f"reward gaps, {stage}"))


def numbers(seeds: Sequence[str]) -> list[int]:
    """ValueError for what is not a seed of the grid: the command without --seeds would not find it."""
    known = {str(seed): seed for seed in grid.SEEDS}
    unknown = [seed for seed in seeds if seed not in known]
    if unknown or not seeds:
        raise ValueError(f"--seeds is {','.join(seeds)!r}; give one or more of {','.join(known)}")
    return [known[seed] for seed in seeds]


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sys.exit(guarded(lambda: run(Path(given.workdir), given.series, numbers(given.seeds)), resumes=True))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/drift", "folder of the runs")
    flags.DEFINE_string("series", "pool", f"where the writer drifts to: {' | '.join(grid.SERIES)}")
    flags.DEFINE_list("seeds", [str(seed) for seed in grid.SEEDS], "do these only")
    prepare()
    app.run(main, flags_parser=parse_flags)
