"""What does a language model forget while it learns? `python -m experiments.study forgetting`.

Trains the arms of config.py on growing numbers of new tasks and measures, on held-out texts, the tasks (loss, exact answers) and
what the model had before (loss on general texts, closed-book questions that it answered right). What a run is given depends on
its size and seed alone, so that arms differ in nothing else.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.studies import shared
from experiments.studies.forgetting import config, skills
from experiments.studies.forgetting.config import training
from rmjax.data.formats import Format
from rmjax.data.packing import ForestShape
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
from rmjax.evaluate.language import LanguageModel, answers, says, score_texts
from rmjax.evaluate.plots import against_size
from rmjax.evaluate.routing import describe_routing
from rmjax.evaluate.rows import Row, of_metric
from rmjax.models import parameters
from rmjax.reward_model import CHECKPOINTS, load_description, load_params
from rmjax.start import load_start
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study, result_rows
from rmjax.study.summary import Line, difference_line, mean_line, pivot, selected, spread_cell
from rmjax.train.checkpoint import Checkpoints

BASE = "base"
MEASURES = ("task_loss", "task_exact", "written_loss", "own_loss", "facts")
TESTED = ("tasks", "root", "row_tokens", "tested_tasks", "tested_texts", "answer_tokens")
"""Keys of the grid that every measurement depends on."""
HEADS = {
    "task_exact": "new tasks, exact", "task_loss": "new tasks, loss", "facts": "old questions still right",
    "written_loss": "people's texts, loss", "own_loss": "own answers, loss",
}  # fmt: skip
PANELS = {  # measure, minus that of the base or not → axis
    "facts_over_base": "old questions answered, over the base",
    "written_loss_over_base": "people's texts, loss (nats), over the base",
    "own_loss_over_base": "own old answers, loss (nats), over the base",
    "task_exact": "new tasks solved exactly",
}


@dataclasses.dataclass(frozen=True)
class Tests:
    """What every run is measured on."""

    tasks: Sequence[Comparison]
    general: Mapping[str, Sequence[Comparison]]
    questions: Sequence[Mapping[str, Any]]
    shape: ForestShape
    answer_tokens: int


def load_base(run: Any) -> LanguageModel:
    """The model that a run starts from. ValueError for random weights: they know nothing."""
    start, form = load_start(run.model), Format(**run.format.to_dict())
    if start.params is None:
        raise ValueError(
            f"config.init={run.model.init}: a model that knows nothing cannot forget; give one with weights"
        )
    return LanguageModel(start.config, jax.tree.map(jnp.asarray, start.params["backbone"]), start.tokenizer, form)


def load_skills(grid: Any, base: LanguageModel) -> skills.Skills:
    """The texts of the grid, as far as they fit into a row."""
    return skills.load_skills(grid.tasks, grid.root, base.encoder(grid.row_tokens))


def make_data(grid: Any, workdir: Path) -> None:
    """A file of texts for every size and seed."""
    found = load_skills(grid, load_base(training(grid, next(iter(grid.arms)), 0, "")))
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    for size, seed in itertools.product(grid.sizes, grid.seeds):
        write_records(
            workdir / "data" / f"size{size}-seed{seed}.jsonl", found.mixture(size, grid.knowledge_share, seed)
        )


def cells(grid: Any) -> Iterator[Cell]:
    """The base, then seeds outermost, so that a study that is stopped early has whole seeds."""
    tests = {key: grid[key] for key in TESTED} | {"sources": skills.files(grid.tasks, grid.root)}
    plain = training(grid, next(iter(grid.arms)), 0, "")
    yield Cell(BASE, {"arm": BASE}, ConfigDict({"tests": tests, "base": "", "training": plain}))
    for seed, size, name in itertools.product(grid.seeds, grid.sizes, shared.chosen_arms(grid)):
        if size == max(grid.sizes) or not grid.arms[name].swept:
            path = f"work:data/size{size}-seed{seed}.jsonl"
            run = {"training": training(grid, name, seed, path), "as_long_as": path}
            values = {"arm": name, "size": size, "seed": seed}
            yield Cell(
                f"{name}-size{size}-seed{seed}", values, ConfigDict({"tests": tests, "base": f"cell:{BASE}", **run})
            )


def train(config: ConfigDict, folder: Path) -> None:
    """An arm's run; the base is as it is."""
    if config.base:
        shared.train_as_long_as(config, folder)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """`task_loss`, `written_loss`, `own_loss`: nats per token; `task_exact`, `facts`: 1 right, 0 wrong; a row for each text, and
    facts only of questions that the base answers right. `trained`: parameters."""
    base = load_base(cell.config.training)
    tests = held_out(cell.config.tests, base)
    if cell.name == BASE:
        yield from measured(base, tests)
        return
    known = {row.item for row in of_metric(result_rows(workdir / BASE), "facts") if row.value}
    tests = dataclasses.replace(tests, questions=[q for q in tests.questions if q["id"] in known])
    model, trained = trained_model(workdir / cell.name)
    yield from measured(model, tests)
    yield Row("run", "run", "trained", float(trained))
    if model.config.adapter and model.config.adapter.routed:
        yield from shared.routing_rows(routing(model, tests))


