"""What a judge is asked and how it is read: one TOML file."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rmjax.judges.forms import EQUAL, Form
from rmjax.judges.generators import Generation
from rmjax.judges.templates import PromptError, Template, read_prompts, text_at
from rmjax.sections import choice, number, read

_OF_ALL = ("prompt", "turns", "reference", "references", "criteria")
FIELDS = {
    "pairwise": (*_OF_ALL, "answer_a", "answer_b"),
    "pointwise": (*_OF_ALL, "answer"),
    "rubric": (*_OF_ALL, "answer"),
    "checklist": (*_OF_ALL, "answer"),
}
"""Kind of judge → what its prompt may read."""
SIDES = ("first", "second", EQUAL)
"""What a pairwise judge's choices mean: the answer that stands first, the second one, or neither."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One thing that an answer is judged by."""

    name: str = ""  # key of its value in the reply
    text: str = ""  # what the judge reads
    weight: float = number(1.0, above=0)  # in the mean
    core: bool = False  # checklist: the answer is unusable without it


@dataclasses.dataclass(frozen=True)
class Rules:
    """How replies become a score."""

    kind: str = choice("pairwise", *FIELDS)
    votes: int = number(1, low=1)  # replies to each question: each order of two answers, or each answer
    combine: str = choice(
        "majority", "majority", "mean"
    )  # pairwise, of a pair's votes | of numbers: the median, or mean
    inconsistent: str = choice(
        "tie", "tie", "votes"
    )  # pairwise, where the two orders disagree: a tie | all votes together


@dataclasses.dataclass(frozen=True)
class Spec:
    """A judge without its model."""

    prompt: Template
    system: Template = Template("", "system")
    rules: Rules = Rules()
    form: Form = Form()
    criteria: tuple[Criterion, ...] = ()
    generation: Generation = Generation()
    name: str = "judge"

    def __post_init__(self) -> None:
        known = FIELDS[self.rules.kind]
        self.prompt.checked(known, [name for name in known if name.startswith("answer")])
        self.system.checked(known)
        if self.rules.kind == "pairwise":
            _check_sides(self.form, self.name)
        elif self.rules.kind != "pointwise":
            _check_criteria(self.criteria, self.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that its scores depend on."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def _check_sides(form: Form, place: str) -> None:
    meanings = set(form.meanings.values())
    if wrong := sorted(meanings - set(SIDES)):
        raise PromptError(f"{place}: form.choices mean {wrong[0]!r}; write first, second or {EQUAL}")
    if not {"first", "second"} <= meanings:
        raise PromptError(f"{place}: form.choices lack first or second; write, say, A=first and B=second")


def _check_criteria(criteria: tuple[Criterion, ...], place: str) -> None:
    names = [criterion.name for criterion in criteria]
    if not names or not all(names) or len(set(names)) < len(names):
        raise PromptError(
            f"{place}: criteria have the names {names}; give one [[criteria]] or more, each a name of its own"
        )


def load_spec(name: str | Path) -> Spec:
    """A judge by the name of one that ships, or its TOML file.

    Raises:
      FileNotFoundError, PromptError, ValueError: there is no such file, or a key of it is wrong; the message names both.
    """
    tables, place = read_prompts(name)
    apart = ("system", "prompt", "form", "criteria", "generation")
    rules = {key: value for key, value in tables.items() if key not in apart}
    return Spec(
        prompt=text_at(tables, "prompt", place),
        system=text_at(tables, "system", place, default=""),
        rules=read(Rules, rules, place),
        form=read_form(tables.get("form", {}), f"{place}: form"),
        criteria=tuple(
            read(Criterion, each, f"{place}: criteria") for each in _tables(tables.get("criteria", []), place)
        ),
        generation=read(Generation, tables.get("generation", {}), f"{place}: generation"),
        name=place,
    )


def read_form(table: Any, place: str) -> Form:
    """A `[form]` table. PromptError where a key of it is wrong."""
    if not isinstance(table, dict):
        raise PromptError(f"{place} is no table; write [form]")
    try:
        return read(Form, table, place)
    except ValueError as error:
        raise PromptError(f"{place}: {error}") from None


def _tables(found: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise PromptError(f"{place}: criteria is no list of tables; write [[criteria]] before each")
    return found
