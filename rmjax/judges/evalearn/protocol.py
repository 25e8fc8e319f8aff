"""EvaLearn's protocol: problem m of each sequence is posed behind what a paradigm shows of those before, answered, and graded."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.judges.evalearn.data import Problem, Series
from rmjax.judges.forms import Form, Unread
from rmjax.judges.generators import Generation
from rmjax.judges.replies import Question, Replies
from rmjax.judges.spec import read_form
from rmjax.judges.templates import Template, conversation, read_prompts, text_at
from rmjax.rewards.reward import Failure, Verifier
from rmjax.rewards.texts import without_thinking
from rmjax.sections import read

EXAMPLES, EXAMPLES_SEED = 3, 42
"""Of the paradigm few_shot: examples of each type, and the seed that draws them."""
NO_ANSWER, NO_GRADE = "an answer that could not be had", "a grade that could not be read"


@dataclasses.dataclass(frozen=True)
class Graded:
    """A problem that was posed. `right` is None where the grade could not be read."""

    problem: Problem
    answer: str
    right: bool | None
    evaluation: str  # what the grader said
    reason: str = ""  # why there is no grade


@dataclasses.dataclass(frozen=True)
class Paradigm:
    """What a context shows of the problems before: no more than these fields reach its template."""

    template: str
    history: tuple[str, ...] = ()
    examples: bool = False
    moved: tuple[str, ...] = ()  # fields that come from the next problem of the history, the last one's from the first


_TOLD = ("question", "answer", "rubric", "evaluation")
PARADIGMS: Mapping[str, Paradigm] = {
    "zero_shot": Paradigm("zero_shot"),
    "few_shot": Paradigm("few_shot", examples=True),
    "demonstration": Paradigm("demonstration", ("question", "standard")),
    "feedback": Paradigm("feedback", _TOLD),
    "moved_feedback": Paradigm("feedback", _TOLD, moved=("rubric", "evaluation")),
}
"""The four context builders by name, and a control of ours: as much text, from which nothing can be learned but its form."""
Grader = Callable[[Sequence[tuple[Problem, str]]], list[tuple[bool | Unread, str]]]
"""Problems and answers → whether each is right, and what is said of it."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The templates of a file of prompts."""

    system: Template
    question: Template
    paradigms: Mapping[str, Template]
    judge_system: Template
    judge: Template
    form: Form
    generation: Generation = Generation()  # of the judge

    @classmethod
    def load(cls, name: str = "evalearn") -> "Prompts":
        """One that ships, or a TOML file. FileNotFoundError, PromptError: as `templates.read_prompts`."""
        tables, place = read_prompts(name)
        of_judge = ("rubric", "answer", "question", "task")
        return cls(
            text_at(tables, "system", place, "").checked(["task"]),
            text_at(tables, "question", place).checked(["turns"], ["turns"]),
            {
                key: text_at(tables, key, place).checked(["task", "question", "history", "examples"], ["question"])
                for key in sorted({paradigm.template for paradigm in PARADIGMS.values()})
            },
            text_at(tables, "judge_system", place, "").checked(of_judge),
            text_at(tables, "judge", place).checked(of_judge, ["rubric", "answer"]),
            read_form(tables.get("form", {}), f"{place}: form"),
            read(Generation, tables.get("generation", {}), f"{place}: generation"),
        )


def context(
    prompts: Prompts, paradigm: str, series: Series, done: Sequence[Graded], examples: Sequence[Problem]
) -> str:
    """What is asked next of a sequence of which these problems are done."""
    shown, problem = PARADIGMS[paradigm], series.problems[len(done)]
    history = [_shown(prompts, shown, done, n) for n in range(len(done))] if shown.history else []
    chosen = [each for each in examples if each.id != problem.id][:EXAMPLES] if shown.examples else []
    fields = {
        "task": series.type, "question": _question(prompts, problem), "history": history,
        "examples": [{"question": _question(prompts, each), "standard": standard(each)} for each in chosen],
    }  # fmt: skip
    return conversation(prompts.system.render(task=series.type), prompts.paradigms[shown.template].render(**fields))


def _shown(prompts: Prompts, paradigm: Paradigm, done: Sequence[Graded], n: int) -> dict[str, str]:
    after = done[(n + 1) % len(done)]
    return {name: _FIELDS[name](prompts, after if name in paradigm.moved else done[n]) for name in paradigm.history}


def _question(prompts: Prompts, problem: Problem) -> str:
    return prompts.question.render(turns=problem.turns)


def standard(problem: Problem) -> str:
    """A right answer; the rubric, which holds it, where the file has none, as in the published ones."""
    return problem.standard or problem.rubric


_FIELDS: Mapping[str, Callable[[Prompts, Graded], str]] = {
    "question": lambda prompts, one: _question(prompts, one.problem),
    "standard": lambda prompts, one: standard(one.problem),
    "answer": lambda prompts, one: one.answer,
    "rubric": lambda prompts, one: one.problem.rubric,
    "evaluation": lambda prompts, one: one.evaluation,
}


