"""LLMEval-Med's file, read from the user's path: it has no licence, so it does not ship. A few questions in its layout do."""

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rmjax.data.errors import RecordError

_log = logging.getLogger(__name__)
GET = (
    "git clone https://github.com/llmeval/LLMEval-Med, then give its dataset/dataset.json; `shipped` are a few of ours"
)
AREAS = {"医疗知识": "MK", "医疗语言理解": "MLU", "医疗推理": "MR", "医疗安全伦理": "MSE", "医疗文本生成": "MTG"}
"""Key of the file → area: knowledge, language understanding, reasoning, safety and ethics, text generation."""
PUBLISHED = {"MK": 141, "MLU": 213, "MR": 102, "MSE": 109, "MTG": 102}
"""Area → questions of the released split; the paper says 677 in all."""
SHIPPED = "questions.json"
_HEADING = re.compile(r"^\s*(?:[一二]、)?\s*(核心|次要)需求\s*[:：]?\s*$", re.MULTILINE)
_NUMBER = re.compile(r"^\s*(?:\d+\s*[.、．)]|[-*•])\s*")
_NONE = ("无", "none", "")


@dataclasses.dataclass(frozen=True)
class Checklist:
    """What an answer has to have: without a core point it is unusable."""

    core: tuple[str, ...]
    secondary: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
    """One question; those of one group are the rounds of a conversation."""

    area: str
    group: str
    round: int
    question: str
    reference: str = ""
    checklist: Checklist | None = None
    category: str = ""
    place: str = ""

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.area} {self.group}.{self.round}"


def parse_checklist(text: str) -> Checklist | None:
    """The points below the two headings, a line each; None where there is no core heading or no core point."""
    parts = _HEADING.split(text)
    found: dict[str, tuple[str, ...]] = {}
    for kind, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [_NUMBER.sub("", line).strip() for line in body.splitlines()]
        found[kind] = tuple(line for line in lines if line.lower() not in _NONE)
    return Checklist(found["核心"], found.get("次要", ())) if found.get("核心") else None


def read_items(path: str | Path) -> list[Item]:
    """The questions of a file in the published layout, or of `shipped`, in the order of areas, groups and rounds.

    Its quirks are read as they are meant: bare NaN and absent fields are nothing, a number is text, and the checklist of MSE,
    which stands in its answer, is one.

    Raises:
      FileNotFoundError: there is no such file; says where to get it.
      RecordError: not that layout, a question without what it is judged by, or a round that is there twice or has none before it.
    """
    if str(path) == "shipped":
        path = Path(str(resources.files("rmjax.judges.llmeval_med") / SHIPPED))
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; {GET}")
    try:
        areas = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise RecordError(str(path), "", "no JSON", GET, str(error)) from None
    if not isinstance(areas, Mapping) or not areas or not areas.keys() <= AREAS.keys():
        raise RecordError(str(path), "", "not of LLMEval-Med", f"give an object with keys of {', '.join(AREAS)}")
    items = [
        _item(row, AREAS[key], f"{path}: {key}[{n}]") for key in AREAS for n, row in enumerate(areas.get(key) or [])
    ]
    items.sort(key=lambda item: (list(AREAS.values()).index(item.area), item.group, item.round))
    _check_rounds(items)
    _compare(Counter(item.area for item in items))
    return items


def _item(row: Any, area: str, place: str) -> Item:
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", "give an object for each question")
    question, reference = (_text(row.get(name)) for name in ("problem", "sanswer"))
    number = row.get("round", 1)
    if not question:
        raise RecordError(place, "problem", "missing", "give the question")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise RecordError(place, "round", "not a number from 1", "give the round of the conversation", repr(number))
    checklist = parse_checklist(_text(row.get("checklist"))) or (parse_checklist(reference) if area == "MSE" else None)
    if not reference and checklist is None:
        raise RecordError(place, "sanswer", "missing, and there is no checklist", "give what the answer is judged by")
    return Item(
        area, str(row.get("groupCode", place)), number, question, reference, checklist, _text(row.get("category2")), place
    )  # fmt: skip


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, bool | list | dict) else str(value).strip()


def _check_rounds(items: list[Item]) -> None:
    met = {(item.area, item.group, item.round): item.place for item in items}
    if len(met) < len(items):
        twice = next(item for item in items if met[item.area, item.group, item.round] != item.place)
        raise RecordError(
            twice.place, "round", "is there twice in its group", "number the rounds of a groupCode", twice.name
        )
    for item in items:
        if item.round > 1 and (item.area, item.group, item.round - 1) not in met:
            raise RecordError(
                item.place, "round", "the round before is missing", "give all rounds of a groupCode", item.name
            )


def _compare(found: Mapping[str, int]) -> None:
    """Says where a file of about the published size has other numbers."""
    if sum(found.values()) > 100 and dict(found) != PUBLISHED:
        differ = [
            f"{area} {found.get(area, 0)} instead of {n}" for area, n in PUBLISHED.items() if found.get(area, 0) != n
        ]
        _log.warning("LLMEval-Med's questions differ from the released ones: %s", ", ".join(differ))
