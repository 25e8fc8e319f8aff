"""Layouts of published sets of preferences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.layouts.layout import Fields, Layout, Row, grouped, label, number, pair, text, turns

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def transcript(value: str, field: str, place: str) -> list[dict[str, str]]:
    """Messages of a transcript of HH-RLHF, whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:".

    Raises:
      RecordError: it begins otherwise, or does not end with the assistant.
    """
    first, *rest = _TURN.split(value if value.startswith("\n\n") else "\n\n" + value)
    found = [{"role": _ROLES[who], "content": said} for who, said in zip(rest[::2], rest[1::2], strict=True)]
    if first.strip() or not found:
        raise RecordError(place, field, "no transcript", 'begin turns with "\\n\\nHuman:" and "\\n\\nAssistant:"')
    if found[-1]["role"] != "assistant":
        raise RecordError(place, field, "transcript without a last turn of the assistant", "drop the row")
    return found


def is_transcript(value: object) -> bool:
    """Whether a text is such a transcript."""
    return isinstance(value, str) and "\n\nHuman:" in f"\n\n{value.lstrip()}" and "\n\nAssistant:" in value


def hh(row: Row, place: str) -> list[Fields]:
    """HH-RLHF: two transcripts that differ in the last turn of the assistant."""
    chosen, rejected = (transcript(text(row, name, place), name, place) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise RecordError(place, "rejected", "another conversation before the last turn", "drop the row")
    answers = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    return [{"messages": chosen[:-1], **answers, "source": "hh"}]


def helpsteer(row: Row, place: str) -> list[Fields]:
    """HelpSteer and HelpSteer2: one answer and its attributes; the order is that of helpfulness."""
    score = number(row, "helpfulness", place)
    return [{"prompt": text(row, "prompt", place), "output": text(row, "response", place), "score": score,
             "source": "helpsteer"}]  # fmt: skip


def helpsteer2_preference(row: Row, place: str) -> list[Fields]:
    """HelpSteer2, preferences: a strength from −3 (the first is much better) to 3."""
    return [_by_strength(row, "preference_strength", ("response_1", "response_2"), place) | {
        "prompt": text(row, "prompt", place), "category": row.get("split"), "source": "helpsteer2_preference"}]  # fmt: skip


def helpsteer3(row: Row, place: str) -> list[Fields]:
    """HelpSteer3, preferences: a conversation, and a strength as in HelpSteer2; the votes are those of the annotators."""
    found = _by_strength(row, "overall_preference", ("response1", "response2"), place)
    context = turns(row.get("context"), "context", place)
    return [{**found, "messages": context, "category": row.get("domain"), "source": "helpsteer3"}]


def _by_strength(row: Row, field: str, answers: tuple[str, str], place: str) -> Fields:
    known = {-3: 0, -2: 0, -1: 0, 0: None, 1: 1, 2: 1, 3: 1}
    better = label(row, field, place, known)
    return pair(better, *(text(row, name, place) for name in answers))


def shp(row: Row, place: str) -> list[Fields]:
    """SHP: two comments on a post; `labels` is 1 where A is the better one."""
    better = label(row, "labels", place, {1: 0, 0: 1})
    answers = (text(row, f"human_ref_{side}", place) for side in "AB")
    facts = {"prompt": text(row, "history", place), "category": row.get("domain"), "source": "shp"}
    return [pair(better, *answers, **facts)]


def ultrafeedback(row: Row, place: str) -> list[Fields]:
    """UltraFeedback: four completions; the order is that of the mean of their four ratings."""
    given: Any = row.get("completions")
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise RecordError(place, "completions", "not a list of objects", "get the file again, or drop the row")
    if not given:
        return []  # a few instructions have none
    fields = [({**each}, f"{place}: completion {i + 1}") for i, each in enumerate(given)]
    outputs = [text(each, "response", where) for each, where in fields]
    scores = [_rating(each, where) for each, where in fields]
    policies = [str(each.get("model") or "unknown") for each, _ in fields]
    return [{"prompt": text(row, "instruction", place), "outputs": outputs, "scores": scores, "policies": policies,
             "category": row.get("source"), "source": "ultrafeedback"}]  # fmt: skip


def _rating(each: Row, place: str) -> float:
    """`fine-grained_score`; `overall_score` where that is absent."""
    name = "fine-grained_score" if each.get("fine-grained_score") is not None else "overall_score"
    return number(each, name, place)


def ultrafeedback_binarized(row: Row, place: str) -> list[Fields]:
    """UltraFeedback, binarized: both sides are whole conversations."""
    del place
    return [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"], "id": row.get("prompt_id"),
             "source": "ultrafeedback_binarized"}]  # fmt: skip


LAYOUTS = (
    Layout(
        "hh", "transcripts of HH-RLHF", frozenset({"chosen", "rejected"}), hh,
        lambda row: not {"prompt", "messages"} & row.keys() and is_transcript(row["chosen"]) and is_transcript(row["rejected"]),
    ),
    Layout(
        "helpsteer", "HelpSteer or HelpSteer2, an answer a row", frozenset({"prompt", "response", "helpfulness"}), helpsteer,
        join=grouped,
    ),
    Layout(
        "helpsteer2_preference", "HelpSteer2, preferences",
        frozenset({"prompt", "response_1", "response_2", "preference_strength"}), helpsteer2_preference,
    ),
    Layout(
        "helpsteer3", "HelpSteer3, preferences", frozenset({"context", "response1", "response2", "overall_preference"}),
        helpsteer3,
    ),
    Layout("shp", "SHP", frozenset({"history", "human_ref_A", "human_ref_B", "labels"}), shp),
    Layout("ultrafeedback", "UltraFeedback", frozenset({"instruction", "completions"}), ultrafeedback),
    Layout(
        "ultrafeedback_binarized", "UltraFeedback, binarized",
        frozenset({"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}), ultrafeedback_binarized,
    ),
)  # fmt: skip