def examples_of(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Type → the problems that few_shot shows, one more than it needs: a problem is never its own example."""
    groups: dict[str, list[Problem]] = {}
    for problem in sorted(problems, key=lambda p: p.id):
        groups.setdefault(problem.type, []).append(problem)
    rng = random.Random(EXAMPLES_SEED)
    return {name: rng.sample(group, min(EXAMPLES + 1, len(group))) for name, group in sorted(groups.items())}


# --- graders ------------------------------------------------------------------------------------------------------------


def by_judge(prompts: Prompts, replies: Replies) -> Grader:
    """A generator grades by the rubric: 1 where every point of it is met."""

    def grade(answered: Sequence[tuple[Problem, str]]) -> list[tuple[bool | Unread, str]]:
        questions = [_to_judge(prompts, problem, answer) for problem, answer in answered]
        return [_grade(prompts.form, found) for found in replies.ask(questions)]

    return grade


def _to_judge(prompts: Prompts, problem: Problem, answer: str) -> Question:
    fields = {
        "rubric": problem.rubric, "answer": answer, "task": problem.type, "question": _question(prompts, problem)
    }  # fmt: skip
    prompt = conversation(prompts.judge_system.render(**fields), prompts.judge.render(**fields))
    return Question(prompt, about=f"{problem.id} grade")


def _grade(form: Form, replies: Sequence[str]) -> tuple[bool | Unread, str]:
    if not replies:
        return Unread("no reply of the judge"), ""
    found = form.number(replies[0])
    return found if isinstance(found, Unread) else found > 0, without_thinking(replies[0]).strip()


def by_verifier(verify: Verifier, said: Mapping[bool, str]) -> Grader:
    """A rule grades against the standard answer, and says one of two sentences."""

    def grade(answered: Sequence[tuple[Problem, str]]) -> list[tuple[bool | Unread, str]]:
        found = [verify(problem.prompt[-1], answer, (standard(problem),)) for problem, answer in answered]
        return [(Unread(v.reason), "") if isinstance(v, Failure) else (v > 0, said[v > 0]) for v in found]

    return grade


# --- the run ------------------------------------------------------------------------------------------------------------


def run(
    series: Sequence[Series], student: Replies, grader: Grader, prompts: Prompts, paradigm: str
) -> list[list[Graded]]:
    """Poses all sequences side by side, position by position.

    A sequence ends where an answer could not be had; a grade that could not be read stays unknown, and its words are shown
    nevertheless.

    Raises:
      ValueError: there is no such paradigm.
    """
    if paradigm not in PARADIGMS:
        raise ValueError(f"the paradigm {paradigm!r} does not exist; choose {', '.join(PARADIGMS)}")
    examples = examples_of(list({p.id: p for each in series for p in each.problems}.values()))
    done: list[list[Graded]] = [[] for _ in series]
    for position in range(max((len(each.problems) for each in series), default=0)):
        live = [n for n, each in enumerate(series) if len(done[n]) == position < len(each.problems)]
        contexts = [context(prompts, paradigm, series[n], done[n], examples[series[n].type]) for n in live]
        names = [f"{series[n].id} {paradigm} {position + 1}" for n in live]
        replies = student.ask([Question(text, about=name) for text, name in zip(contexts, names, strict=True)])
        answers = {n: without_thinking(found[0]).strip() for n, found in zip(live, replies, strict=True) if found}
        grades = grader([(series[n].problems[position], answer) for n, answer in answers.items()])
        for (n, answer), (right, said) in zip(answers.items(), grades, strict=True):
            reason, known = (right.reason, None) if isinstance(right, Unread) else ("", right)
            done[n].append(Graded(series[n].problems[position], answer, known, said, reason))
    return done


def right_of(
    series: Sequence[Series], done: Sequence[Sequence[Graded]]
) -> tuple[list[int], np.ndarray, dict[str, int]]:
    """(the sequences that are whole, their outcomes [N, M], why the others have none → how many problems)."""
    lacking = Counter[str]()
    whole = []
    for n, (each, found) in enumerate(zip(series, done, strict=True)):
        lacking.update({NO_ANSWER: len(each.problems) - len(found)})
        lacking.update(f"{NO_GRADE}: {one.reason}" for one in found if one.right is None)
        if len(found) == len(each.problems) and all(one.right is not None for one in found):
            whole.append(n)
    right_NM = np.array([[bool(one.right) for one in done[n]] for n in whole], np.int64)
    return whole, right_NM, dict(+lacking)


def lines(series: Sequence[Series], done: Sequence[Sequence[Graded]], paradigm: str) -> list[dict[str, Any]]:
    """A row for each problem that was posed, for people and for other programs."""
    return [
        {
            "sequence_id": each.id, "type": each.type, "paradigm": paradigm, "position": m + 1, "id": one.problem.id,
            "answer": one.answer, "right": one.right, "evaluation": one.evaluation, "reason": one.reason,
        }
        for each, found in zip(series, done, strict=True)
        for m, one in enumerate(found)
    ]  # fmt: skip
