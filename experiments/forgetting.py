"""What does a language model forget while it learns? `python -m experiments.forgetting --workdir=runs/forgetting`.

Trains the arms of configs/forgetting.py on growing numbers of new tasks and measures, on held-out texts, the tasks (loss, exact
answers) and what the model had before (loss on general texts, closed-book questions that it answered right). What a run is
given depends on its size and seed alone, so that arms differ in nothing else.

Writes data/, a folder per arm, size and seed with result.json (runs that have one are not run again), base.json (the model
before training), results.json, results.md with its tables, forgetting.svg, and report.html with the routing of the LoRAMoE arms.
"""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from configs.forgetting import training
from experiments import skills, train
from experiments.forgetting_tables import tables
from experiments.grids import chosen_arms, routing_over_seeds, steps_of, stored
from experiments.skills import KNOWLEDGE, Skills
from experiments.start import guarded, parse_flags, prepare
from rmjax.config import keep_config
from rmjax.data.formats import Format
from rmjax.data.packing import ForestShape
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
from rmjax.evaluate import environment, interval, write_report
from rmjax.evaluate.language import LanguageModel, answers, says, score_texts
from rmjax.evaluate.plots import against_size, svg
from rmjax.evaluate.routing import describe_routing
from rmjax.evaluate.statistics import Interval, over_seeds, paired
from rmjax.files import write_json, write_text
from rmjax.locks import locked
from rmjax.models import parameters
from rmjax.reward_model import CHECKPOINTS, load_description
from rmjax.start import load_start
from rmjax.trainer import open_workdir

PANELS = {  # measure, minus that of the base or not → axis
    "facts": (True, "old questions answered"),
    "written_loss": (True, "people's texts, loss (nats)"),
    "own_loss": (True, "own old answers, loss (nats)"),
    "task_exact": (False, "new tasks solved exactly"),
}
_JUDGED = ("init", "layers", "tasks", "knowledge_share", "row_tokens", "tested_tasks", "tested_texts", "answer_tokens")
Measured = Mapping[str, Sequence[float]]  # measure → a value per text or question


@dataclasses.dataclass(frozen=True)
class Tests:
    """What every run is judged on."""

    tasks: Sequence[Comparison]
    general: Mapping[str, Sequence[Comparison]]
    questions: Sequence[Mapping[str, Any]]
    shape: ForestShape
    answer_tokens: int


def judge(model: LanguageModel, tests: Tests) -> dict[str, list[float]]:
    """task_loss, written_loss, own_loss: nats per token; task_exact, facts: 1 right, 0 wrong. One value per text."""
    tasks = score_texts(model, tests.tasks, tests.shape)
    found = {"task_loss": [s.loss for s in tasks], "task_exact": [float(s.exact) for s in tasks]}
    for kind, texts in tests.general.items():
        found[f"{kind}_loss"] = [s.loss for s in score_texts(model, texts, tests.shape, ended=False)]
    said = answers(model, [q["prompt"] for q in tests.questions], tests.answer_tokens)
    found["facts"] = [float(says(output, q["answers"])) for output, q in zip(said, tests.questions, strict=True)]
    return found


def load_base(grid: Any) -> LanguageModel:
    """The model that every arm starts from. ValueError for random weights: they know nothing."""
    config = training(grid, next(iter(grid.arms)), 0, "")
    start, form = load_start(config.model), Format(**config.format.to_dict())
    if start.params is None:
        raise ValueError(f"config.init={grid.init}: a model that knows nothing cannot forget; give one with weights")
    return LanguageModel(start.config, jax.tree.map(jnp.asarray, start.params["backbone"]), start.tokenizer, form)


def judge_base(grid: Any, base: LanguageModel, tests: Tests, path: Path) -> tuple[Tests, dict[str, Any]]:
    """The base's measures, kept in `path`, and the tests with only those questions that it answers right."""
    found = stored(path, _judged(grid))
    if found is None:
        found = {"values": judge(base, tests), "judged": _judged(grid)}
        write_json(path, found)
    right = found["values"]["facts"]
    known = [question for question, credit in zip(tests.questions, right, strict=True) if credit]
    values = found["values"] | {"facts": [1.0] * len(known)}
    return dataclasses.replace(tests, questions=known), {
        "values": values, "asked": len(right), "answered": len(known)
    }  # fmt: skip


