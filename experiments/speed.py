"""The tables of docs/speed.md and the README's line, from the results in docs/speed/: `python -m experiments.speed`.

MACHINE.json there is of experiments.benchmark_trainers. What has no result is said to be not measured yet.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app

from experiments.start import guarded, parse_flags
from experiments.trainers.results import table, text
from rmjax.files import write_text

PAGE, README, RESULTS = Path("docs/speed.md"), Path("README.md"), Path("docs/speed")
BEGIN, END = "<!-- tables: python -m experiments.speed -->", "<!-- end of tables -->"
LINE_BEGIN, LINE_END = "<!-- line: python -m experiments.speed -->", "<!-- end of line -->"
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
        *_products(result),
    )
    return "\n".join(sentences)


def _known_rates(result: Mapping[str, Any]) -> list[float]:
    """FLOP/s of a matrix product by itself, ours and theirs; empty where they were not measured."""
    rates = list(result.get("product_rate", {}).values())
    return rates if all(rates) else []


def _products(result: Mapping[str, Any]) -> list[str]:
    if not (rates := _known_rates(result)):
        return []
    sides = zip(result["product_rate"], rates, strict=True)
    said = " and ".join(f"{rate / 1e9:,.0f} GFLOP/s by the library under {arm}" for arm, rate in sides)
    return [f"A matrix product of a layer's sizes alone, in fp32, runs at {said}."]


def section(name: str, result: Mapping[str, Any]) -> str:
    """One machine."""
    return f"## {name}\n\n{place(result)}\n\n{table(result)}"


def readme_line(results: Mapping[str, Mapping[str, Any]]) -> str:
    """For the README: the pairs per second and the memory of each machine, over TRL's."""
    if not results:
        return NOTHING
    versions = {result["versions"]["trl"]["trl"]: None for result in results.values()}
    said = "; ".join(_in_short(result) for result in results.values())
    return f"135 M parameters against TRL {' and '.join(versions)}'s RewardTrainer, pairs per second: {said}"


def _in_short(result: Mapping[str, Any]) -> str:
    by_batch, machine = result["batches"], place(result).split(";")[0]
    peaks = (entry["ratio"].get("device_peak_bytes", entry["ratio"]["peak_bytes"]) for entry in by_batch.values())
    memory = " and ".join(f"{peak['median']:.2g}" for peak in peaks)
    ratios = (
        f"{text(e['ratio']['pairs_per_second'], digits=2)} times at batch {batch}" for batch, e in by_batch.items()
    )
    rates = _known_rates(result)
    faster = f", where our library multiplies matrices {rates[0] / rates[1]:.2g} times as fast" if rates else ""
    return f"{', '.join(ratios)}, in {memory} of its memory, on {machine}, {result['dtype']}{faster}"


def replaced(path: Path, before: str, begin: str, end: str, new: str) -> str:
    """The page with `new` between its marks.

    Raises:
      ValueError: the page has no place for it.
    """
    head, found, rest = before.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the line `{begin}` or `{end}`")
    return f"{head}{begin}{new}{end}{tail}"


def page(before: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the tables of these results between its marks. ValueError where it has no place for them."""
    parts = [section(name, result) for name, result in results.items()] or [NOTHING]
    return replaced(PAGE, before, BEGIN, END, "\n\n" + "\n\n".join(parts) + "\n\n")


def machines(root: Path) -> dict[str, dict[str, Any]]:
    """Name → result, of the benchmark's files; studies have theirs beside them."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((root / RESULTS).glob("*.json"))}
    return {name: result for name, result in found.items() if "study" not in result}


def run(root: Path) -> None:
    """Writes the page and the README's line again."""
    results = machines(root)
    line, written = readme_line(results), page((root / PAGE).read_text(), results)
    lined = replaced(README, (root / README).read_text(), LINE_BEGIN, LINE_END, line)
    write_text(root / PAGE, written)
    write_text(root / README, lined)
    print(line)


def main(argv: Sequence[str]) -> None:
    """Reads no flags."""
    del argv
    sys.exit(guarded(lambda: run(Path())))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
