"""What published benchmarks share: their files are found, read and counted, and their scores are sums over parts.

A record's `source` is the part that it counts in, its `category` a finer cell for a table. A measured row has both.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rmjax.data.layouts import LAYOUTS, convert, recognized
from rmjax.data.layouts.layout import Fields, Outcome
from rmjax.data.messages import ASSISTANT
from rmjax.data.readers import listed
from rmjax.data.record import Comparison, RecordError, parse
from rmjax.data.rows import Rows, open_rows
from rmjax.data.texts import read_text
from rmjax.evaluate.comparisons import CREDIT, TIED, known_ranks, reasons, unusable
from rmjax.evaluate.rows import Row
from rmjax.evaluate.suites.suite import Loaded

_log = logging.getLogger(__name__)
Scores = Sequence[Sequence[float]]
OnError = Literal["raise", "skip"]
ENDINGS = (".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
EMPTY, IDENTICAL = "an empty answer", "the better and a worse answer are the same text, so that it fails"
REPEATED, CONTRARY = "the same prompt and answers once more", "the same prompt and answers, and another label"


@dataclasses.dataclass(frozen=True)
class Score:
    """A score as it is published: Σ weight · mean of a part's rows."""

    name: str
    weights: Mapping[str, float]


def mean_of(name: str, scores: Iterable[Score]) -> Score:
    """The plain mean of scores."""
    every, weights = list(scores), Counter[str]()
    for score in every:
        weights.update({part: weight / len(every) for part, weight in score.weights.items()})
    return Score(name, dict(weights))