def run_one(grid: Any, name: str, size: int, seed: int, workdir: Path, base: LanguageModel, tests: Tests) -> dict:
    """Trains an arm on `size` tasks and judges it; the stored result where it is finished."""
    folder = workdir / name / f"size{size}-seed{seed}"
    config = training(grid, name, seed, str(_data_path(workdir, size, seed)))
    config.run.steps = config.run.save_every = steps_of(config, base.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    keep_config(config, folder / "config.json")
    found = stored(folder / "result.json", _judged(grid))
    if found is not None:
        return found
    state = train.run(config, folder)
    params = parameters.merge(state.trainable, state.frozen)
    model_config, form, _ = load_description(folder)
    model = LanguageModel(model_config, params["backbone"], base.tokenizer, form)
    found = {"values": judge(model, tests), "judged": _judged(grid), "trained": parameters.count(state.trainable)}
    if model_config.adapter and model_config.adapter.routed:
        found["routing"] = routing(model, tests)
    write_json(folder / "result.json", found)
    if not grid.keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS)
    return found


def routing(model: LanguageModel, tests: Tests) -> dict[str, Any]:
    """Shares of mass of held-out tasks and of known questions, and how unevenly it is spread."""
    asked = [Comparison(q["prompt"], (q["answers"][0],), type=KNOWLEDGE) for q in tests.questions]
    encode = model.encoder(tests.shape.row_tokens).language_model_trees
    trees = [tree for i, text in enumerate([*tests.tasks, *asked]) for tree in encode(text, i)]  # cuts: see `judge`
    return describe_routing(model.config, {"backbone": model.params}, trees, ("tasks", "knowledge"))


def summary(base: Measured, results: Mapping[str, Mapping[int, Sequence[Measured]]]) -> dict[str, Any]:
    """Arm → size → measure → its mean over seeds and texts, each seed's own, and the difference to the base."""
    return {
        name: {str(size): {m: _row([run[m] for run in runs], base[m]) for m in base} for size, runs in by_size.items()}
        for name, by_size in results.items()
    }


def _row(values: Sequence[Sequence[float]], before: Sequence[float]) -> dict[str, Any]:
    return {**over_seeds(values), "over_base": paired(values, [before] * len(values))}


def compared(grid: Any, results: Mapping[str, Mapping[int, Sequence[Measured]]]) -> dict[str, Any]:
    """`first - second` → size → measure → paired difference."""
    found: dict[str, Any] = {}
    for first, second in (pair for pair in grid.compared if set(pair) <= set(results)):
        found[f"{first} - {second}"] = {
            str(size): {m: paired([run[m] for run in runs], [run[m] for run in results[second][size]]) for m in runs[0]}
            for size, runs in results[first].items()
            if size in results[second]
        }
    return found


