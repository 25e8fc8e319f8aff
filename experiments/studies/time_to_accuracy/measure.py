"""Held-out accuracy against time, here and in TRL's RewardTrainer: `taskset -c 1 python -m experiments.study time_to_accuracy`.

A cell is one side with one seed, in a process of its own (`experiments/trainers`); the sides take turns. Both get the same model
and head, and the same pairs in one order, once. Time is that of the steps after the first one; what the process took until then
is start-up. Scoring the held-out pairs counts on neither side.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.trainers import exchange, learning, processes, start
from experiments.trainers.generated import stand_in
from experiments.trainers.processes import OURS, THEIRS, processor, run_job, trl_side
from rmjax.data.record import Comparison, to_row
from rmjax.data.sources import records
from rmjax.evaluate.plots import BLUE, ORANGE, STYLE, WIDTH
from rmjax.evaluate.rows import Row, of_metric, values
from rmjax.files import write_json, write_lines
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, Runs, difference_line, line_cell, mean_line, selected, signed_cell

SIDES = (OURS, THEIRS)
DIFFERENCE, RATIO = f"{OURS} − {THEIRS}", f"{THEIRS} / {OURS}"
GAP = "gap"  # reward of the chosen answer minus that of the other one
ACCURACY, LOSS, PASS = "accuracy", "loss", "pass"
DERIVED = {ACCURACY: lambda gap: float(np.heaviside(gap, 0.5)), LOSS: lambda gap: float(np.logaddexp(0.0, -gap))}
TOLERANCE = 1e-3  # of a gap, before training
APART = ("python", "numpy", "processor")  # of the versions, said elsewhere or nowhere
FACTS = ("pairs", "tokens", "cut", "rows")
CLOCKS = ("cpu_seconds", "seconds", "startup_cpu_seconds", "startup_seconds")
HELD_OUT, PLAN = "data/held_out.jsonl", "data/plan.json"


def cells(config: Any) -> Iterator[Cell]:
    """Seeds outermost, the sides in turn."""
    for seed in config.seeds:
        for side in SIDES:
            whole = {
                "side": side, "training": training(config, seed, "work:data"), "pairs": f"work:data/pairs-seed{seed}.jsonl",
                "held_out": f"work:{HELD_OUT}", "plan": f"work:{PLAN}", "model": f"work:data/model-seed{seed}",
                "batch": config.batch, "points": config.points, "peer": config.peer,
            }  # fmt: skip
            yield Cell(f"{side}-seed{seed}", {"side": side, "seed": seed}, ConfigDict(whole))


def training(config: Any, seed: int, folder: str | Path) -> ConfigDict:
    """What our side runs."""
    found = config.training.copy_and_resolve_references()
    found.data.path, found.run.seed = f"{folder}/train-seed{seed}.jsonl", seed
    return found


# --- what both sides read ----------------------------------------------------------------------------------------------


def make_data(config: Any, workdir: Path) -> None:
    """For each seed comparisons to train on, the same as pairs of token ids, and a model; held-out pairs."""
    if (workdir / PLAN).exists():
        return
    folder, plan = workdir.resolve() / "data", {}
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = comparisons(config, folder)
    for seed in config.seeds:
        chosen = np.random.default_rng(seed).permutation(len(train))[: config.pairs]
        write_lines(folder / f"train-seed{seed}.jsonl", [to_row(train[i]) for i in chosen])
        plan[str(seed)] = learning.prepare(training(config, seed, folder), config.batch, folder)
    learning.write_held_out(training(config, seed, folder), held_out[: config.tested], workdir / HELD_OUT)
    write_json(workdir / PLAN, plan)


def comparisons(config: Any, folder: Path) -> tuple[Sequence[Comparison], Sequence[Comparison]]:
    """To train on, and held out; a fifth of generated ones where the real set is absent."""
    path, name = stand_in(config.data, config.root, folder)
    if name == config.data:
        train, test = (list(records(path, config.root, split)) for split in ("train", "test"))
        return train, test
    found = list(records(path))
    return found[len(found) // 5 :], found[: len(found) // 5]


# --- a cell ------------------------------------------------------------------------------------------------------------


def train(config: ConfigDict, folder: Path) -> None:
    """Runs the cell's process."""
    plan = json.loads(Path(config.plan).read_text())[str(config.training.run.seed)]
    changed, ours = start.changes(config.training), config.side == OURS
    steps = plan["steps"] if ours else math.ceil(plan["pairs"] / config.batch)
    job = start.shared_facts(changed, plan["device"]) | {
        "kind": "learn", "config": changed | {"data.rows": plan["rows"], "run.steps": steps}, "seed": config.training.run.seed,
        "schedule": {name: config.training.optimizer[name] for name in ("warmup", "final")}, "model": config.model,
        "pairs": config.pairs, "held_out": config.held_out, "batch": config.batch, "parts": 1, "steps": steps,
        "at": [round(i * steps / config.points) for i in range(config.points + 1)],
    }  # fmt: skip
    write_json(folder / "found.json", run_job(folder, "learn", config.side, config.peer, job))


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """At every point the gap of every held-out pair, and the seconds until then; start-up beside them; what it ran on."""
    found = json.loads((workdir / cell.name / "found.json").read_text())
    for number, point in enumerate(found["points"]):
        groups = {"point": str(number)}
        for item, (chosen, rejected) in enumerate(point["rewards"]):
            yield Row(str(item), item, GAP, chosen - rejected, groups)
        for clock in CLOCKS[:2]:
            yield Row("run", "run", clock, point[clock], groups)
        yield Row("run", "run", "step", point["step"], groups)
    for clock in CLOCKS[2:]:
        yield Row("run", "run", clock, found[clock])
    plan = json.loads((workdir / PLAN).read_text())[str(cell.values["seed"])]
    for name in FACTS:
        yield Row("run", "run", name, plan[name])
    for name, said in {**found["versions"], "processor": processor()}.items():
        yield Row("run", "run", "versions", 1.0, {"name": name, "said": said})


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(config: Any, results: Mapping[str, Result]) -> list[Line]:
    """Accuracy, loss and seconds of each side at each point; differences at the end; seconds to what both reach; ratios."""
    runs = {side: [results[cell.name].rows for cell in cells(config) if cell.values["side"] == side] for side in SIDES}
    lines, last = [{"metric": "apart", "value": apart_at_first(runs)}, *_facts(runs)], str(config.points)
    for side, point in itertools.product(SIDES, map(str, range(config.points + 1))):
        axes, at = {"side": side, "point": point}, {"point": point}
        lines += [mean_line(axes, name, derived(runs[side], name, point)) for name in DERIVED]
        lines += [mean_line(axes, name, selected(runs[side], name, at)) for name in (*CLOCKS[:2], "step")]
    lines += [mean_line({"side": side}, name, selected(runs[side], name, {})) for side in SIDES for name in CLOCKS[2:]]
    lines += [
        difference_line({"side": DIFFERENCE}, name, *(derived(runs[side], name, last) for side in SIDES))
        for name in DERIVED
    ]
    for name, clock, startup in itertools.product((PASS, *DERIVED), CLOCKS[:2], (False, True)):
        lines += list(times_to(lines, name, clock, startup))
    return lines


