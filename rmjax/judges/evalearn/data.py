"""EvaLearn's two files, problems and sequences, read from the user's paths: their licence is non-commercial, so none ships."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.messages import ASSISTANT, USER
from rmjax.data.rows import open_rows

_log = logging.getLogger(__name__)
GET = "git clone https://github.com/ByteDance-Seed/EvaLearn (data: CC BY-NC 4.0), then give its two JSON files"
PUBLISHED = {
    "Logical Reasoning": (360, 102), "Summarization": (60, 16), "Extraction": (60, 17), "Sequential Reasoning": (60, 17),
    "Mathematical Reasoning": (60, 17), "Classification": (48, 13),
}  # fmt: skip
"""Type → (problems, sequences), as published in June 2025."""
RUBRICS = ("rubric", "rubric_zh", "rubric_en")
"""Fields of a rubric. Later files have two; the published results are by the Chinese one."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem."""

    id: str
    type: str
    prompt: tuple[str, ...]  # the user's and the assistant's turns, in turn
    rubric: str  # what a right answer has
    standard: str = ""  # a right answer; empty in the published files
    place: str = ""

    @property
    def turns(self) -> list[dict[str, str]]:
        """The prompt as a template reads it."""
        return [{"role": (USER, ASSISTANT)[i % 2], "content": text} for i, text in enumerate(self.prompt)]


@dataclasses.dataclass(frozen=True)
class Series:
    """Problems of one type that are posed one after the other."""

    id: str
    type: str
    problems: tuple[Problem, ...]


def read_problems(path: str | Path, rubric: str = "") -> dict[str, Problem]:
    """Id → problem.

    Args:
      path: a JSON array, or JSON lines.
      rubric: the field of `RUBRICS` that is read; empty: the first that a problem has.

    Raises:
      FileNotFoundError: there is no such file; says where to get it.
      RecordError: a field is missing, or an id is there twice.
    """
    found: dict[str, Problem] = {}
    for place, row in _rows(path):
        problem = _problem(row, place, rubric)
        if problem.id in found:
            raise RecordError(
                place, "id", "is there twice", f"remove one; the other is {found[problem.id].place}", problem.id
            )
        found[problem.id] = problem
    _compare("problems", Counter(p.type for p in found.values()), 0)
    return found


def read_series(path: str | Path, problems: Mapping[str, Problem]) -> list[Series]:
    """The sequences of a file, all of one length.

    Raises:
      FileNotFoundError: there is no such file; says where to get it.
      RecordError: an id that no problem has, or that is twice in a sequence; problems of several types; another length than that
        of the first sequence.
    """
    found: list[Series] = []
    for place, row in _rows(path):
        found.append(_series(row, place, problems, len(found[0].problems) if found else 0))
    _compare("sequences", Counter(s.type for s in found), 1)
    return found


def _rows(path: str | Path) -> list[tuple[str, Mapping[str, Any]]]:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; {GET}")
    rows = open_rows(path)
    found = [(rows.place(i), rows.row(i)) for i in range(len(rows))]
    for place, row in found:
        if not isinstance(row, Mapping):
            raise RecordError(place, "", "not a JSON object", "give an array of objects")
    return found  # type: ignore[return-value]


def _problem(row: Mapping[str, Any], place: str, rubric: str) -> Problem:
    given = [name for name in ([rubric] if rubric else RUBRICS) if row.get(name)]
    if not given:
        raise RecordError(place, rubric or RUBRICS[0], "missing", f"give one of {', '.join(RUBRICS)}")
    prompt = row.get("prompt")
    turns = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise RecordError(
            place, "prompt", "not a list of texts", "give the turns of the user and the assistant in turn"
        )
    if len(turns) % 2 == 0:
        raise RecordError(place, "prompt", "ends with the assistant's turn", "end it with the user's")
    standard = row.get("canonical_answer")
    return Problem(
        _text(row, "id", place), _text(row, "type", place), tuple(turns), str(row[given[0]]),
        standard if isinstance(standard, str) else "", place,
    )  # fmt: skip


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        raise RecordError(place, name, "missing", "give a text or a number")
    return str(value)


def _series(row: Mapping[str, Any], place: str, problems: Mapping[str, Problem], length: int) -> Series:
    ids = row.get("question_ids")
    if not isinstance(ids, list) or not ids:
        raise RecordError(place, "question_ids", "not a list of ids", "give the problems in their order")
    if unknown := [i for i in ids if str(i) not in problems]:
        raise RecordError(
            place, "question_ids", "no problem has the id", "give the two files of one version", str(unknown[0])
        )
    of_row = tuple(problems[str(i)] for i in ids)
    if len({problem.id for problem in of_row}) < len(of_row):
        raise RecordError(place, "question_ids", "a problem is there twice", "give each once")
    if len(kinds := sorted({problem.type for problem in of_row})) > 1:
        raise RecordError(place, "question_ids", "problems of several types", "give one type", ", ".join(kinds))
    if length and len(of_row) != length:
        raise RecordError(place, "question_ids", "another length than the sequences before", "give as many in each",
                          f"{len(of_row)} and {length}")  # fmt: skip
    return Series(_text(row, "sequence_id", place), kinds[0], of_row)


def _compare(what: str, found: Mapping[str, int], which: int) -> None:
    """Says where a file of the published types has other numbers of them."""
    if found.keys() & PUBLISHED.keys():
        differ = [
            f"{name} {found.get(name, 0)} instead of {numbers[which]}"
            for name, numbers in PUBLISHED.items()
            if found.get(name, 0) != numbers[which]
        ]
        if differ:
            _log.warning("EvaLearn's %s differ from the published ones: %s", what, ", ".join(differ))


def counts(series: Sequence[Series]) -> dict[str, int]:
    """Type → sequences."""
    return dict(Counter(each.type for each in series))
