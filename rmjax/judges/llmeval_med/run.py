"""LLMEval-Med from files to figures: answers, verdicts, usability by area, and agreement with people."""

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.rows import open_rows
from rmjax.evaluate.report import environment
from rmjax.files import write_json, write_lines
from rmjax.judges.forms import Unread
from rmjax.judges.generators import Generation, Named
from rmjax.judges.llmeval_med.aggregate import USABLE, agreement, usability, variability
from rmjax.judges.llmeval_med.data import AREAS, Item, read_items
from rmjax.judges.llmeval_med.judging import Answered, Prompts, Verdict, answer, judge
from rmjax.judges.llmeval_med.refining import read_library, refined
from rmjax.judges.replies import Replies


@dataclasses.dataclass(frozen=True)
class Options:
    """What is run.

    Attributes:
      model: answers; as `generators.Named` takes it.
      judge: gives verdicts.
      out: folder: answers, verdicts, a row for each answer, result.json.
      data: the file in the published layout, or `shipped`.
      human: JSON lines of people's verdicts on these answers, {"area", "group", "round", "run", "usable"}; empty: none.
      library: TOML file of changes by which the judge is refined, with `human`; empty: none.
      rounds: of refinement at most.
      runs: independent answers to each question.
      prompts: a file of prompts that ships, or a TOML file.
      how: how answers are drawn.
      seed: of replies and intervals.
    """

    model: str
    judge: str
    out: Path
    data: str = "shipped"
    human: str = ""
    library: str = ""
    rounds: int = 3
    runs: int = 3
    prompts: str = "llmeval_med"
    how: Generation = Generation(temperature=0.7, top_p=0.9, max_new_tokens=2048)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.library and not self.human:
            raise ValueError("--library refines the judge by people's verdicts, and there are none; give --human")


def evaluate(options: Options) -> dict[str, Any]:
    """Runs what is not on file yet, writes the files, returns what result.json holds.

    Raises:
      OSError, ValueError: a file, a prompt or a model cannot be used, or no verdict could be read; says which.
      InUseError: another process writes the replies.
    """
    items, prompts = read_items(options.data), Prompts.load(options.prompts)
    human = _human(options.human, items, options.runs) if options.human else {}
    library = read_library(options.library) if options.library else ()
    options.out.mkdir(parents=True, exist_ok=True)
    named = Named(options.model, options.how), Named(options.judge, prompts.generation)
    with contextlib.ExitStack() as held:
        student, grader = (
            held.enter_context(Replies(each, options.out / f"{name}.replies.jsonl", options.seed))
            for each, name in zip(named, ("answers", "verdicts"), strict=True)
        )
        answers = answer(items, student, prompts, options.runs)
        verdicts = judge(answers, grader, prompts)
        labeled = [(one, human[key]) for one in answers if (key := _key(one)) in human]
        steps = refined(labeled, grader, prompts, library, options.rounds, options.seed) if library else {}
    write_lines(options.out / "verdicts.jsonl", [_line(a, v) for a, v in zip(answers, verdicts, strict=True)])
    scores = _scores(items, answers, verdicts, options.runs)
    result = {
        "model": named[0].name, "judge": named[1].name, "data": options.data, "prompts": options.prompts,
        "questions": dict(Counter(item.area for item in items)), "runs": options.runs,
        "failures": dict(student.counts + grader.counts),
        "unread": dict(Counter(v.reason for v in verdicts if isinstance(v, Unread))),
        "paper": usability(scores, "paper", options.seed), "released": usability(scores, "released", options.seed),
        "variability": variability(scores), **environment(),
    }  # fmt: skip
    if human:
        result["human"] = _agreement(answers, verdicts, human, options.seed)
    if steps:
        result["refinement"] = steps
    write_json(options.out / "result.json", result)
    return result


def _scores(
    items: Sequence[Item], answers: Sequence[Answered], verdicts: Sequence[Verdict | Unread], runs: int
) -> dict[tuple[str, str], list[float | None]]:
    found: dict[tuple[str, str], list[float | None]] = {(item.area, item.name): [None] * runs for item in items}
    for one, verdict in zip(answers, verdicts, strict=True):
        found[one.item.area, one.item.name][one.run] = None if isinstance(verdict, Unread) else verdict.score
    return found


