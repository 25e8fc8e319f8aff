"""Pairs per second, memory and start-up against TRL's RewardTrainer: `python -m experiments.study trainers` (`make bench`).

Both sides start from the same weights and take the same pairs. A round is a process of ours, one of TRL's, and at the smallest
batch one of ours on TRL's own padded batch; a cell is one of them. Before that, a process each shows that loss and rewards of one
batch agree; where they do not, nothing is timed. Ratios are formed within a round. See docs/speed.md.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.trainers import exchange, processes, results, rmjax_side, start
from experiments.trainers.generated import stand_in
from experiments.trainers.processes import OURS, THEIRS, processor, run_job, trl_side
from experiments.trainers.results import against, dense_against, of_side, spread_of
from rmjax.evaluate.rows import Row
from rmjax.files import write_json
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line
from rmjax.study.table import markdown

TOLERANCE = 1e-3  # largest difference of a reward or of the loss between the sides, in fp32
DENSE, FOUND, PLAN = "dense", "found", "data/plan.json"
AGREE = (f"agree-{OURS}", f"agree-{THEIRS}")


def parts_of(config: Any, batch: int) -> int:
    """Microbatches of a step.

    Raises:
      ValueError: the batch does not divide into parts of `at_once` pairs.
    """
    if batch > config.at_once and batch % config.at_once:
        raise ValueError(
            f"config.batches has {batch}; make it a multiple of config.at_once={config.at_once}, or no more than that"
        )
    return max(1, batch // config.at_once)


def cells(config: Any) -> Iterator[Cell]:
    """Agreement, then all rounds, in which the sides take turns. The padded step is compared where a batch is run as one."""
    first, steps = min(config.batches), dict(zip(config.batches, config.steps, strict=True))
    for name, side in zip(AGREE, (OURS, THEIRS), strict=True):
        sizes = {"batch": min(first, config.at_once), "of": first, "steps": 1 + steps[first]}
        yield _cell(config, name, {"kind": "agree", "side": side, **sizes})
    for number in range(config.rounds):
        for batch in config.batches:
            padded = batch == first and parts_of(config, batch) == 1
            for side in (OURS, THEIRS, DENSE) if padded else (OURS, THEIRS):
                kind, wanted = ("dense", 2) if side == DENSE else ("train", 1 + steps[batch])
                values = {"kind": kind, "side": side, "batch": batch, "of": batch, "number": number, "steps": wanted}
                yield _cell(config, f"{side}-{batch}-{number}", values)
    yield _cell(config, "pack", {"kind": "pack", "side": OURS, "batch": first, "of": first, "steps": 1 + steps[first]})
    sizes = {"rounds": config.rounds, "groups": config.groups, "candidates": config.candidates, "batch_tokens": 4096}
    yield _cell(config, "score", {"kind": "score", "side": OURS, **sizes})


def _cell(config: Any, name: str, values: Mapping[str, Any]) -> Cell:
    """`of`: the batch whose file of pairs is read."""
    whole = {"training": config.training, "peer": config.peer, **values}
    if "of" in values:
        number = values.get("number", 0)
        whole |= {"number": number, "parts": 1 if values["kind"] == "agree" else parts_of(config, values["batch"])}
        whole |= {"model": "work:data/model", "pairs": f"work:data/pairs/{values['of']}.{number}.jsonl"}
    if name not in AGREE:
        whole["agreed"] = tuple(f"cell:{each}/{FOUND}.json" for each in AGREE)
    shown = {key: values[key] for key in ("side", "batch", "number") if key in values}
    return Cell(name, {"kind": values["kind"], **shown}, ConfigDict(whole))


# --- running -----------------------------------------------------------------------------------------------------------


def make_data(config: Any, workdir: Path) -> None:
    """The model in Hugging Face's format and the pairs of each round, by a process of our side; what is known of them."""
    path = workdir.resolve() / PLAN
    if path.exists() and json.loads(path.read_text())["rounds"] >= config.rounds:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    changed = start.changes(config.training)
    changed["data.path"], name = stand_in(config.training.data.path, config.training.data.root, path.parent)
    job = {
        "kind": "prepare", "config": changed, "model": str(path.parent / "model"), "pairs": str(path.parent / "pairs"),
        "batches": list(config.batches), "parts": [parts_of(config, batch) for batch in config.batches],
        "steps": [1 + n for n in config.steps], "rounds": config.rounds,
    }  # fmt: skip
    made = run_job(path.parent, "prepare", OURS, config.peer, job, workdir / "cache")
    facts = {"data": {"name": name, **made["data"]}, "path": changed["data.path"], "rounds": config.rounds}
    write_json(path, facts | {field: made[field] for field in ("rows", "platform")})


def train(config: ConfigDict, folder: Path) -> None:
    """Runs the cell's process.

    Raises:
      ValueError: the sides do not agree.
      RuntimeError: as `run_job`.
    """
    plan = json.loads((folder.parent / PLAN).read_text())
    if "agreed" in config:
        check_agreement(*(json.loads(Path(path).read_text()) for path in config.agreed))
    changed = start.changes(config.training) | {"data.path": plan["path"]}
    on_gpu = plan["platform"] == "gpu"
    if on_gpu and config.kind != "agree":
        changed["model.dtype"] = "bfloat16"
    own = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("training", "peer", "agreed", "of", "number")
    }
    job = start.shared_facts(changed, "gpu" if on_gpu else "cpu") | own | {"config": changed, "tolerance": TOLERANCE}
    if "of" in config:
        job |= {"seed": config.number, "rows": plan["rows"][str(config.of)]}
    write_json(folder / f"{FOUND}.json", run_job(folder, "job", config.side, config.peer, job, folder.parent / "cache"))


