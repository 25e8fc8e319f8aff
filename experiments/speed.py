"""The tables of docs/speed.md, from the results of experiments.benchmark_trainers in docs/speed/: `python -m experiments.speed`.

Prints the README's line as well. Without results the page says that nothing is measured yet.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app

from experiments.benchmark_growth import PANELS
from experiments.tables import markdown
from experiments.train import guarded
from experiments.trainers.results import table, text
from rmjax.train.manifest import write_durably

PAGE, RESULTS = Path("docs/speed.md"), Path("docs/speed")
BEGIN, END = "<!-- tables: python -m experiments.speed -->", "<!-- end of tables -->"
GROWTH = "growth"
NOTHING = "Not measured yet."


def place(result: Mapping[str, Any]) -> str:
    """What the numbers were measured on and with."""
    versions = {name: version for side in result["versions"].values() for name, version in side.items()}
    of_all = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("python", "numpy"))
    settings, data, apart = result["settings"], result["data"], result["agreement"]
    machine = result["device"] if "cpu" not in result["device"] else f"{result['cores']} cores of {result['cpu']}"
    rounds = len(next(iter(result["batches"].values()))["arms"]["rmjax"]["pairs_per_second"]["runs"])
    steps = ", ".join(f"{count} at batch {batch}" for batch, count in settings["steps"].items())
    sentences = (
        f"{machine}; {result['dtype']}; {of_all}.",
        f"Pairs: {data['name']}, {data['mean_tokens_of_a_pair']:.0f} tokens a pair in the mean, {data['cut_pairs']} of",
        f"{data['counted_pairs']} cut to the row. {rounds} rounds; steps timed in a process: {steps}; at most",
        f"{settings['at_once']} pairs at once. On one batch in fp32, before any step, the two losses differ by",
        f"{apart['loss']:.1e}, rewards by {apart['rewards']:.1e} at most.",
    )
    return "\n".join(sentences)


def section(name: str, result: Mapping[str, Any]) -> str:
    """One machine."""
    return f"## {name}\n\n{place(result)}\n\n{table(result)}"


def readme_line(result: Mapping[str, Any]) -> str:
    """For the README."""
    ratios = (f"{text(e['ratio']['pairs_per_second'])}× at batch {batch}" for batch, e in result["batches"].items())
    return f"Pairs per second against TRL {result['versions']['trl']['trl']}'s RewardTrainer: {', '.join(ratios)}."


def page(before: str, results: Mapping[str, Mapping[str, Any]], growth: Mapping[str, Any] | None = None) -> str:
    """The page with the tables of these results between its marks.

    Raises:
      ValueError: the page has no place for them.
    """
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the line `{BEGIN}` or `{END}`")
    parts = [section(name, result) for name, result in results.items()] or [NOTHING]
    parts += ["## How the cost grows", growth_section(growth) if growth else NOTHING]
    return f"{head}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{tail}"


def growth_section(found: Mapping[str, Any]) -> str:
    """The plot of experiments.benchmark_growth and its points."""
    rows = [["axis", "value", "pairs/s"]]
    for label, points in found["panels"].items():
        rows += [[label, f"{point[PANELS[label][0]]:,}", text(point["pairs_per_second"])] for point in points]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name in ("jax", "flax"))
    said = f"Device: {found['device']}; {versions}. Median, lowest and highest of five steps."
    return f"![pairs per second]({RESULTS.name}/{GROWTH}.svg)\n\n{said}\n\n{markdown(rows)}"


def run(root: Path) -> None:
    """Writes the page again."""
    paths = sorted((root / RESULTS).glob("*.json"))
    results = {path.stem: json.loads(path.read_text()) for path in paths}
    growth = results.pop(GROWTH, None)
    write_durably(root / PAGE, page((root / PAGE).read_text(), results, growth))
    for name, result in results.items():
        print(f"{name}: {readme_line(result)}")


def main(argv: Sequence[str]) -> None:
    """Reads no flags."""
    del argv
    sys.exit(guarded(lambda: run(Path())))


if __name__ == "__main__":
    app.run(main)
