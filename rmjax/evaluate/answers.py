"""A file of answers → a reward for each and its rank among the answers to its prompt, as a table and as the file again."""

import csv
import dataclasses
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rmjax.data.messages import USER, as_value, messages_of
from rmjax.data.readers import listed
from rmjax.data.record import Comparison, RecordError, parse, unknown_fields
from rmjax.data.rows import Rows, open_rows
from rmjax.data.sources import located
from rmjax.data.texts import Notes, read_text, split_answer
from rmjax.evaluate.report import environment
from rmjax.files import refuse_unwritable, write_json, write_lines, write_text
from rmjax.reward_model import RewardModel
from rmjax.terminal import printable

ENDINGS = (".jsonl", ".csv")
_FORMS = {"output", "outputs", "chosen"}


@dataclasses.dataclass(frozen=True)
class Answers:
    """Rows of a file that have answers.

    Attributes:
      path: of the file.
      rows: as they were read.
      records: the same, parsed: each has one answer or several.
      skipped: reason → number of rows that were left out.
      unknown: field → number of rows in which it says nothing to a model. It is kept in what is written.
      notes: what was done to texts, in words → how often.
    """

    path: str
    rows: list[dict[str, Any]]
    records: list[Comparison]
    skipped: Mapping[str, int]
    unknown: Mapping[str, int]
    notes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Scored:
    """One answer with what a model says of it: `rank` 1 is the best answer to the prompt; equal rewards share one."""

    row: int
    answer: int
    prompt: str
    text: str
    reward: float
    rank: int


def read_answers(path: str, on_error: Literal["raise", "skip"] = "raise", rows: Rows | None = None) -> Answers:
    """Reads any file that holds comparisons or single answers; a conversation alone counts as prompt and answer.

    Args:
      path: a file, `shipped:NAME` or `tfds:NAME`.
      on_error: what to do with a row that cannot be used: raise, or leave it out and count it.
      rows: the rows themselves; `path` is then what they are called.

    Raises:
      OSError: the file cannot be read.
      RecordError: a row, or with "skip" every row, cannot be used.
    """
    opened = rows or open_rows(located(path))
    found: list[tuple[dict[str, Any], Comparison]] = []
    errors: list[RecordError] = []
    unknown, notes = Counter[str](), Notes()
    for i in range(len(opened)):
        try:
            row = opened.row(i)
            record = parse(_with_answer(row, opened.place(i)), opened.place(i), notes)
            unknown.update(unknown_fields(row))  # type: ignore[arg-type]
            found.append((dict(row), record))  # type: ignore[call-overload]
        except RecordError as error:
            errors.append(error)
            if on_error == "raise":
                break
    if not found or (errors and on_error == "raise"):
        raise errors[0] if errors else RecordError(path, "", "empty data set", "give a file with at least one record")
    skipped = Counter(error.reason for error in errors)
    return Answers(path, [row for row, _ in found], [c for _, c in found], skipped, unknown, notes)


def _with_answer(row: Any, place: str) -> Any:
    """A row whose `messages` hold the answer too, with the answer apart."""
    if not isinstance(row, Mapping) or "messages" not in row or _FORMS & row.keys():
        return row
    asked, said = split_answer(row["messages"], place, "messages")
    return {**row, "messages": asked, "output": said}