def parts(names: Iterable[str]) -> list[Score]:
    """A score for each part alone."""
    return [Score(name, {name: 1.0}) for name in names]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One published benchmark.

    Attributes:
      name: what `--suite` takes.
      title: for people.
      get: how it is downloaded.
      layouts: names in `rmjax.data.layouts.LAYOUTS` that its files have.
      files: alternatives, the first that matches counts: patterns of its files below a folder.
      adapt: a record and the file it is from → the record with `source` and `category` as above.
      measure: records and their scores → rows in long form, metrics `credit` and `tied`, columns `part` and `category`.
      scores: names of the parts that are there → the scores, the headline first.
      published: key → how many there are, as published.
      counted: records → key → how many there are.
      whole: whether all keys belong together, so that one without records is missing.
      drops: known defects of it: rows with such a problem are left out and counted, whatever `on_error` says.
      read: the benchmark, a path and `on_error` → its records.
      left_out: records → why some have no row → how many.
    """

    name: str
    title: str
    get: str
    layouts: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    adapt: Callable[[Comparison, Path], Comparison]
    measure: Callable[[Sequence[Comparison], Scores], list[Row]]
    scores: Callable[[Sequence[str]], Sequence[Score]]
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)
    counted: Callable[[Sequence[Comparison]], Mapping[str, int]] = lambda records: Counter(
        str(c.source) for c in records
    )
    whole: bool = True
    drops: frozenset[str] = frozenset()
    read: Callable[["Benchmark", Path, OnError], Loaded] = lambda benchmark, path, on_error: _read(
        benchmark, path, on_error
    )
    left_out: Callable[[Sequence[Comparison]], dict[str, int]] = lambda records: without_one_best(records)

    def load(self, path: str | Path, on_error: OnError = "raise") -> Loaded:
        """Reads a file of it, or a folder of them.

        Raises:
          FileNotFoundError: there is none; says what to download.
          OSError: a file cannot be read.
          RecordError: a broken row or a file of another layout; with `on_error="skip"` only where nothing is left.
        """
        if not str(path):  # which would be the current folder
            raise FileNotFoundError(f"{self.title} has no path; download it: {self.get}")
        return self.read(self, Path(path), on_error)

    def found(self, path: Path) -> list[Path]:
        """The files at a path; FileNotFoundError where there are none."""
        if path.is_file():
            return [path]
        remedy = f"download {self.title}: {self.get}"
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such file or folder; {remedy}")
        for patterns in self.files:
            matching = {p for pattern in patterns for p in path.rglob(pattern) if p.name.endswith(ENDINGS)}
            if matching:
                return sorted(matching)
        looked = " or ".join(" and ".join(patterns) for patterns in self.files)
        raise FileNotFoundError(f"{path}: no file of {self.title} below it ({looked}); {remedy}")

    def rows(self, file: Path) -> Sequence[Outcome]:
        """The rows of a file in our layout, or what is wrong with them; RecordError where it is no file of the benchmark."""
        rows = open_rows(file)
        layout = _layout_of(rows)
        if layout not in self.layouts:
            says = LAYOUTS[layout].says if layout in LAYOUTS else "in no layout of its files"
            remedy = f"download it ({self.get}), or evaluate the file with --layout=auto and without --suite"
            raise RecordError(rows.place(0), "", f"not of {self.title}", remedy, f"the row is {says}")
        return convert(rows, LAYOUTS[layout]).found


def _read(benchmark: Benchmark, path: Path, on_error: OnError) -> Loaded:
    records: list[Comparison] = []
    errors: list[RecordError] = []
    kept = Counter[str]()
    for file in benchmark.found(path):
        for place, row in benchmark.rows(file):
            try:
                records.append(benchmark.adapt(as_published(_row(row), place, kept), file))
            except RecordError as error:
                errors.append(error)
    _refuse_errors([error for error in errors if error.problem not in benchmark.drops], records, on_error)
    dropped, unreadable = (
        Counter(error.reason for error in errors if (error.problem in benchmark.drops) == known)
        for known in (True, False)
    )
    kept.update(_repeated(records))
    differences = against_published(benchmark.counted(records), benchmark.published, benchmark.whole)
    _say(f"{benchmark.title}, {path}", differences, +kept)
    return Loaded(records, dict(unreadable), dict(dropped), kept=dict(+kept), published=differences)


def _repeated(records: Sequence[Comparison]) -> dict[str, int]:
    """How many records are there once more, with the same label and with another one."""
    labels = {(c.source, c.prompt, c.outputs, known_ranks(c)) for c in records}
    texts = {label[:3] for label in labels}
    return {REPEATED: len(records) - len(labels), CONTRARY: len(labels) - len(texts)}


def _layout_of(rows: Rows) -> str:
    try:
        return recognized(rows.row(0))
    except RecordError:
        return recognized(rows.row(1)) if len(rows) > 1 else ""


def _row(found: Fields | RecordError) -> Fields:
    if isinstance(found, RecordError):
        raise found
    return found


def as_published(row: Fields, place: str, kept: Counter[str]) -> Comparison:
    """A record that keeps what training would refuse and the published numbers count: empty answers, and a worse answer that is
    the better one's text.

    Raises:
      RecordError: as `parse`, of anything else.
    """
    try:
        return parse(row, place)
    except RecordError as error:
        answers = row.get("outputs") or [*_listed(row.get("chosen")), *_listed(row.get("rejected"))]
        known = error.problem in _COUNTED and error.field.split("[")[0] in ("outputs", "chosen", "rejected")
        if not known or not all(isinstance(answer, str) for answer in answers):
            raise
        return _lenient(row, answers, place, kept)


_COUNTED = ("empty text", "identical candidates ranked differently")


def _lenient(row: Fields, answers: Sequence[str], place: str, kept: Counter[str]) -> Comparison:
    """As `parse`, of a row whose answers are strings."""
    outputs = tuple(read_text(answer, ASSISTANT, place, "outputs", blank=True) for answer in answers)
    harmless = parse({**row, **_unlike(row)}, place)
    found = dataclasses.replace(harmless, outputs=outputs)
    kept[EMPTY] += any(not output.strip() for output in outputs)
    ranks = known_ranks(found) or ()
    same = {output for output in outputs if len({r for o, r in zip(outputs, ranks, strict=True) if o == output}) > 1}
    kept[IDENTICAL] += bool(same)
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unlike(row: Fields) -> Fields:
    """The fields of answers with texts that differ, so that all else is checked."""
    given = [name for name in ("chosen", "rejected", "outputs") if name in row]
    return {name: [f"{name} {i}" for i in range(len(_listed(row[name])))] for name in given}


def _refuse_errors(errors: Sequence[RecordError], records: Sequence[Comparison], on_error: str) -> None:
    if not errors or (on_error == "skip" and records):
        return
    first, counts = errors[0], Counter(error.reason for error in errors)
    choice = ", or leave such rows out with on_error=skip" if records else ""
    remedy = f"{first.remedy}{choice} ({listed(counts)})"
    raise RecordError(first.place, first.field, first.problem, remedy, first.detail)


def against_published(found: Mapping[str, int], published: Mapping[str, int], whole: bool) -> dict[str, Any]:
    """`found` and `published` numbers in all, `differ` (key → both), and `absent` keys where the benchmark is one whole."""
    if not published:
        return {}
    compared = published.keys() if whole else published.keys() & found.keys()
    differ = {
        k: {"found": n, "published": published[k]} for k in sorted(compared) if (n := found.get(k, 0)) != published[k]
    }
    return {
        "found": sum(found.values()),
        "published": sum(published[key] for key in compared),
        "differ": {key: both for key, both in differ.items() if both["found"]},
        "absent": [key for key, both in differ.items() if not both["found"]],
        "unknown": sorted(found.keys() - published.keys()),
    }


def said_of_counts(published: Mapping[str, Any]) -> list[str]:
    """A line for each way in which counts differ from the published ones."""
    shown = [
        f"{key} {both['found']:,} instead of {both['published']:,}" for key, both in published.get("differ", {}).items()
    ]
    lines = [f"counts differ from the published ones: {first(shown)}"] if shown else []
    lines += [f"parts without a row: {first(published['absent'])}"] if published.get("absent") else []
    return lines + (
        [f"parts that are not published: {first(published['unknown'])}"] if published.get("unknown") else []
    )


def first(names: Sequence[str], most: int = 6) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _say(what: str, published: Mapping[str, Any], kept: Mapping[str, int]) -> None:
    for line in said_of_counts(published):
        _log.warning("%s: %s", what, line)
    if kept:
        _log.warning("%s: rows that count as they are published: %s", what, listed(kept))


# --- credits ------------------------------------------------------------------------------------------------------------


def row_pair(
    c: Comparison, number: int, part: str, credit: float, tied: bool, category: str | None = None
) -> list[Row]:
    """The two rows of one measurement: its credit, and whether it comes from equal scores."""
    item = c.id or c.place or str(number)
    groups = {"part": part} | ({"category": category} if category else {})
    return [Row(item, c.prompt, CREDIT, credit, groups), Row(item, c.prompt, TIED, float(tied), groups)]


SEVERAL_BEST = "several answers ranked best"


def without_one_best(records: Sequence[Comparison]) -> dict[str, int]:
    """Why `best_wins` has no row of some records → how many."""
    best = ((c, known_ranks(c)) for c in records if not unusable(c))
    several = sum(ranks is not None and ranks.count(min(ranks)) > 1 for _, ranks in best)
    return reasons(records) | ({SEVERAL_BEST: several} if several else {})


def best_wins(records: Sequence[Comparison], scores: Scores) -> list[Row]:
    """Of each record with one best answer: 1 if it scores higher than every other one, else 0; a tie fails, and is counted."""
    rows: list[Row] = []
    for number, (c, found) in enumerate(zip(records, scores, strict=True)):
        ranks = known_ranks(c)
        if ranks is None or len(ranks) < 2 or ranks.count(min(ranks)) != 1:
            continue
        best = ranks.index(min(ranks))
        highest = max(score for i, score in enumerate(found) if i != best)
        rows += row_pair(c, number, str(c.source), float(found[best] > highest), found[best] == highest, c.category)
    return rows


def pairs_win(records: Sequence[Comparison], scores: Scores) -> list[Row]:
    """Of each two answers of a record that its ranking orders: 1 if the better one scores higher, else 0; a tie fails."""
    rows: list[Row] = []
    for number, (c, found) in enumerate(zip(records, scores, strict=True)):
        ranks_N, scores_N = np.asarray(known_ranks(c) or [0.0] * len(found)), np.asarray(found, np.float64)
        better, worse = np.nonzero(ranks_N[:, None] < ranks_N[None, :])
        for i, j in zip(better, worse, strict=True):
            won, tied = bool(scores_N[i] > scores_N[j]), bool(scores_N[i] == scores_N[j])
            rows += row_pair(c, number, str(c.source), float(won), tied, c.category)
    return rows
