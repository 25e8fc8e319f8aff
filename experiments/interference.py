"""Do two kinds of preference get in each other's way? `python -m experiments.interference --workdir=runs/interference`.

Trains the arms of configs/interference.py on both domains together, with the domain as the type label, and models for one
domain alone on that domain's same comparisons: in as many passes, and in as many steps as the joint model has (more passes, the
same compute). Interference is the accuracy of a separate model minus that of the joint one, on held-out comparisons of a domain.

Writes data/, a folder per arm, training data and seed with result.json (runs that have one are not run again) and
results.json, results.md with its tables, and report.html with the routing of the LoRAMoE arms.
"""

import dataclasses
import functools
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
from ml_collections import config_flags

from configs.interference import training
from experiments import train
from experiments.grids import chosen_arms, routing_over_seeds, steps_of, stored
from experiments.skills import spread
from experiments.start import guarded, parse_flags, prepare
from experiments.tables import cell, markdown, mean_cell
from experiments.tables import routing as routing_table
from rmjax.config import keep_config
from rmjax.data.record import Comparison, to_row
from rmjax.data.sources import records
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate import environment, write_report
from rmjax.evaluate.baselines import of_preferences
from rmjax.evaluate.comparisons import CREDIT, credits_of, preference_rows, unusable
from rmjax.evaluate.routing import routing_of
from rmjax.evaluate.rows import mean, of_metric
from rmjax.evaluate.scorers import Baseline
from rmjax.evaluate.statistics import over_seeds, paired
from rmjax.files import write_json, write_text
from rmjax.locks import locked
from rmjax.reward_model import CHECKPOINTS, RewardModel
from rmjax.start import load_start
from rmjax.trainer import open_workdir

JOINT = "both"
SEPARATE = {
    "separate": "",
    "separate_longer": "-longer",
}  # models of one domain → what their folders are called beside it
_JUDGED = ("init", "layers", "trained", "tested")
Tests = Mapping[str, Sequence[Comparison]]  # domain → held-out comparisons
Credits = Mapping[str, Sequence[float]]  # domain → credit of every held-out comparison, 0 to 1


def load_domain(grid: Any, name: str, test: bool) -> list[Comparison]:
    """A domain's ordered comparisons, with its number as their type. ValueError where there is none."""
    domain, number = grid.domains[name], list(grid.domains).index(name)
    path, split = (domain.test, domain.test_split) if test else (domain.train, domain.train_split)
    found = [
        dataclasses.replace(c, type=number, source=name)
        for c in records(path, grid.root, split)
        if re.fullmatch(domain.category, c.category or "") and not unusable(c)
    ]
    if not found:
        raise ValueError(f"config.domains.{name}: {path} has no comparison with a category like {domain.category!r}")
    return found


def make_data(grid: Any, workdir: Path) -> None:
    """For every seed a file per domain, and one with both."""
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    everything = {name: load_domain(grid, name, test=False) for name in grid.domains}
    for seed in grid.seeds:
        rng, lines = np.random.default_rng(seed), {}
        for name, found in everything.items():
            chosen = [found[i] for i in rng.permutation(len(found))[: grid.trained]]
            lines[name] = "".join(json.dumps(to_row(c), ensure_ascii=False) + "\n" for c in chosen)
        for name, text in (lines | {JOINT: "".join(lines.values())}).items():
            write_text(_data_path(workdir, name, seed), text)


def run_one(
    grid: Any, name: str, data: str, seed: int, workdir: Path, tests: Tests, tokenizer: Tokenizer, longer: bool = False
) -> dict[str, Any]:
    """Trains an arm on a domain or on both and judges it on that; the stored result where it is finished. `longer`: on a
    domain, in as many steps as on both."""
    folder = workdir / name / f"{data}{SEPARATE['separate_longer'] if longer else ''}-seed{seed}"
    config = training(grid, name, seed, str(_data_path(workdir, JOINT if longer else data, seed)))
    config.adapter.beta = config.adapter.beta if data == JOINT else 0.0  # one type has nothing to be told apart from
    config.run.steps = config.run.save_every = steps_of(config, tokenizer)
    if longer:
        config.data.path, config.data.epochs = str(_data_path(workdir, data, seed)), 0
    folder.mkdir(parents=True, exist_ok=True)
    keep_config(config, folder / "config.json")
    judged = {field: grid[field] for field in _JUDGED} | {"domains": grid.domains.to_dict()}
    found = stored(folder / "result.json", judged)
    if found is not None:
        return found
    train.run(config, folder)
    model = RewardModel.load(folder, mesh="all")
    credits = {
        domain: credits_of(rows, model.score_groups(rows)) for domain, rows in tests.items() if data in (JOINT, domain)
    }
    found = {"credits": credits, "judged": judged}
    if model.config.adapter and model.config.adapter.routed:
        found["routing"] = routing_of(model, [row for rows in tests.values() for row in rows], list(tests))
    write_json(folder / "result.json", found)
    if not grid.keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS)
    return found


def results_of(
    grid: Any,
    tests: Tests,
    joint: Mapping[str, Sequence[Credits]],
    alone: Mapping[str, Mapping[str, Mapping[str, Sequence[Sequence[float]]]]],
) -> dict[str, Any]:
    """Arm → domain → joint accuracy, accuracy of the separate models and interference (paired), for those of as many passes
    and those of as many steps: over seeds, prompts resampled."""
    table: dict[str, Any] = {}
    for name, runs in joint.items():
        prompts = {domain: [[c.prompt for c in rows]] * len(runs) for domain, rows in tests.items()}
        table[name] = {domain: {} for domain in grid.domains}
        for domain, found in table[name].items():
            together = [run[domain] for run in runs]
            for kind in SEPARATE:
                separate = alone[grid.arms[name].alone][kind][domain]
                found[kind] = over_seeds(separate, prompts[domain])
                found[kind.replace("separate", "interference")] = paired(separate, together, prompts[domain])
            found["joint"] = over_seeds(together, prompts[domain])
    return table