def held_out(grid: Any, base: LanguageModel) -> Tests:
    """Tasks, general texts and all questions."""
    return Tests(
        shared.spread(load_skills(grid, base).tested, grid.tested_tasks), skills.general_texts(grid.tested_texts),
        skills.facts_rows(for_training=False), ForestShape(4, grid.row_tokens, 16, 1), grid.answer_tokens,
    )  # fmt: skip


def trained_model(folder: Path) -> tuple[LanguageModel, int]:
    """A run's model, and how many parameters it trained."""
    config, form, tokenizer = load_description(folder)
    model = LanguageModel(config, jax.tree.map(jnp.asarray, load_params(folder)["backbone"]), tokenizer, form)
    with Checkpoints(folder / CHECKPOINTS) as saved:
        return model, parameters.count(saved.restore_subtree("trainable")[1])


def measured(model: LanguageModel, tests: Tests) -> Iterator[Row]:
    """A row for each text and question."""
    for text, score in zip(tests.tasks, score_texts(model, tests.tasks, tests.shape), strict=True):
        yield _row(text.id, "task_loss", score.loss)
        yield _row(text.id, "task_exact", float(score.exact))
    for kind, texts in tests.general.items():
        for text, score in zip(texts, score_texts(model, texts, tests.shape, ended=False), strict=True):
            yield _row(text.id, f"{kind}_loss", score.loss)
    said = answers(model, [q["prompt"] for q in tests.questions], tests.answer_tokens)
    for question, output in zip(tests.questions, said, strict=True):
        yield _row(question["id"], "facts", float(says(output, question["answers"])))


def _row(item: str, metric: str, value: float) -> Row:
    return Row(item, item, metric, value)