def derived(runs: Runs, name: str, point: str) -> list[list[Row]]:
    """Accuracy or loss of every held-out pair, of its gap."""
    return [
        [dataclasses.replace(row, metric=name, value=DERIVED[name](row.value)) for row in rows]
        for rows in selected(runs, GAP, {"point": point})
    ]


def apart_at_first(runs: Mapping[str, Runs]) -> float:
    """The largest difference of a gap before training.

    Raises:
      ValueError: it is too large: the sides did not start from one model.
    """
    ours, theirs = (
        [value for rows in selected(runs[side], GAP, {"point": "0"}) for value in values(rows)] for side in SIDES
    )
    found = float(np.max(np.abs(np.subtract(ours, theirs))))
    if not found <= TOLERANCE:
        raise ValueError(
            f"before training the sides differ by {found:.2g} in a gap, more than {TOLERANCE}: another model"
        )
    return found


def _facts(runs: Mapping[str, Runs]) -> Iterator[Line]:
    for name in FACTS:
        yield {"metric": name, "value": float(np.mean([values(of_metric(rows, name)) for rows in runs[OURS]]))}
    said = {row.groups["name"]: row.groups["said"] for side in SIDES for row in of_metric(runs[side][0], "versions")}
    yield {"metric": "versions", "value": said}


def times_to(lines: Sequence[Line], name: str, clock: str, startup: bool) -> Iterator[Line]:
    """Seconds of each side until what both reach in the end, in the mean over seeds and in each seed, and TRL's over ours; of the
    whole pass where `name` is PASS."""
    sides = [_curves(lines, side, name, clock, startup) for side in SIDES]
    levels = [max(found[-1] for found, _ in curves) for curves in zip(*sides, strict=True)]
    times = [[_time(curve, level, name) for curve, level in zip(side, levels, strict=True)] for side in sides]
    ratios = [b / a if a and b else None for a, b in zip(*times, strict=True)]
    for side, (value, *seeds) in zip((*SIDES, RATIO), (*times, ratios), strict=True):
        axes = {"side": side, "of": name, "clock": clock, "startup": startup, "level": abs(levels[0])}
        yield {**axes, "metric": "time_to", "value": value, "seeds": seeds}


def _time(curve: tuple[list[float], list[float]], level: float, name: str) -> float | None:
    return curve[1][-1] if name == PASS else crossing(*curve, level)