def make_data(grid: Any, found: Skills, folder: Path) -> None:
    """A file of texts for every size and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for size in grid.sizes:
        for seed in grid.seeds:
            write_records(_data_path(folder.parent, size, seed), found.mixture(size, grid.knowledge_share, seed))


def run(grid: Any, workdir: Path) -> None:
    """All arms, sizes and seeds; the summary, the plot, the report.

    Raises:
      ValueError: a grid that cannot be run, or results in `workdir` that are of another one.
      InUseError: another run is writing to `workdir`.
    """
    check(grid)
    open_workdir(workdir)
    with locked(workdir):
        _run(grid, workdir)


def _run(grid: Any, workdir: Path) -> None:
    base = load_base(grid)
    found = skills.load_skills(grid.tasks, grid.root, base.encoder(grid.row_tokens))
    make_data(grid, found, workdir / "data")
    tests = Tests(
        skills.spread(found.tested, grid.tested_tasks), skills.general_texts(grid.tested_texts),
        skills.facts_rows(for_training=False), ForestShape(4, grid.row_tokens, 16, 1), grid.answer_tokens,
    )  # fmt: skip
    tests, before = judge_base(grid, base, tests, workdir / "base.json")
    runs: dict[str, dict[int, list[dict]]] = {name: {} for name in chosen_arms(grid)}
    for seed in grid.seeds:  # outermost, so that a grid that was stopped early has whole seeds
        for size in grid.sizes:
            for name in (n for n in runs if size == max(grid.sizes) or not grid.arms[n].swept):
                runs[name].setdefault(size, []).append(run_one(grid, name, size, seed, workdir, base, tests))
    write_results(grid, before, runs, workdir)


def write_results(grid: Any, before: Mapping[str, Any], runs: Mapping[str, Any], workdir: Path) -> None:
    """results.json, results.md, forgetting.svg, report.json and report.html."""
    results = {name: {n: [r["values"] for r in rs] for n, rs in by_size.items()} for name, by_size in runs.items()}
    table = summary(before["values"], results)
    trained = {name: next(iter(by_size.values()))[0]["trained"] for name, by_size in runs.items()}
    base = {measure: interval(values) for measure, values in before["values"].items()}
    facts = {"grid": json.loads(grid.to_json_best_effort()), **environment()}
    workdir.mkdir(parents=True, exist_ok=True)
    written = {"arms": table, "compared": compared(grid, results), "base": base, "trained": trained}
    written |= {name: before[name] for name in ("asked", "answered")}
    routed = {name: routing_over_seeds(by_size[max(grid.sizes)]) for name, by_size in runs.items()}
    written["routing"] = {name: found for name, found in routed.items() if found}
    write_json(workdir / "results.json", written | facts)
    write_text(workdir / "results.md", tables(written))
    print(tables(written))
    curves = panels(grid, table)
    if curves:
        write_text(workdir / "forgetting.svg", svg(against_size(grid.sizes, curves), "forgetting against data size"))
    largest = {name: by_size[max(grid.sizes)][0] for name, by_size in runs.items()}
    maps = {name: found["routing"] for name, found in largest.items() if "routing" in found}
    report = {
        "title": "Forgetting",
        "sizes": list(grid.sizes),
        "panels": curves,
        "routing": maps,
        "provenance": facts,
    }
    write_report(report, workdir)


def panels(grid: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """Axis → arm → an interval per size; arms that were run at one size only are not drawn."""
    shown = [name for name in table if not grid.arms[name].swept]
    if not shown:
        return {}
    return {
        f"{label}, over the base" if over else label: {
            name: [_drawn(table[name][str(size)][measure], over) for size in grid.sizes] for name in shown
        }
        for measure, (over, label) in PANELS.items()
    }


def _drawn(found: Mapping[str, Any], over: bool) -> Interval:
    return (found["over_base"] if over else found)["mean"]


def check(grid: Any) -> None:
    """ValueError for grids that cannot be run."""
    for field in ("sizes", "seeds", "arms"):
        if not len(grid[field]):
            raise ValueError(f"config.{field} is empty; give one at least")
    if list(grid.sizes) != sorted(set(grid.sizes)) or grid.sizes[0] < 1:
        raise ValueError(f"config.sizes is {grid.sizes}; give growing numbers, 1 or more")
    chosen_arms(grid)
    unknown = {name for pair in grid.compared for name in pair} - set(grid.arms)
    if unknown:
        raise ValueError(f"config.compared names {', '.join(sorted(unknown))}; the arms are {', '.join(grid.arms)}")


def _data_path(workdir: Path, size: int, seed: int) -> Path:
    return workdir / "data" / f"size{size}-seed{seed}.jsonl"


def _judged(grid: Any) -> dict[str, Any]:
    return {name: grid[name] for name in _JUDGED}


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    sys.exit(guarded(functools.partial(run, flags.FLAGS.config, Path(flags.FLAGS.workdir)), resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/forgetting.py", "the grid", lock_config=True)
    flags.DEFINE_string("workdir", "runs/forgetting", "folder of the runs")
    prepare()
    app.run(main, flags_parser=parse_flags)