def check_agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Largest differences of loss and rewards.

    Raises:
      ValueError: they are more than `TOLERANCE`.
    """
    pairs = list(zip(ours["rewards"], theirs["rewards"], strict=True))
    rewards = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    found = {"loss": abs(ours["loss"] - theirs["loss"]), "rewards": rewards}
    if not max(found.values()) <= TOLERANCE:
        raise ValueError(
            f"the two sides differ on the same batch, in the loss by {found['loss']:.2g} and in a reward by "
            f"{found['rewards']:.2g}, more than {TOLERANCE}: they are not the same model, so nothing is timed"
        )
    return found


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """What the process found, number by number: `steps.0.seconds`, `rewards.1.0`, …; words stand in a group of their row."""
    found = json.loads((workdir / cell.name / f"{FOUND}.json").read_text())
    plan = json.loads((workdir / PLAN).read_text())
    machine = {"cores": os.cpu_count(), "cpu": processor(), "data": plan["data"], "platform": plan["platform"]}
    for key, value in _leaves("", found | {"machine": machine}):
        if isinstance(value, str):
            yield Row("run", "run", key, 1.0, {"said": value})
        elif value is not None:
            yield Row("run", "run", key, float(value))


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(f"{place}{SEPARATOR if place else ''}{key}", each)
    else:
        yield place, value


SEPARATOR = "/"


def found_in(rows: Sequence[Row]) -> dict[str, Any]:
    """What `measure` took apart; lists by their numbers as text."""
    found: dict[str, Any] = {}
    for row in rows:
        *path, last = row.metric.split(SEPARATOR)
        inner = functools.reduce(lambda at, key: at.setdefault(key, {}), path, found)
        inner[last] = row.groups.get("said", row.value)
    return _listed(found)


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(each) for key, each in value.items()}
    return list(inner.values()) if inner and all(key.isdecimal() for key in inner) else inner


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(config: Any, done: Mapping[str, Result]) -> list[Line]:
    """Facts, each side at each batch size, ratios, scoring, packing."""
    found = {cell.name: found_in(done[cell.name].rows) for cell in cells(config)}
    ours, theirs = (found[name] for name in AGREE)
    lines = [facts_line(config, found, check_agreement(ours, theirs))]
    for batch in config.batches:
        runs = {
            side: [found[f"{side}-{batch}-{n}"] for n in range(config.rounds)]
            for side in (OURS, THEIRS, DENSE) if f"{side}-{batch}-0" in found
        }  # fmt: skip
        lines += [line for side, each in runs.items() for line in of_side({"batch": str(batch), "side": side}, each)]
        axes = {"batch": str(batch), "side": "ratio"}
        lines += against(axes, runs[OURS], runs[THEIRS])
        lines += [dense_against(axes, runs[DENSE], runs[THEIRS])] if DENSE in runs else []
    seconds = found["score"]["seconds"]
    for way in ("padded", "sorted"):
        ratios = [x / y for x, y in zip(seconds[way], seconds["forest"], strict=True)]
        lines.append(spread_of({"side": "score"}, way, ratios))
    return [*lines, {"side": "pack", "metric": "ratio", "value": found["pack"]["ratio"]}]


def facts_line(config: Any, found: Mapping[str, Any], agreement: Mapping[str, float]) -> Line:
    """What it was measured on, and with."""
    sides, score = [found[name] for name in AGREE], found["score"]
    machine, rates = sides[0]["machine"], {side["arm"]: side.get("product_rate") for side in sides}
    first = [found[f"{side}-{config.batches[0]}-0"] for side in (OURS, THEIRS)]
    return {
        "metric": "facts", "device": first[0]["device"], "cores": round(machine["cores"]), "cpu": machine["cpu"],
        "dtype": "bfloat16" if machine["platform"] == "gpu" else config.training.model.dtype,
        "versions": first[0]["versions"] | first[1]["versions"], "rounds": config.rounds, "at_once": config.at_once,
        "steps": dict(zip(map(str, config.batches), config.steps, strict=True)), "agreement": dict(agreement),
        "product_rate": rates if all(rates.values()) else {},
        "data": {key: round(x) if "pairs" in key else x for key, x in machine["data"].items()},
        "scored": {"candidates": config.candidates, "groups": config.groups, "tokens": score["tokens"]},
    }  # fmt: skip


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """A machine's section of docs/speed.md, and its words in the README."""
    found = results.Table(lines)
    tables = [results.place(found), markdown(results.sides_table(found)), markdown(results.aims_table(found))]
    return {"results": "\n\n".join(tables), "line": results.in_short(found)}


def get_claim(config: ConfigDict) -> Claim:
    """The study of a config of config.py. ValueError: sizes that cannot be run."""
    if (
        len(config.batches) != len(config.steps)
        or not config.batches
        or min(*config.batches, *config.steps, config.rounds) < 1
    ):
        raise ValueError(
            "config.batches and config.steps need as many numbers, all 1 or more, and config.rounds 1 or more"
        )
    study = Study(
        f"trainers_{config.machine}", tuple(cells(config)), train, measure, functools.partial(make_data, config),
        code=(exchange, processes, rmjax_side, start, trl_side()),
    )  # fmt: skip
    page, readme = Path("docs/speed.md"), Path("README.md")
    return Claim(study, page, functools.partial(summarize, config), parts, elsewhere={"line": readme})