def score_answers(model: RewardModel, answers: Answers, progress: bool = False) -> list[Scored]:
    """Every answer of every row, in their order. Answers to one prompt, also those of different rows, are one group.

    Raises:
      ScoreError: a reward is not finite; the message names the row.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for i, record in enumerate(answers.records):
        groups.setdefault(_group(answers.rows[i], record), []).extend((i, j) for j in range(len(record.outputs)))
    merged = [_merged(answers.records, members) for members in groups.values()]
    found: dict[tuple[int, int], Scored] = {}
    for members, record, rewards in zip(groups.values(), merged, model.scorer.score(merged, progress), strict=True):
        for (i, j), text, reward in zip(members, record.outputs, rewards, strict=True):
            rank = 1 + sum(other > reward for other in rewards)
            found[i, j] = Scored(i, j, answers.records[i].prompt, text, reward, rank)
    return [found[place] for place in sorted(found)]


def _merged(records: Sequence[Comparison], members: Sequence[tuple[int, int]]) -> Comparison:
    """The answers to one prompt as one record. The shortest prompt counts: where rows give the same one, ending in an answer that
    only some of them repeat, `parse` takes it off these alone."""
    first = min((records[i] for i, _ in members), key=lambda record: len(messages_of(record.prompt, USER)))
    outputs = tuple(records[i].outputs[j] for i, j in members)
    return dataclasses.replace(first, outputs=outputs, ranks=None, scores=None, votes=None, policies=None, columns={})


def _group(row: Mapping[str, Any], record: Comparison) -> str:
    """What answers to one prompt have in common: prompt, references and wrapper as they were read, whatever the layout."""
    read = [as_value(_asked(row, record)), [as_value(text) for text in record.references], record.wrapper]
    return json.dumps(read, sort_keys=True)


def _asked(row: Mapping[str, Any], record: Comparison) -> str:
    """The prompt of a row, with the answer that it ends in, which `parse` takes off: other rows may have that prompt with another
    answer."""
    given = _with_answer(row, record.place)
    field = "prompt" if given.get("messages") is None else "messages"
    return read_text(given[field], USER, record.place, field)


# --- what is shown and written -----------------------------------------------------------------------------------------


def table(scored: Sequence[Scored], rows: int = 40, width: int = 0) -> str:
    """The answers to each prompt, the best first, in lines of the terminal's width.

    Args:
      rows: lines at most; 0 is all of them.
      width: of a line; 0 asks the terminal.
    """
    first: dict[str, int] = {}
    for each in scored:
        first.setdefault(each.prompt, len(first))
    ordered = sorted(scored, key=lambda each: (first[each.prompt], each.rank, each.row, each.answer))
    width = width or shutil.get_terminal_size((120, 24)).columns
    left = max(12, (width - 22) // 3)
    right = max(12, width - left - 22)
    lines = [f"{'prompt':{left}}  {'answer':{right}}  {'reward':>9}  {'rank':>4}"]
    shown, before = ordered[: rows or None], None
    for each in shown:
        prompt = "" if each.prompt == before else _cut(each.prompt, left)
        lines.append(f"{prompt:{left}}  {_cut(each.text, right):{right}}  {each.reward:9.4f}  {each.rank:4}")
        before = each.prompt
    if len(shown) < len(ordered):
        lines.append(f"… and {len(ordered) - len(shown)} answers more: --rows=0 shows all, --out=FILE writes them")
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def check_out(out: Path, answers: Answers, field: str) -> None:
    """Refuses, before anything is scored, what could not be written.

    Raises:
      OSError: the file cannot be written, or is the one that was read.
      ValueError: an ending other than `ENDINGS`, a row that has a field of one of the new names or one that JSON cannot hold.
    """
    if out.suffix not in ENDINGS:
        raise ValueError(f"--out={out} ends in {out.suffix or 'nothing'}; write {' or '.join(ENDINGS)}")
    if Path(answers.path).exists() and out.resolve() == Path(answers.path).resolve():
        raise OSError(f"--out={out} is the file that is read; name another one")
    new = {field, f"{field}_rank"} | ({"candidate"} if out.suffix == ".csv" else set())
    for row, record in zip(answers.rows, answers.records, strict=True):
        if taken := sorted(new & row.keys()):
            raise ValueError(
                f"{record.place}: has a field `{taken[0]}`, which would be lost; rename it, or give --field=NAME"
            )
        _refuse_no_json(row, record.place)
    for path in (out, report_path(out)):
        refuse_unwritable(path)


def _refuse_no_json(row: Mapping[str, Any], place: str) -> None:
    for name, value in row.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: field `{name}` cannot be written as JSON ({error}); make it a text, or leave the column out"
            ) from error


def report_path(out: Path) -> Path:
    """The file beside the scored rows that says what they come from and what was counted."""
    return out.with_name(f"{out.name}.report.json")


def write_scored(out: Path, answers: Answers, scored: Sequence[Scored], field: str, report: Mapping[str, Any]) -> None:
    """All rows with all of their fields, `field` and `field`_rank added: .jsonl has a line for each row (lists where a row has
    several answers), .csv one for each answer. `report_path(out)` gets the report.

    Raises:
      OSError: a file cannot be written.
    """
    if out.suffix == ".csv":
        write_text(out, _csv(answers, scored, field))
    else:
        write_lines(out, _lines(answers, scored, field))
    write_json(report_path(out), report)


def _lines(answers: Answers, scored: Sequence[Scored], field: str) -> Iterator[dict[str, Any]]:
    of_row: list[list[Scored]] = [[] for _ in answers.rows]
    for each in scored:
        of_row[each.row].append(each)
    for row, found in zip(answers.rows, of_row, strict=True):
        rewards, ranks = [each.reward for each in found], [each.rank for each in found]
        single = not {"outputs", "chosen"} & row.keys()
        yield {**row, field: rewards[0] if single else rewards, f"{field}_rank": ranks[0] if single else ranks}


def _csv(answers: Answers, scored: Sequence[Scored], field: str) -> str:
    fields = list(dict.fromkeys(name for row in answers.rows for name in row))
    several = len(scored) > len(answers.rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fields, *(["candidate"] if several else []), field, f"{field}_rank"])
    for each in scored:
        row = answers.rows[each.row]
        number = [each.answer] if several else []
        writer.writerow([*(_cell(row.get(name)) for name in fields), *number, each.reward, each.rank])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text or a number as it is, anything else as JSON; nothing where the row lacks the field."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def report_of(
    model: RewardModel, name: str, answers: Answers, scored: Sequence[Scored], counts: Mapping[str, int]
) -> dict[str, Any]:
    """What was scored by what, and all that was counted on the way.

    Args:
      name: what the model was called.
      counts: what encoding had to change (`RewardScorer.counts`).
    """
    without = sum(not record.references for record in answers.records)
    return {
        "model": name,
        "format": model.format.kind,
        "data": answers.path,
        "rows": len(answers.rows),
        "answers": len(scored),
        "without_reference": without if model.format.kind == "polar" else 0,
        "unreadable": dict(answers.skipped),
        "fields_not_read": dict(answers.unknown),
        "notes": dict(answers.notes),
        "encoding": dict(counts),
        **environment(),
    }


def said(report: Mapping[str, Any]) -> Iterator[str]:
    """The counted problems of a report, a line each."""
    if report["without_reference"]:
        yield f"{report['without_reference']} of {report['rows']} rows have NO REFERENCE, which a POLAR model was trained with"
    for key, text in (
        ("unreadable", "rows left out"), ("fields_not_read", "fields that no model reads"), ("notes", "while reading"),
        ("encoding", "while encoding"),
    ):  # fmt: skip
        if report[key]:
            yield f"{text}: {listed(report[key])}"
