"""Does MetaRM help where the policy moved? `python -m experiments.study drift` (`drift:SERIES`, see config.py).

All arms learn from the first stage's labels; the meta set is the drifted stage without labels, on training prompts; tests are
labeled groups of every stage on held-out prompts. In two series a proxy, a further run of the plain arm, makes the stages.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import train as trainer
from experiments.studies import shared
from experiments.studies.drift import config, stages
from experiments.studies.drift.config import FURTHEST, OF_A_PROXY, STAGES, training
from rmjax.config import chosen
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
from rmjax.data.samples import take
from rmjax.data.sources import records
from rmjax.evaluate.comparisons import CREDIT, preference_rows
from rmjax.evaluate.gaps import GAP, gap_fractions, gap_rows, gap_summary
from rmjax.evaluate.plots import gap_distributions
from rmjax.evaluate.rows import Row, of_metric, values
from rmjax.reward_model import RewardModel
from rmjax.start import load_start
from rmjax.streams import format_of, open_stream
from rmjax.study import table
from rmjax.study.cells import Cell, placed
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, difference_line, line_cell, mean_line, selected
from rmjax.train.metrics import read_metrics

SPREAD, REWARD, ASCENT = "gap_share", "reward", "meta_ascent_share"
DIAGNOSTICS = (ASCENT, "meta_ascent", "meta_cosine", "meta_difference", "meta_gradient_norm")
PLOTTED = ("plain", "plain-longer", "meta-step_norm-1", "meta-random_prompts")


def make_data(grid: Any, workdir: Path) -> None:
    """The labels; the stages too where no proxy makes them."""
    stages.write_training(grid.writer, workdir / "data")
    if grid.series not in OF_A_PROXY:
        stages.write_pool_stages(grid.writer, workdir / "data")


def cells(grid: Any) -> Iterator[Cell]:
    """Seeds outermost, so that a study that is stopped early has whole seeds."""
    for seed in grid.seeds:
        place = "work:data"
        if grid.series in OF_A_PROXY:
            place = f"cell:stages-seed{seed}"
            run = training(grid, "plain", grid.proxy_seed + seed, place)
            yield _cell("proxy", seed, training=run)
            yield _cell("stages", seed, writer=grid.writer, proxy=f"cell:proxy-seed{seed}")
        for name in shared.chosen_arms(grid):
            arm = grid.arms[name]
            labels = {
                "seen_in": grid.steps if arm.again else 0,
                "labeler": f"cell:plain-seed{seed}" if arm.self_labeled else "",
                "unlabeled": f"{place}/meta.jsonl" if arm.self_labeled else "",
            }
            tests = {stage: f"{place}/test_{stage}.jsonl" for stage in STAGES}
            yield _cell(name, seed, training=training(grid, name, seed, place), labels=labels, tests=tests)


def _cell(arm: str, seed: int, **parts: Any) -> Cell:
    return Cell(f"{arm}-seed{seed}", {"arm": arm, "seed": seed}, ConfigDict(parts))


def train(made: ConfigDict, folder: Path) -> None:
    """An arm's run or the proxy's, or the stages that the proxy makes."""
    if "writer" in made:
        write = stages.write_best_of_stages if made.writer.best_of else stages.write_distilled_stages
        write(made.writer, folder, RewardModel.load(made.proxy, mesh="all"))
        return
    if any(made.get("labels", {}).values()):
        write_records(folder / "train.jsonl", own_labels(made.training, made.labels))
        made.training.data.path = str(folder / "train.jsonl")
    trainer.run(made.training, folder)


def own_labels(run: Any, labels: Any) -> list[Comparison]:
    """Those that a run of `seen_in` steps sees; with a labeler also the unlabeled groups in the order that it gives them."""
    groups = list(records(run.data.path))
    if labels.seen_in:
        groups = [groups[i] for i in seen_by(run, labels.seen_in)]
    if labels.labeler:
        rngs = (np.random.default_rng([run.run.seed, i]) for i in itertools.count())
        meta = [take(c, rng, samples=run.data.candidates) for c, rng in zip(records(labels.unlabeled), rngs)]  # noqa: B905
        groups += self_labeled(RewardModel.load(labels.labeler, mesh="all"), meta)
    return groups


def seen_by(run: Any, steps: int) -> list[int]:
    """The records that the first batches of a run hold."""
    methods = chosen(run)
    tokenizer = load_start(methods.config.model).tokenizer
    stream = open_stream(methods, tokenizer, format_of(methods, tokenizer))
    batches = itertools.islice(stream.batches, steps)
    return sorted({int(i) for forest in batches for i in forest.record_RG.ravel() if i >= 0})


def self_labeled(model: RewardModel, groups: Sequence[Comparison]) -> list[Comparison]:
    """The groups with the order that the model itself gives: pseudo-labels on the same answers MetaRM sees."""
    scored = zip(groups, model.score_groups(groups), strict=True)
    different = [(c, scores) for c, scores in scored if len(set(c.outputs)) == len(c.outputs)]
    return [Comparison(c.prompt, c.outputs, ranks=tuple(-float(r) for r in s), id=f"self/{c.id}") for c, s in different]


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Of an arm and stage the credit of every labeled group and |Δr| of its answers; how far the ascent went and where to. Of
    stages that a policy wrote the proxy's mean reward."""
    folder, run = workdir / cell.name, placed(cell.config, workdir)
    if (folder / "rewards.json").exists():
        for stage, reward in json.loads((folder / "rewards.json").read_text()).items():
            yield Row(stage, stage, REWARD, reward, {"stage": stage})
    if "tests" not in run:
        return
    model = RewardModel.load(folder, mesh="all")
    for stage, path in run.tests.items():
        groups = list(records(path))
        scores = model.score_groups(groups)
        gaps = gap_rows(groups, scores)
        for row in (*of_metric(preference_rows(groups, scores), CREDIT), *of_metric(gaps, GAP)):
            yield Row(row.item, row.cluster, row.metric, row.value, {"stage": stage})
        yield Row(stage, stage, SPREAD, gap_summary(gaps)[SPREAD], {"stage": stage})
    yield from diagnostics(folder, run.training.gradient.warmup_steps)


