"""The report of a run: `report.json` and `report.html`.

A report is a plain dict, all of whose parts are optional:

    policy_accuracy.{seen, unseen}               Interval
    preference_accuracy.{pretrained, scratch}    Interval
    baselines.{word_overlap, length}             policy_accuracy.{seen, unseen}, preference_accuracy
    differences                                  label -> Interval, paired: > 0 is better
    discrimination.{seen, unseen}                what `discriminate` returns
    routing                                      model -> {types, shares: router -> types × layers × experts, variation}
    seconds                                      wall time of all of it
    provenance                                   command, config, seed, device, versions, ...

`table.print_table` shows the accuracies in a terminal.
"""

import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmjax.evaluate import page
from rmjax.evaluate.comparisons import Evaluation
from rmjax.evaluate.discrimination import Discrimination
from rmjax.evaluate.plots import Curve
from rmjax.evaluate.statistics import Interval
from rmjax.evaluate.table import LABELS, Report, as_interval, spaced, table
from rmjax.files import write_json, write_text

logger = logging.getLogger(__name__)


def polar_report(
    seen: Discrimination,
    unseen: Discrimination,
    pretrained: Evaluation,
    scratch: Evaluation,
    seconds: float,
    provenance: Mapping[str, object],
    pretraining_gain: Interval | None = None,
) -> dict[str, Any]:
    """The report of the main job, in the shape that `report.json` promises.

    Args:
      seen: policy discrimination of the pre-trained model, seen policies on unseen prompts.
      unseen: the same for unseen policies.
      pretrained: preferences after fine-tuning from the pre-trained model.
      scratch: preferences after the same fine-tuning without pre-training.
      seconds: wall time of the whole job.
      provenance: what is needed to do it again; see `environment`.
      pretraining_gain: paired difference in preference accuracy, pre-trained minus scratch.
    """
    splits = {"seen": seen, "unseen": unseen}
    differences = {
        f"{LABELS[split]}: reward model minus {spaced(name)}": gain
        for split, result in splits.items()
        for name, gain in result["differences"].items()
    }
    if pretraining_gain is not None:
        differences["preferences: pre-trained minus from scratch"] = pretraining_gain
    return {
        "policy_accuracy": {split: result["overall"] for split, result in splits.items()},
        "preference_accuracy": {
            "pretrained": as_interval(pretrained["overall"]),
            "scratch": as_interval(scratch["overall"]),
        },
        "baselines": {name: _baseline(name, splits, pretrained) for name in ("word_overlap", "length")},
        "seconds": seconds,
        "differences": differences,
        "discrimination": splits,
        "preferences": {"pretrained": pretrained, "scratch": scratch},
        "provenance": dict(provenance),
    }


def environment() -> dict[str, object]:
    """Device and versions: what else than code, data and seed may change a number."""
    devices = jax.devices()
    packages = ("jax", "flax", "numpy", "rmjax")
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "versions": {"python": platform.python_version()}
        | {name: version for name in packages if (version := _version(name))},
    }


def read_curves(path: Path) -> dict[str, Curve]:
    """The scalars of a metrics file, by name.

    Each line is a JSON object with `step` and numbers. Where a step occurs twice, because a run was
    stopped and continued from an earlier checkpoint, the later line counts. Lines that are not such
    objects, as the last one of a killed run may be, are counted and logged.

    Raises:
      OSError: the file cannot be read.
    """
    values: dict[str, dict[int, float]] = {}
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _metrics_entry(line)
        broken += entry is None
        for name, value in (entry or {}).items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[int((entry or {})["step"])] = float(value)
    if broken:
        logger.warning("%s: %d lines are not metrics; left out", path, broken)
    return {name: _curve(by_step) for name, by_step in values.items()}


def read_runs(folder: Path) -> dict[str, dict[str, Curve]]:
    """The curves of every `metrics.jsonl` at or below a folder, by the name of its own folder."""
    paths = sorted(folder.resolve().rglob("metrics.jsonl"))
    return {path.parent.name: read_curves(path) for path in paths}


def write_report(report: Report, folder: Path, runs: Mapping[str, Mapping[str, Curve]] | None = None) -> None:
    """Writes `report.json` and a self-contained `report.html` into `folder`, each at once.

    Args:
      report: see the module; missing parts leave no trace in the page.
      folder: made if it is absent.
      runs: name of a training run -> its curves, from `read_curves`.

    Raises:
      OSError: a file cannot be written; it is named.
      ValueError: a number in the report is NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_page(report, folder, runs)


def write_page(report: Report, folder: Path, runs: Mapping[str, Mapping[str, Curve]] | None = None) -> None:
    """Writes `report.html` alone; arguments and errors as `write_report`."""
    write_text(folder / "report.html", page.render(report, table(report), runs or {}))


def _baseline(name: str, splits: Mapping[str, Discrimination], preferences: Evaluation) -> dict[str, Any]:
    """Accuracy of a baseline under both of the paths that readers of `report.json` look at."""
    accuracies = {split: result["baselines"][name]["overall"] for split, result in splits.items()}
    return {
        "policy_accuracy": accuracies,
        "preference_accuracy": as_interval(preferences["baselines"][name]["overall"]),
        **accuracies,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metrics_entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    good = isinstance(entry, dict) and isinstance(entry.get("step"), int)
    return entry if good else None


def _curve(by_step: Mapping[int, float]) -> Curve:
    steps = sorted(by_step)
    return Curve(np.asarray(steps, np.float64), np.asarray([by_step[step] for step in steps]))
