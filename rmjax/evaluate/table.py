"""Accuracies side by side: the reward model, each baseline, their intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.evaluate.comparisons import Accuracy
from rmjax.evaluate.statistics import Interval
from rmjax.terminal import printable

Report = Mapping[str, Any]
LABELS = {
    "seen": "seen policies",
    "unseen": "unseen policies",
    "pretrained": "pre-trained",
    "scratch": "from scratch",
    "no_reference": "scratch, no reference",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: the intervals of the reward model and of the baselines; q of the difference to the best of them."""

    label: str
    means: Mapping[str, Interval]
    q: float | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Lines of the table under one heading."""

    heading: str
    rows: Sequence[Row]


def print_table(report: Report) -> None:
    """Prints the accuracies of a report, or of an evaluation, with their intervals."""
    print(format_table(report))


def format_table(report: Report) -> str:
    """The accuracies as text: a column for the reward model and for each baseline, plain ASCII."""
    sections = table(report)
    names = column_names(sections)
    label_width = max([len(printable(row.label)) + 2 for s in sections for row in s.rows] + [18])
    compared = any(row.q is not None for section in sections for row in section.rows)
    heading = f"{'n':>6}" + ("       q" if compared else "")
    lines = [_aligned("", [printable(spaced(name)) for name in names], heading, label_width)]
    for section in sections:
        lines.append(printable(section.heading))
        for row in section.rows:
            cells = [format_mean(row.means.get(name)) for name in names]
            count = max(mean["n"] for mean in row.means.values())
            q = "" if row.q is None else f"  {row.q:6.3f}"
            lines.append(_aligned(f"  {printable(row.label)}", cells, f"{count:>6,}{q}", label_width))
    rule = "-" * max(len(line) for line in lines)
    return "\n".join(["accuracy (95 % bootstrap interval)", rule, *lines, rule])


def format_mean(mean: Interval | None) -> str:
    """`0.912 (0.88-0.94)`; a dash where there was nothing to average."""
    if mean is None or mean["value"] is None or mean["low"] is None or mean["high"] is None:
        return "-"
    if mean["n"] < 2:
        return f"{mean['value']:.3f}"
    return f"{mean['value']:.3f} ({mean['low']:.2f}-{mean['high']:.2f})"


def table(report: Report) -> list[Section]:
    """The accuracies of a report or of an evaluation, in the order of reading."""
    baselines: Mapping[str, Any] = report.get("baselines", {})
    sections = []
    if "overall" in report:
        sections.append(Section("Which answer is better?", _evaluation_rows(report)))
    if "policy_accuracy" in report:
        rows = [
            Row(LABELS.get(split, split), _beside(mean, baselines, "policy_accuracy", split))
            for split, mean in report["policy_accuracy"].items()
        ]
        sections.append(Section("Which answer is by the reference's policy?", rows))
    if "preference_accuracy" in report:
        rows = [
            Row(LABELS.get(start, start), _beside(mean, baselines, "preference_accuracy"))
            for start, mean in report["preference_accuracy"].items()
        ]
        sections.append(Section("Which answer is better? After fine-tuning", rows))
    return sections


def as_interval(accuracy: Accuracy) -> Interval:
    """An accuracy under the names that reports use."""
    return Interval(value=accuracy["accuracy"], low=accuracy["low"], high=accuracy["high"], n=accuracy["n"])


def column_names(sections: Sequence[Section]) -> list[str]:
    """All scorers of a table, the reward model first, then in order of appearance."""
    return list(dict.fromkeys(name for s in sections for row in s.rows for name in row.means))


def _beside(mean: Interval, baselines: Mapping[str, Any], *keys: str) -> dict[str, Interval]:
    means = {"reward model": mean}
    for name, baseline in baselines.items():
        found = baseline
        for key in keys:
            found = found.get(key, {})
        if found:
            means[name] = found
    return means


def _evaluation_rows(report: Report) -> list[Row]:
    scorers = {"reward model": report, **report.get("baselines", {})}
    rows = [Row("overall", {name: as_interval(s["overall"]) for name, s in scorers.items()})]
    for category in report.get("categories", {}):
        means = {name: as_interval(s["categories"][category]) for name, s in scorers.items()}
        rows.append(Row(category, means, report.get("multiplicity", {}).get(category, {}).get("q")))
    return rows


def _aligned(label: str, cells: Sequence[str], count: str, width: int) -> str:
    return f"{label:{width}} " + " ".join(f"{cell:>17}" for cell in cells) + f" {count:>6}"


def spaced(name: str) -> str:
    """A name for people: `word_overlap` -> `word overlap`."""
    return name.replace("_", " ")
