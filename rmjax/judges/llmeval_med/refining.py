"""Refinement of a generator that judges, by people's verdicts: the changes are a file, half of the questions are the test."""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.judges.forms import Unread
from rmjax.judges.llmeval_med.aggregate import USABLE
from rmjax.judges.llmeval_med.judging import Answered, Prompts, judge
from rmjax.judges.llmeval_med.refine import Case, Change, Judge, Step, refine
from rmjax.judges.replies import Replies
from rmjax.judges.templates import PromptError, read_prompts
from rmjax.sections import choice, read


@dataclasses.dataclass(frozen=True)
class _Entry:
    text: str = ""
    where: str = choice("checklist", "checklist", "prompt")


def read_library(path: str) -> tuple[Change, ...]:
    """The `[[changes]]` of a TOML file, each with `text` and `where` (checklist or prompt).

    Raises:
      FileNotFoundError, PromptError, ValueError: there is no such file, or a change of it is none.
    """
    tables, place = read_prompts(path)
    found = tables.get("changes")
    if not isinstance(found, list) or not all(isinstance(each, dict) and each.get("text") for each in found):
        raise PromptError(f"{place}: changes is no list of tables with `text`; write [[changes]] before each")
    entries = [read(_Entry, each, f"{place}: changes") for each in found]
    return tuple(Change(entry.text, entry.where) for entry in entries)


def by_generator(answers: Mapping[tuple[str, str], Answered], replies: Replies, prompts: Prompts) -> Judge:
    """A generator as the judge that is refined.

    Args:
      answers: (name of a question, answer) → the answer with the rounds before it.
    """

    def verdicts(changes: Sequence[Change], cases: Sequence[Case]) -> list[bool | None]:
        asked = [answers[case.question, case.answer] for case in cases]
        found = judge(asked, replies, prompts, changes)
        return [None if isinstance(verdict, Unread) else verdict.score >= USABLE for verdict in found]

    return verdicts


def refined(
    labeled: Sequence[tuple[Answered, bool]],
    replies: Replies,
    prompts: Prompts,
    library: Sequence[Change],
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """`refined` and the `control` of changes at random, each a list of rounds; questions are halved by their groups' hashes.

    Raises:
      ValueError: all labeled answers are in one half.
    """
    answers = {(one.item.name, one.answer): one for one, _ in labeled}
    cases = {(one.item.name, one.answer): usable for one, usable in labeled}
    halves: tuple[list[Case], list[Case]] = ([], [])
    for (name, text), usable in cases.items():
        item = answers[name, text].item
        digest = hashlib.sha256(f"{seed} {item.area} {item.group}".encode()).digest()
        halves[digest[0] % 2].append(Case(name, text, usable))
    machine = by_generator(answers, replies, prompts)
    best = refine(machine, *halves, library, rounds)
    control = refine(machine, *halves, library, rounds, random.Random(seed))
    return {"refined": [_shown(step) for step in best], "control": [_shown(step) for step in control]}


def _shown(step: Step) -> dict[str, Any]:
    return {"changes": [dataclasses.asdict(change) for change in step.changes], "dev": step.dev, "test": step.test}
