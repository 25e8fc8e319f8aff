"""The report of a run: `report.json` and `report.html`.

A report is a plain dict, all of whose parts are optional:

    policy_accuracy.{seen, unseen}               Interval
    preference_accuracy.{pretrained, scratch, no_reference}    Interval
    baselines.{word_overlap, length}             policy_accuracy.{seen, unseen}, preference_accuracy
    differences                                  label -> Interval, paired: > 0 is better
    discrimination.{seen, unseen}                what `discriminate` returns
    routing                                      model -> {types, shares: router -> types × layers × experts, variation}
    seconds                                      wall time of all of it
    provenance                                   command, config, seed, device, versions, ...

`table.print_table` shows the accuracies in a terminal.
"""

import importlib.metadata
import importlib.util
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rmjax.evaluate.discrimination import Discrimination
from rmjax.evaluate.rows import Row, gain, mean
from rmjax.evaluate.table import LABELS, Report, spaced, table
from rmjax.files import write_json, write_text

if TYPE_CHECKING:
    from rmjax.evaluate.plots import Curve

logger = logging.getLogger(__name__)


def polar_report(
    discrimination: Mapping[str, Discrimination],
    preferences: Mapping[str, Sequence[Row]],
    baselines: Mapping[str, Sequence[Row]],
    seconds: float,
    provenance: Mapping[str, object],
    seed: int = 0,
) -> dict[str, Any]:
    """The report of POLAR's two stages, in the shape that `report.json` promises.

    Args:
      discrimination: "seen" and "unseen" policies → policy discrimination of the pre-trained model, on unseen prompts.
      preferences: arm → its credits on ranked answers, all on the same ones; the first arm is compared with each other.
      baselines: name → credits of a baseline on these.
      seconds: wall time of the whole job.
      provenance: what is needed to do it again; see `environment`.
      seed: of the bootstrap.
    """
    differences = {
        f"{LABELS[split]}: reward model minus {spaced(name)}": gain
        for split, result in discrimination.items()
        for name, gain in result["differences"].items()
    }
    (first, own), *others = preferences.items()
    label = LABELS.get(first, first)
    differences |= {f"preferences: {label} minus {LABELS.get(arm, arm)}": gain(own, rows, seed) for arm, rows in others}
    return {
        "policy_accuracy": {split: result["overall"] for split, result in discrimination.items()},
        "preference_accuracy": {arm: mean(rows, seed) for arm, rows in preferences.items()},
        "baselines": {name: _baseline(name, discrimination, rows, seed) for name, rows in baselines.items()},
        "seconds": seconds,
        "differences": differences,
        "discrimination": dict(discrimination),
        "provenance": dict(provenance),
    }


def environment() -> dict[str, object]:
    """Device and versions: what else than code, data and seed may change a number."""
    devices = jax.devices()
    packages = ("jax", "flax", "numpy", "rmjax", "libtpu")
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "versions": {"python": platform.python_version()}
        | {name: version for name in packages if (version := _version(name))},
    }


def read_curves(path: Path) -> "dict[str, Curve]":
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


def read_runs(folder: Path) -> "dict[str, dict[str, Curve]]":
    """The curves of every `metrics.jsonl` at or below a folder, by its own folder's path from there, or its name.

    What a study has put aside is left out.
    """
    top = folder.resolve()
    paths = sorted(path for path in top.rglob("metrics.jsonl") if "superseded" not in path.relative_to(top).parts)
    return {
        path.parent.relative_to(top).as_posix() if path.parent != top else top.name: read_curves(path) for path in paths
    }


def write_report(report: Report, folder: Path, runs: "Mapping[str, Mapping[str, Curve]] | None" = None) -> None:
    """Writes `report.json` and a self-contained `report.html` into `folder`, each at once.

    Args:
      report: see the module; missing parts leave no trace in the page.
      folder: made if it is absent.
      runs: name of a training run -> its curves, from `read_curves`.

    Raises:
      OSError: a file cannot be written; it is named.
      ValueError: a number in the report is NaN or infinite.
      ModuleNotFoundError: matplotlib is not installed, which is in the extra `report`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_page(report, folder, runs)


def require_plots() -> None:
    """ModuleNotFoundError, with the command that helps, where what draws the figures is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("report.html needs matplotlib; run `pip install 'matplotlib>=3.9'`")


def write_page(report: Report, folder: Path, runs: "Mapping[str, Mapping[str, Curve]] | None" = None) -> None:
    """Writes `report.html` alone; arguments and errors as `write_report`."""
    require_plots()
    from rmjax.evaluate import page

    write_text(folder / "report.html", page.render(report, table(report), runs or {}))


def rebuild(path: Path, out: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Makes `report.html` of a run's folder (`report.json`, or learning curves alone), or of a file of results as evaluations
    write it.

    Args:
      path: the folder or the file.
      out: folder of the page: by default that of `report.json`, or FILE_report beside another file.

    Returns:
      the report, and where its page lies.

    Raises:
      OSError: there is nothing to report, or a file cannot be read or written.
      ValueError: the file is not JSON, or nothing in it can be shown.
      ModuleNotFoundError: as `write_report`.
    """
    source = path / "report.json" if path.is_dir() else path
    folder = out or (source.parent if source.name == "report.json" else source.with_name(f"{source.stem}_report"))
    require_plots()
    if path.is_dir() and not source.is_file():
        report: dict[str, Any] = {"title": path.resolve().name}
        if not (runs := read_runs(path)):
            raise FileNotFoundError(
                f"{path} has neither report.json nor metrics.jsonl; give the folder of a run, or results"
            )
    else:
        report, runs = _read(source), read_runs(path) if path.is_dir() else {}
    shown = _shown(report, runs, path)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", shown)
    return report, folder / "report.html"


def _shown(report: Report, runs: "Mapping[str, Mapping[str, Curve]]", path: Path) -> str:
    """The page of what a user named: any JSON file, maybe."""
    from rmjax.evaluate import page

    remedy = "give the folder of a run, or the JSON file that an evaluation wrote"
    try:
        found = page.render(report, table(report), runs)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of results; {remedy}") from error
    if "<h2>" not in found:
        raise ValueError(f"{path} has no results to show; {remedy}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the job again to write it") from error
    if not isinstance(report, dict):
        raise ValueError(f"{path} is no file of results, which is a JSON object; give one that an evaluation wrote")
    return report


def _baseline(name: str, splits: Mapping[str, Discrimination], credits: Sequence[Row], seed: int) -> dict[str, Any]:
    """Accuracy of a baseline under both of the paths that readers of `report.json` look at."""
    accuracies = {
        split: result["baselines"][name]["overall"] for split, result in splits.items() if name in result["baselines"]
    }
    found = {"preference_accuracy": mean(credits, seed)}
    return found | {"policy_accuracy": accuracies, **accuracies} if accuracies else found


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


def _curve(by_step: Mapping[int, float]) -> "Curve":
    from rmjax.evaluate.plots import Curve

    steps = sorted(by_step)
    return Curve(np.asarray(steps, np.float64), np.asarray([by_step[step] for step in steps]))