def _curves(
    lines: Sequence[Line], side: str, name: str, clock: str, startup: bool
) -> list[tuple[list[float], list[float]]]:
    """(what falls in training, seconds) at each point: of the mean over seeds, then of each seed."""
    own = [line for line in lines if line.get("side") == side]
    shown, sign = (LOSS, 1) if name == PASS else (name, -1 if name == ACCURACY else 1)
    before = next(line for line in own if line["metric"] == f"startup_{clock}")
    found, seconds = (
        [line for line in own if line["metric"] == metric and "point" in line] for metric in (shown, clock)
    )

    def of(get: Callable[[Line], float]) -> tuple[list[float], list[float]]:
        return [sign * get(line) for line in found], [get(line) + startup * get(before) for line in seconds]

    seeds = [of(functools.partial(_of_seed, number)) for number in range(len(before["seeds"]))]
    return [of(lambda line: line["value"]), *seeds]


def _of_seed(number: int, line: Line) -> float:
    return float(line["seeds"][number])


def crossing(found: Sequence[float], seconds: Sequence[float], level: float) -> float | None:
    """When a falling curve first comes down to `level`, straight between points; None where it begins there."""
    if found[0] <= level:
        return None
    for i in range(1, len(found)):
        if found[i] <= level:
            part = (found[i - 1] - level) / (found[i - 1] - found[i])
            return seconds[i - 1] + part * (seconds[i] - seconds[i - 1])
    return None


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/speed.md, and what they were measured on."""
    last = max((line["point"] for line in lines if "point" in line), key=int)
    end = [line for line in lines if line.get("point") == last or line.get("side") == DIFFERENCE]
    rows = [["held out, at the end", *SIDES, DIFFERENCE]]
    for name in DERIVED:
        by_side = {line["side"]: line for line in end if line["metric"] == name}
        rows.append([name, *(line_cell(by_side[side]) for side in SIDES), signed_cell(by_side[DIFFERENCE])])
    return {"end": table.markdown(rows), "times": table.markdown(_times(lines)), "measured": _measured(lines)}


def _times(lines: Sequence[Line]) -> list[list[str]]:
    """Seconds of the core, and wall seconds beside them."""
    rows = [["seconds of the core (wall)", *SIDES, "TRL's over ours; each seed's"]]
    found = {(x["of"], x["startup"], x["side"], x["clock"]): x for x in lines if x["metric"] == "time_to"}
    for name, startup in itertools.product((PASS, *DERIVED), (False, True)):
        core, wall = ([found[name, startup, side, clock] for side in (*SIDES, RATIO)] for clock in CLOCKS[:2])
        head = "the whole pass" if name == PASS else f"to {name} {core[0]['level']:.3f}, which both reach"
        cells = [
            f"{_number(a['value'], '.0f')} ({_number(b['value'], '.0f')})"
            for a, b in zip(core[:2], wall[:2], strict=True)
        ]
        each = " ".join(_number(value, ".1f") for value in core[2]["seeds"])
        ratio = f"{_number(core[2]['value'], '.2f')} ({_number(wall[2]['value'], '.2f')}); {each}"
        rows.append([head + (", start-up included" if startup else ""), *cells, ratio])
    return rows


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _measured(lines: Sequence[Line]) -> str:
    of = {line["metric"]: line["value"] for line in lines if "side" not in line}
    said = ", ".join(f"{name} {version}" for name, version in of["versions"].items() if name not in APART)
    steps = {line["side"]: line["value"] for line in lines if line["metric"] == "step"}  # of the last point
    tokens = of["tokens"] / of["pairs"]
    return (
        f"One core of {of['versions']['processor']}; {said}. {of['pairs']:.0f} pairs a seed, {tokens:.0f} tokens a pair in the\n"
        f"mean, {of['cut']:.0f} of them cut; {steps[OURS]:.0f} steps of {of['rows']:.0f} packed rows here, "
        f"{steps[THEIRS]:.0f} there. Before training the\ngaps of the held-out pairs differ by {of['apart']:.1e} at most."
    )


@matplotlib.rc_context(STYLE)
def figures(lines: Sequence[Line]) -> dict[str, Figure]:
    """Accuracy and loss against seconds of the core: thin lines are seeds."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, name in zip(panels, DERIVED, strict=True):
        for side, color in zip(SIDES, (BLUE, ORANGE), strict=True):
            (mean, seconds), *seeds = _curves(lines, side, name, CLOCKS[0], startup=False)
            for found, when in seeds:
                panel.plot(when, np.abs(found), color=color, linewidth=0.7, alpha=0.5)
            panel.plot(seconds, np.abs(mean), "-o", color=color, markersize=4, label=side)
        panel.set_ylabel(f"held-out {name}")
    panels[0].legend(loc="lower right")
    panels[-1].set_xlabel("seconds of one core, start-up and scoring apart")
    return {"time_to_accuracy": figure}


def get_claim(config: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    code = (learning, exchange, processes, start, trl_side())
    make = functools.partial(make_data, config)
    study = Study("time_to_accuracy", tuple(cells(config)), train, measure, make, code=code)
    return Claim(study, Path("docs/speed.md"), lambda results: summarize(config, results), parts, figures)
