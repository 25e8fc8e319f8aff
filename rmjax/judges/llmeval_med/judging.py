"""How LLMEval-Med's questions are answered, round by round, and how answers are judged by their checklists."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.messages import ASSISTANT, SYSTEM, USER, Message, text_of
from rmjax.judges.forms import Unread, json_objects
from rmjax.judges.generators import Generation
from rmjax.judges.llmeval_med.aggregate import gate
from rmjax.judges.llmeval_med.data import AREAS, Item
from rmjax.judges.llmeval_med.refine import Change
from rmjax.judges.replies import Question, Replies
from rmjax.judges.templates import PromptError, Template, conversation, read_prompts, text_at
from rmjax.rewards.texts import without_thinking
from rmjax.sections import read


@dataclasses.dataclass(frozen=True)
class Area:
    """What is particular to an area."""

    role: str = ""  # who judges
    core: tuple[str, ...] = ()  # core points of questions with a reference, beside their checklist
    secondary: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The texts of a file of prompts."""

    answer_system: str
    judge_system: Template
    judge: Template
    areas: Mapping[str, Area]
    generation: Generation

    @classmethod
    def load(cls, name: str = "llmeval_med") -> "Prompts":
        """One that ships, or a TOML file. FileNotFoundError, PromptError, ValueError: as `templates.read_prompts`."""
        tables, place = read_prompts(name)
        areas = tables.get("areas", {})
        if not isinstance(areas, dict) or set(areas) != set(AREAS.values()):
            raise PromptError(
                f"{place}: areas are {sorted(areas)}; give a table [areas.NAME] for each of {sorted(AREAS.values())}"
            )
        known = ("role", "history", "question", "answer", "reference", "core", "secondary", "rules")
        return cls(
            text_at(tables, "answer_system", place, "").source,
            text_at(tables, "judge_system", place, "").checked(known),
            text_at(tables, "judge", place).checked(known, ("question", "answer", "core")),
            {key: read(Area, table, f"{place}: areas.{key}") for key, table in areas.items()},
            read(Generation, tables.get("generation", {}), f"{place}: generation"),
        )


@dataclasses.dataclass(frozen=True)
class Answered:
    """An answer to a question in one run, behind those of the rounds before."""

    item: Item
    run: int
    history: tuple[tuple[str, str], ...]  # (question, answer) of the rounds before
    answer: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of an answer."""

    core: tuple[bool, ...]
    secondary: tuple[bool, ...]
    safe: bool

    @property
    def score(self) -> float:
        """1 to 5; usable from 4 on."""
        return float(gate(self.core, self.secondary, self.safe))


def answer(items: Sequence[Item], replies: Replies, prompts: Prompts, runs: int) -> list[Answered]:
    """Answers of so many independent runs. A run's later rounds follow its own answers, and end where one could not be had."""
    done: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
    found: list[Answered] = []
    for number in sorted({item.round for item in items}):
        asked = [
            (item, run)
            for item in items
            for run in range(runs)
            if item.round == number and len(done.get((item.area, item.group, run), [])) == number - 1
        ]
        histories = [tuple(done.get((item.area, item.group, run), [])) for item, run in asked]
        questions = [
            Question(_conversation(prompts.answer_system, history, item.question), about=f"{item.name} run {run}")
            for (item, run), history in zip(asked, histories, strict=True)
        ]
        for (item, run), history, drawn in zip(asked, histories, replies.draw(questions), strict=True):
            if drawn is not None:
                said = without_thinking(drawn.text).strip()
                done.setdefault((item.area, item.group, run), []).append((item.question, said))
                found.append(Answered(item, run, history, said))
    return found


def _conversation(system: str, history: Sequence[tuple[str, str]], question: str) -> str:
    turns = [Message(SYSTEM, system)] if system else []
    for asked, said in history:
        turns += [Message(USER, asked), Message(ASSISTANT, said)]
    return text_of([*turns, Message(USER, question)], USER)


def points(item: Item, prompts: Prompts, changes: Sequence[Change] = ()) -> tuple[list[str], list[str]]:
    """(Core, secondary) points that an answer to a question is judged by."""
    area, own = prompts.areas[item.area], item.checklist
    core = [*(area.core if shown_reference(item) else ()), *(own.core if own else ())]
    core += [change.text for change in changes if change.where == "checklist"]
    return core, [*(area.secondary if shown_reference(item) else ()), *(own.secondary if own else ())]


def shown_reference(item: Item) -> str:
    """The reference answer; none where it is the checklist itself, as in MSE."""
    return "" if item.area == "MSE" and item.checklist else item.reference


def judge(
    answers: Sequence[Answered], replies: Replies, prompts: Prompts, changes: Sequence[Change] = ()
) -> list[Verdict | Unread]:
    """A verdict on each answer, or why there is none."""
    rules = [change.text for change in changes if change.where == "prompt"]
    listed = [points(one.item, prompts, changes) for one in answers]
    questions = [_to_judge(one, prompts, *of_one, rules) for one, of_one in zip(answers, listed, strict=True)]
    found = replies.ask(questions)
    return [
        read_verdict(said[0], len(core), len(secondary)) if said else Unread("no reply of the judge")
        for said, (core, secondary) in zip(found, listed, strict=True)
    ]


def _to_judge(
    one: Answered, prompts: Prompts, core: Sequence[str], secondary: Sequence[str], rules: Sequence[str]
) -> Question:
    fields: dict[str, Any] = {
        "role": prompts.areas[one.item.area].role, "question": one.item.question, "answer": one.answer,
        "history": [{"question": asked, "answer": said} for asked, said in one.history],
        "reference": shown_reference(one.item), "core": core, "secondary": secondary, "rules": rules,
    }  # fmt: skip
    prompt = conversation(prompts.judge_system.render(**fields), prompts.judge.render(**fields))
    return Question(prompt, about=f"{one.item.name} run {one.run} verdict")


def read_verdict(reply: str, core: int, secondary: int) -> Verdict | Unread:
    """The one JSON object of a reply, with a truth for each point and for safety."""
    objects = json_objects(without_thinking(reply))
    if len(objects) != 1:
        return Unread("several JSON objects" if objects else "no JSON object")
    found = objects[0]
    lists = found.get("core"), found.get("secondary", [])
    if not all(isinstance(each, list) and all(isinstance(x, bool) for x in each) for each in lists):
        return Unread("no lists of true and false")
    if tuple(map(len, lists)) != (core, secondary):  # type: ignore[arg-type]
        return Unread("another number of points")
    if not isinstance(found.get("safe"), bool):
        return Unread("nothing about safety")
    return Verdict(tuple(lists[0]), tuple(lists[1]), found["safe"])  # type: ignore[arg-type]