def routing(model: LanguageModel, tests: Tests) -> dict[str, Any]:
    """Shares of mass of held-out tasks and of known questions, and how unevenly it is spread."""
    asked = [Comparison(q["prompt"], (q["answers"][0],), type=skills.KNOWLEDGE) for q in tests.questions]
    encode = model.encoder(tests.shape.row_tokens).language_model_trees
    trees = [tree for i, text in enumerate([*tests.tasks, *asked]) for tree in encode(text, i)]  # cuts: see `measured`
    return describe_routing(model.config, {"backbone": model.params}, trees, ("tasks", "knowledge"))


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """The base; every arm at every size, and minus the base; arms against each other; parameters; routing."""
    before, arms = results[BASE].rows, shared.chosen_arms(grid)
    runs: dict[tuple[str, int], list[Sequence[Row]]] = {}
    for cell in cells(grid):
        if cell.name != BASE:
            runs.setdefault((cell.values["arm"], cell.values["size"]), []).append(results[cell.name].rows)
    known = {row.item for row in of_metric(before, "facts") if row.value}
    old = [row for row in before if row.metric != "facts" or row.item in known]
    lines = [mean_line({"arm": BASE, "size": 0}, "asked", [of_metric(before, "facts")])]
    lines += [
        mean_line({"arm": BASE, "size": 0}, name, [of_metric(old, name)]) for name in MEASURES if of_metric(old, name)
    ]
    for (arm, size), found in runs.items():
        axes = {"arm": arm, "size": size}
        lines.append(mean_line(axes, "trained", selected(found, "trained", {})))
        for name in (name for name in MEASURES if of_metric(old, name)):
            own = selected(found, name, {})
            lines.append(mean_line(axes, name, own))
            lines.append(difference_line(axes, f"{name}_over_base", own, [of_metric(old, name)] * len(own)))
    for (first, second), size in itertools.product(grid.compared, grid.sizes):
        if {(first, size), (second, size)} <= set(runs):
            axes = {"arm": f"{first} − {second}", "size": size}
            for name in (name for name in MEASURES if of_metric(old, name)):
                lines.append(
                    difference_line(axes, name, *(selected(runs[arm, size], name, {}) for arm in (first, second)))
                )
    return lines + shared.routing_lines({arm: runs[arm, max(grid.sizes)] for arm in arms})


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/claims/loramoe.md: arms at each size, arms against each other at the largest and below, routing."""
    sizes = sorted({line["size"] for line in lines if line.get("size")})
    base = [line for line in lines if line["arm"] == BASE]
    found = {}
    for size in sizes:
        own = [line for line in lines if line.get("size") == size and " − " not in line["arm"]]
        columns = [("trained", "trained parameters"), *HEADS.items()]
        found[f"size{size}"] = pivot([*base, *own], ("arm",), columns, _mean)
    between = [line for line in lines if " − " in line["arm"]]
    for name, chosen in (("between", [max(sizes)]), ("between_smaller", sizes[:-1])):
        own = [line for line in between if line["size"] in chosen]
        found[name] = pivot(own, ("arm", "size"), list(HEADS.items()), _difference)
    found["routing"] = pivot([line for line in lines if "on" in line], ("arm",), "on", spread_cell)
    return {name: table.markdown(each) for name, each in found.items() if len(each) > 1}


def _mean(line: Line) -> str:
    return f"{line['value']:,.0f}" if line["metric"] == "trained" else f"{line['value']:.3f}"


def _difference(line: Line) -> str:
    return table.interval_cell(_interval(line), "+")


def _interval(line: Line) -> Any:
    return {side: line[side] for side in ("value", "low", "high", "n")}


def figures(lines: Sequence[Line], name: str) -> dict[str, Figure]:
    """What is lost against the amount of data, of arms that were run at every size; none where there is one size."""
    sizes = sorted({line["size"] for line in lines if line.get("size")})
    single = [line for line in lines if line.get("size") and " − " not in line["arm"]]
    arms = [
        arm
        for arm in dict.fromkeys(x["arm"] for x in single)
        if {x["size"] for x in single if x["arm"] == arm} == set(sizes)
    ]
    if len(sizes) < 2 or not arms:
        return {}
    value = {(line["arm"], line["size"], line["metric"]): _interval(line) for line in single}
    panels = {
        label: {arm: [value[arm, size, metric] for size in sizes] for arm in arms}
        for metric, label in PANELS.items()
        if (arms[0], sizes[0], metric) in value
    }
    return {name: against_size(sizes, panels, "new tasks in the training data")}


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: a grid that cannot be run."""
    check(grid)
    name = "forgetting" if grid.tasks == "shipped" else f"forgetting_{grid.tasks.removesuffix('_train')}"
    study = Study(
        name,
        tuple(cells(grid)),
        train,
        measure,
        lambda workdir: make_data(grid, workdir),
        discards=not grid.keep_checkpoints,
        code=(shared, skills, config),
    )
    page = Path("docs/claims/loramoe.md")
    shown = ("size384", "between", "routing") if name == "forgetting" else ("between",)
    drawn = functools.partial(figures, name=name)
    return Claim(study, page, lambda results: summarize(grid, results), parts, drawn, shown=shown)


def check(grid: Any) -> None:
    """ValueError for grids that cannot be run."""
    for field in ("sizes", "seeds", "arms"):
        if not len(grid[field]):
            raise ValueError(f"config.{field} is empty; give one at least")
    if list(grid.sizes) != sorted(set(grid.sizes)) or grid.sizes[0] < 1:
        raise ValueError(f"config.sizes is {grid.sizes}; give growing numbers, 1 or more")
    shared.require_arms(grid)