def _line(one: Answered, verdict: Verdict | Unread) -> dict[str, Any]:
    said = (
        {"reason": verdict.reason}
        if isinstance(verdict, Unread)
        else {"score": verdict.score, **dataclasses.asdict(verdict)}
    )
    item = one.item
    return {
        "area": item.area, "group": item.group, "round": item.round, "run": one.run, "question": item.question,
        "answer": one.answer, **said,
    }  # fmt: skip


Key = tuple[str, str, int, int]


def _key(one: Answered) -> Key:
    return one.item.area, one.item.group, one.item.round, one.run


def _human(path: str, items: Sequence[Item], runs: int) -> dict[Key, bool]:
    """People's verdicts; RecordError for one on no answer of this run, or that is no verdict."""
    rows, known = open_rows(path), {(item.area, item.group, item.round) for item in items}
    found: dict[Key, bool] = {}
    for n in range(len(rows)):
        row, place = rows.row(n), rows.place(n)
        if not isinstance(row, Mapping) or not isinstance(row.get("usable"), bool):
            raise RecordError(place, "usable", "not true or false", "give area, group, round, run and usable")
        key = str(row.get("area")), str(row.get("group")), row.get("round"), row.get("run", 0)
        if key[:3] not in known or key[3] not in range(runs):
            raise RecordError(
                place, "", "a verdict on no answer of this run", "give area, group, round and run as in verdicts.jsonl"
            )
        found[key] = row["usable"]  # type: ignore[index]
    return found


def _agreement(
    answers: Sequence[Answered], verdicts: Sequence[Verdict | Unread], human: Mapping[Key, bool], seed: int
) -> dict[str, Any]:
    """By area, and the plain mean of areas, of the answers that both have a verdict on."""
    groups: dict[str, list[tuple[bool, bool, str]]] = defaultdict(list)
    unread = 0
    for one, verdict in zip(answers, verdicts, strict=True):
        if _key(one) not in human:
            continue
        if isinstance(verdict, Unread):
            unread += 1
        else:
            groups[one.item.area].append((human[_key(one)], verdict.score >= USABLE, one.item.name))
    areas = {
        area: agreement(
            [h for h, *_ in groups[area]], [j for _, j, _ in groups[area]], [c for *_, c in groups[area]], seed
        )
        for area in AREAS.values()
        if area in groups
    }
    means = [found["agreement"]["value"] for found in areas.values()]
    return {"areas": areas, "mean": sum(means) / len(means) if means else None, "unread": unread}


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """The result in lines."""
    for how in ("paper", "released"):
        found = result[how]
        areas = ", ".join(f"{area} {_rate(rate)}" for area, rate in found["areas"].items())
        yield f"usable, aggregated as {how}: {_rate(found['overall'])}; {areas}"
    if result["paper"]["unscored"]:
        yield f"runs without a score: {result['paper']['unscored']}, in no rate of `paper`, against the model in `released`"
    for reason, count in [*result["failures"].items(), *result["unread"].items()]:
        yield f"replies that are not scored: {count} ({reason})"
    if result["variability"] is not None:
        yield f"standard deviation of a question's scores over runs: {result['variability']:.3f}"
    for area, found in result.get("human", {}).get("areas", {}).items():
        kappa = "-" if found["kappa"] is None else f"{found['kappa']:.2f}"
        yield (
            f"{area}: people and judge agree on {_rate(found['agreement'])}, kappa {kappa}; judge alone accepts "
            f"{found['only_judge']}, people alone {found['only_human']}"
        )

    for name, steps in result.get("refinement", {}).items():
        for number, step in enumerate(steps):
            added = f", with {step['changes'][-1]['text']!r}" if step["changes"] else ""
            yield f"{name}, round {number}: agreement on the test {_rate(step['test']['agreement'])}{added}"


def _rate(found: Mapping[str, Any]) -> str:
    return "-" if found["value"] is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
