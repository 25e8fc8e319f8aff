"""How a judge's reply is read: one place in it, one kind of value, nothing guessed."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmjax.rewards.texts import without_thinking

EQUAL = "equal"
"""The choice that says that answers are equally good."""


@dataclasses.dataclass(frozen=True)
class Unread:
    """Why a reply has no value. It is no number: it cannot be added up or averaged by accident."""

    reason: str


Found = list[Any] | Unread
"""What stands in the place of a form."""


def _in_brackets(reply: str, key: str) -> Found:
    del key
    return re.findall(r"\[\[([^\[\]]*)\]\]", reply)


def _last_line(reply: str, key: str) -> Found:
    """The last line that is not blank, without the words `key` before it."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith(key):
        return []
    return [lines[-1].removeprefix(key).strip()]


def _json(reply: str, key: str) -> Found:
    """The field `key` of the one JSON object in the reply, or the object where `key` is empty."""
    objects = json_objects(reply)
    if len(objects) != 1:
        return Unread("no JSON object" if not objects else "several JSON objects")
    found = objects[0]
    if not key:
        return [found]
    return [found[key]] if key in found else Unread("a JSON object without the field")


PLACES: Mapping[str, Callable[[str, str], Found]] = {
    "brackets": _in_brackets,
    "last_line": _last_line,
    "json": _json,
}
"""Name → what stands in that place of a reply."""


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, outermost ones, in order. NaN, infinities and repeated keys are no JSON; what stands within
    braces that are no object is none either."""
    decoder = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once)
    found, start = [], text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            found.append(value)
        except (ValueError, RecursionError):
            end = _behind_braces(text, start)
        start = text.find("{", end)
    return found


def _behind_braces(text: str, start: int) -> int:
    """Where the braces that open at `start` are closed; the end of the text where they never are."""
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.end()
    return len(text)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


@dataclasses.dataclass(frozen=True)
class Form:
    """Where a verdict stands, and which values it may have.

    ValueError: a place that there is not, a choice without a meaning, or a range that is none.
    """

    place: str = (
        "brackets"  # brackets: [[A]] | last_line: all of the last line, behind `key` | json: a field of the one object
    )
    key: str = ""  # last_line: words before the verdict | json: name of the field
    choices: tuple[str, ...] = ()  # "WRITTEN=MEANING"; the meaning EQUAL is a tie
    low: float = 1.0  # of a number
    high: float = 10.0
    whole: bool = False  # True: integers only

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"form.place is {self.place!r}; choose {', '.join(PLACES)}")
        if not self.low < self.high:
            raise ValueError(f"form.low is {self.low} and form.high {self.high}; want low < high")
        if bad := [choice for choice in self.choices if not all(choice.partition("="))]:
            raise ValueError(f"form.choices has {bad[0]!r}; write WRITTEN=MEANING, as A=first")

    @property
    def meanings(self) -> dict[str, str]:
        """As written → meaning."""
        return {written: meaning for written, _, meaning in (choice.partition("=") for choice in self.choices)}

    def written(self, meaning: str) -> str:
        """A reply that says only this choice; ValueError where there is none of the meaning."""
        found = next((written for written, means in self.meanings.items() if means == meaning), None)
        if found is None:
            raise ValueError(f"form.choices have none that means {meaning!r}; add one")
        if self.place == "json":
            return json.dumps({self.key: found})
        return f"[[{found}]]" if self.place == "brackets" else f"{self.key} {found}".strip()

    def choice(self, reply: str) -> str | Unread:
        """The meaning of the one choice that the reply makes."""
        found = self._only(reply)
        if isinstance(found, Unread):
            return found
        if isinstance(found, str) and (meaning := self.meanings.get(found.strip())):
            return meaning
        return Unread(_no_choice(found))

    def number(self, reply: str) -> float | Unread:
        """The one number in range that the reply gives."""
        found = self._only(reply)
        if isinstance(found, Unread):
            return found
        return self.in_range(_as_number(found) if isinstance(found, str) else found)

    def in_range(self, value: object) -> float | Unread:
        """A finite number within the form's range, or why it is none."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return Unread("no number")
        if not self.low <= value <= self.high:
            return Unread("number out of range")
        return Unread("not a whole number") if self.whole and value != int(value) else float(value)

    def object(self, reply: str) -> dict[str, Any] | Unread:
        """The one JSON object of the reply."""
        found = _json(without_thinking(reply), self.key)
        if isinstance(found, Unread):
            return found
        return found[0] if isinstance(found[0], dict) else Unread("no JSON object")

    def _only(self, reply: str) -> Any:
        """The one value in the form's place; the same one repeated is one."""
        text = without_thinking(reply)
        if not text.strip():
            return Unread("empty reply")
        found = PLACES[self.place](text, self.key)
        if isinstance(found, Unread):
            return found
        different = [x for i, x in enumerate(found) if x not in found[:i]]
        if len(different) == 1:
            return different[0]
        return Unread("several verdicts" if different else "no verdict")


def _no_choice(found: object) -> str:
    """Both and neither are named: a judge that does not decide is something else than one that breaks the form."""
    said = str(found).strip().lower()
    return f"says {said}" if said in ("both", "neither") else "a verdict that is no choice"


def _as_number(text: str) -> float | None:
    try:
        return float(text) if re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", text) else None
    except ValueError:
        return None