def compared(grid: Any, tests: Tests, joint: Mapping[str, Sequence[Credits]]) -> dict[str, Any]:
    """`first - second` → domain → difference of their joint models' accuracies, paired, prompts resampled."""
    return {
        f"{first} - {second}": {
            domain: paired(
                [run[domain] for run in joint[first]], [run[domain] for run in joint[second]],
                [[c.prompt for c in rows]] * len(joint[first]),
            )
            for domain, rows in tests.items()
        }
        for first, second in grid.compared if {first, second} <= set(joint)
    }  # fmt: skip


def run(grid: Any, workdir: Path) -> None:
    """All arms and seeds, and the summary.

    Raises:
      ValueError: a grid that cannot be run, or results in `workdir` that are of another one.
      InUseError: another run is writing to `workdir`.
    """
    check(grid)
    open_workdir(workdir)
    with locked(workdir):
        _run(grid, workdir)


def _run(grid: Any, workdir: Path) -> None:
    tests = {name: spread(load_domain(grid, name, test=True), grid.tested) for name in grid.domains}
    make_data(grid, workdir)
    tokenizer = load_start(training(grid, next(iter(grid.arms)), 0, "").model).tokenizer
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen_arms(grid)}
    alone: dict[str, Any] = {
        grid.arms[name].alone: {kind: {domain: [] for domain in grid.domains} for kind in SEPARATE} for name in found
    }
    for seed in grid.seeds:  # outermost, so that a grid that was stopped early has whole seeds
        for name, kind, domain in itertools.product(alone, SEPARATE, grid.domains):
            result = run_one(grid, name, domain, seed, workdir, tests, tokenizer, longer=bool(SEPARATE[kind]))
            alone[name][kind][domain].append(result["credits"][domain])
        for name in found:
            found[name].append(run_one(grid, name, JOINT, seed, workdir, tests, tokenizer))
    write_results(grid, tests, found, alone, workdir)


def write_results(
    grid: Any, tests: Tests, found: Mapping[str, Sequence[Mapping[str, Any]]], alone: Mapping[str, Any], workdir: Path
) -> None:
    """results.json, results.md, report.json and report.html."""
    joint = {name: [result["credits"] for result in results] for name, results in found.items()}
    routed = {name: routing_over_seeds(results) for name, results in found.items()}
    written = {"arms": results_of(grid, tests, joint, alone), "baselines": baselines_of(tests)}
    written["compared"] = compared(grid, tests, joint)
    written["routing"] = {name: each for name, each in routed.items() if each}
    write_text(workdir / "results.md", tables(written))
    print(tables(written))
    facts = {"grid": json.loads(grid.to_json_best_effort()), **environment()}
    write_json(workdir / "results.json", written | facts)
    maps = {name: results[0]["routing"] for name, results in found.items() if "routing" in results[0]}
    write_report({"title": "Interference", "routing": maps, "provenance": facts}, workdir)


def tables(results: Mapping[str, Any]) -> str:
    """Markdown: every arm's accuracies and interference on each domain; joint models against each other; the baselines on the
    same comparisons; the routing."""
    measured = ("separate", "separate_longer", "joint", "interference", "interference_longer")
    rows = [["arm", "domain", *measured]]
    for name, by_domain in results["arms"].items():
        for domain, found in by_domain.items():
            rows.append([name, domain, *(cell(found[m], "+" if m.startswith("inter") else "") for m in measured)])
    scorers = [["baseline", *results["baselines"]]]
    for name in ("word_overlap", "length"):  # the published rows; results.json has all
        scorers.append([name, *(mean_cell(found[name]) for found in results["baselines"].values())])
    between = [["joint models", *results["baselines"]]]
    between += [[pair, *(cell(each, "+") for each in found.values())] for pair, found in results["compared"].items()]
    parts = [markdown(rows), markdown(between), markdown(scorers), routing_table(results["routing"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def baselines_of(tests: Tests) -> dict[str, Any]:
    """Domain → baseline → accuracy, prompts resampled."""
    return {
        domain: {
            name: mean(of_metric(preference_rows(rows, Baseline(name).score(rows)), CREDIT))
            for name in of_preferences(rows)
        }
        for domain, rows in tests.items()
    }


def check(grid: Any) -> None:
    """ValueError for grids that cannot be run."""
    for field in ("seeds", "arms", "domains"):
        if not len(grid[field]):
            raise ValueError(f"config.{field} is empty; give one at least")
    chosen_arms(grid)
    unknown = {name for pair in grid.compared for name in pair} - set(grid.arms)
    if unknown:
        raise ValueError(f"config.compared names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")
    unknown = {arm.alone for arm in grid.arms.values()} - set(grid.arms)
    if unknown:
        raise ValueError(f"config.arms.*.alone names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")


def _data_path(workdir: Path, data: str, seed: int) -> Path:
    return workdir / "data" / f"{data}-seed{seed}.jsonl"


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    sys.exit(guarded(functools.partial(run, flags.FLAGS.config, Path(flags.FLAGS.workdir)), resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/interference.py", "the grid", lock_config=True)
    flags.DEFINE_string("workdir", "runs/interference", "folder of the runs")
    prepare()
    app.run(main, flags_parser=parse_flags)