def diagnostics(folder: Path, warmup: int) -> Iterator[Row]:
    """Means over the logged windows in which every step had an ascent."""
    lines = read_metrics(folder / "metrics.jsonl")
    ascents = [x for x in lines if x.get("train/meta_ascent") and x["step"] - lines[0]["step"] >= warmup]
    for name in DIAGNOSTICS:
        if found := [line[f"train/{name}"] for line in ascents if f"train/{name}" in line]:
            yield Row("run", "run", name, float(np.mean(found)))


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """Of each arm its accuracy by stage, paired differences to the arms that all are compared with, gaps, the ascent."""
    runs = {arm: [results[f"{arm}-seed{seed}"].rows for seed in grid.seeds] for arm in shared.chosen_arms(grid)}
    own, lines = grid.series in OF_A_PROXY, []  # each seed has a proxy, and so answers, of its own
    for arm, found in runs.items():
        credits = {name: [selected(runs[name], CREDIT, {"stage": s}) for s in STAGES] for name in (arm, *grid.compared)}
        axes = [{"arm": arm, "stage": stage} for stage in STAGES]
        lines += [mean_line(*each, own_items=own) for each in zip(axes, itertools.repeat("accuracy"), credits[arm])]  # noqa: B905
        for base in (base for base in grid.compared if base != arm):
            pairs = zip(axes, credits[arm], credits[base], strict=True)
            lines += [difference_line(each, f"minus {base}", *pair, own_items=own) for each, *pair in pairs]
        lines += [gap_line(each, found, own) for each in axes] + ascent_lines(arm, found)
    makers = [results[f"stages-seed{seed}"].rows for seed in grid.seeds if own]
    rewards = [(stage, selected(makers, REWARD, {"stage": stage})) for stage in STAGES]
    return lines + [mean_line({"arm": "proxy", "stage": s}, REWARD, found) for s, found in rewards if any(found)]


def gap_line(axes: Mapping[str, str], runs: Sequence[Sequence[Row]], own: bool) -> Line:
    """Mean |Δr|; beside it each seed's over the standard deviation of its rewards, and how the gaps of all seeds are spread."""
    gaps, shares = (selected(runs, metric, {"stage": axes["stage"]}) for metric in (GAP, SPREAD))
    more = {SPREAD: [rows[0].value for rows in shares]}
    fractions = gap_fractions([value for rows in gaps for value in values(rows)])
    return mean_line({**axes, **more, "fractions": fractions}, GAP, gaps, own_items=own)


def ascent_lines(arm: str, runs: Sequence[Sequence[Row]]) -> list[Line]:
    """‖θ' − θ‖ over the length of the outer step, and the other means beside it; none for an arm that does not ascend."""
    known = {name: [row.value for rows in runs for row in of_metric(rows, name)] for name in DIAGNOSTICS}
    if not known[ASCENT]:
        return []
    means = {name: float(np.mean(found)) for name, found in known.items() if found}
    interval = {"value": means[ASCENT], "low": None, "high": None, "n": len(runs), "seeds": known[ASCENT]}
    return [{"arm": arm, **means, "metric": "ascent", **interval}]


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of all arms, MetaRM's last."""
    known = {(x["metric"], x["arm"], x.get("stage")): x for x in lines}
    arms = [arm for metric, arm, stage in known if (metric, stage) == ("accuracy", STAGES[0])]
    rows = [["arm", *(f"{stage}, minus plain" for stage in STAGES), f"{FURTHEST}, minus plain-again; by seed"]]
    for arm in sorted(arms, key=lambda arm: arm.startswith("meta-")):
        over = {stage: known.get(("minus plain", arm, stage)) for stage in STAGES}
        cells = [f"{known['accuracy', arm, s]['value']:.3f}" + (_difference(x) if x else "") for s, x in over.items()]
        again = known.get(("minus plain-again", arm, FURTHEST))
        rows.append([arm, *cells, line_cell(again, "+") if again else "–"])
    return {"arms": table.markdown(rows)}


def _difference(line: Line) -> str:
    return f", {line['value']:+.3f} ({line['low']:+.3f} to {line['high']:+.3f})"


def figures(lines: Sequence[Line], name: str) -> dict[str, Figure]:
    """How |Δr| is distributed on the furthest stage."""
    furthest = [x for x in lines if (x["metric"], x.get("stage")) == (GAP, FURTHEST) and x["arm"] in PLOTTED]
    return {f"{name}_gaps": gap_distributions({x["arm"]: x["fractions"] for x in furthest})}


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: a grid that cannot be run."""
    if missing := [name for name in grid.compared if name not in shared.chosen_arms(grid)]:
        raise ValueError(
            f"config.chosen leaves out {', '.join(missing)}, which config.compared needs; change one of them"
        )
    name = "drift" if grid.series == "pool" else f"drift_{grid.series}"
    code = (shared, stages, config)
    study = Study(name, tuple(cells(grid)), train, measure, lambda folder: make_data(grid, folder), True, code)
    drawn = (lambda lines: figures(lines, name)) if grid.series == "pool" else (lambda lines: {})
    return Claim(study, Path("docs/claims/metarm.md"), lambda results: summarize(grid, results), parts, drawn)
