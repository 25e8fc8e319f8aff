"""Layouts that trainers read, and trees of conversations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.layouts.layout import (
    Fields,
    Layout,
    Outcome,
    Placed,
    Row,
    grouped,
    is_turns,
    label,
    number,
    pair,
    text,
    turns,
)
from rmjax.data.layouts.preferences import is_transcript


def trl_implicit(row: Row, place: str) -> list[Fields]:
    """TRL without `prompt`: it is the messages, or the text up to a blank, that both sides begin with."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = os.path.commonprefix([chosen, rejected])
        prompt = prompt[: max((i + 1 for i, letter in enumerate(prompt) if letter.isspace()), default=0)]
        _refuse_nothing_common(prompt.strip(), place)
        return [{"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}]
    ours, theirs = turns(chosen, "chosen", place), turns(rejected, "rejected", place)
    most = min(len(ours), len(theirs)) - 1  # an answer is left
    common = next((i for i in range(most) if ours[i] != theirs[i]), most)
    _refuse_nothing_common(common, place)
    return [{"messages": ours[:common], "chosen": ours[common:], "rejected": theirs[common:]}]


_BETTER: Mapping[Any, int | None] = {1: 0, 2: 1, "1": 0, "2": 1, 0: None, "0": None, "tie": None}


def labeled(row: Row, place: str) -> list[Fields]:
    """`output_1` and `output_2`, and a `label`: 1 or 2 is the better one, 0 or tie says that neither is."""
    answers = (text(row, f"output_{i}", place) for i in (1, 2))
    rest = {name: value for name, value in row.items() if name not in ("output_1", "output_2", "label")}
    return [pair(label(row, "label", place, _BETTER), *answers, **rest)]


def _refuse_nothing_common(common: object, place: str) -> None:
    if not common:
        problem = "no `prompt`, and the two sides begin differently"
        raise RecordError(place, "chosen", problem, "add `prompt`, or begin both sides with it")


def llama_factory(row: Row, place: str) -> list[Fields]:
    """LLaMA-Factory, alpaca with two answers: instruction and input are joined by a newline; a system text and earlier turns may
    be there."""
    more = text(row, "input", place) if row.get("input") else ""
    asked = "\n".join(filter(None, [text(row, "instruction", place), more]))
    earlier: Any = row.get("history") or []
    if not isinstance(earlier, list) or not all(isinstance(each, list) and len(each) == 2 for each in earlier):
        raise RecordError(place, "history", "not a list of pairs of question and answer", "correct it, or drop the row")
    said = [
        {"role": who, "content": what}
        for each in earlier
        for who, what in zip(("user", "assistant"), each, strict=True)
    ]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    prompt = {"messages": [*system, *said, {"role": "user", "content": asked}]} if system or said else {"prompt": asked}
    if "chosen" not in row:
        policies = {"policies": [row["generator"]]} if row.get("generator") else {}  # AlpacaEval has who wrote it
        return [{**prompt, "output": text(row, "output", place), **policies}]
    return [{**prompt, "chosen": text(row, "chosen", place), "rejected": text(row, "rejected", place)}]


def _conversation(row: Row, place: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return system + turns(row["conversations"], "conversations", place)


def sharegpt_pair(row: Row, place: str) -> list[Fields]:
    """ShareGPT with two answers, as LLaMA-Factory has it."""
    asked = _conversation(row, place)
    return [{"messages": asked, **{name: turns(row.get(name), name, place) for name in ("chosen", "rejected")}}]


def sharegpt(row: Row, place: str) -> list[Fields]:
    """ShareGPT: one conversation, whose last turn is the only answer."""
    found = _conversation(row, place)
    if len(found) < 2 or found[-1]["role"] != "assistant":
        raise RecordError(place, "conversations", "does not end with an answer", "drop the row")
    return [{"messages": found[:-1], "output": found[-1:], "id": row.get("id")}]


def arena(row: Row, place: str) -> list[Fields]:
    """Chatbot Arena: two conversations and a vote."""
    known = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None, "both_bad": None}
    better = label(row, "winner", place, known)
    a, b = (turns(row.get(f"conversation_{side}"), f"conversation_{side}", place) for side in "ab")
    if a[:-1] != b[:-1]:
        raise RecordError(place, "conversation_b", "another conversation before the last turn", "drop the row")
    policies = [str(row.get(f"model_{side}") or "unknown") for side in "ab"]
    return [pair(better, a[-1:], b[-1:], messages=a[:-1], policies=policies, source="arena")]


def pointwise(row: Row, place: str) -> list[Fields]:
    """One scored answer; those to one prompt become a record."""
    answer = next(name for name in ("output", "response", "completion") if name in row)
    asked = text(row, "prompt", place)
    system = [{"role": "system", "content": text(row, "system", place)}] if row.get("system") else []
    prompt = {"messages": [*system, {"role": "user", "content": asked}]} if system else {"prompt": asked}
    return [{**prompt, "output": text(row, answer, place), "score": _score(row, place)}]


def _score(row: Row, place: str) -> float:
    if "score" in row:
        return number(row, "score", place)
    value: Any = row.get("scores")
    if not isinstance(value, list) or len(value) != 1:
        raise RecordError(place, "scores", "not one number", "give one, or `score`", repr(value)[:40])
    return number({"scores": value[0]}, "scores", place)


def _is_pointwise(row: Row) -> bool:
    one = [name for name in ("output", "response", "completion") if isinstance(row.get(name), str)]
    return len(one) == 1 and ("score" in row or "scores" in row)


def tree(row: Row, place: str) -> list[Fields]:
    """OpenAssistant, a tree a row: each turn of the prompter with two ranked replies or more is a record."""
    return list(_ranked(row["prompt"], place))


def _ranked(root: Mapping[str, Any], place: str) -> Iterator[Fields]:
    waiting: list[tuple[Mapping[str, Any], list[dict[str, str]]]] = [(root, [])]
    while waiting:  # conversations may be deeper than Python's stack
        node, before = waiting.pop()
        here = [*before, *turns({"role": node.get("role"), "content": node.get("text")}, "prompt", place)]
        replies = _replies(node, place)
        ranked = [
            reply for reply in replies if isinstance(reply.get("rank"), int | float) and reply["rank"] == reply["rank"]
        ]
        if here[-1]["role"] == "user" and len(ranked) > 1:
            yield {"messages": here, "outputs": [text(reply, "text", place) for reply in ranked], "source": "openassistant",
                   "ranks": [float(reply["rank"]) for reply in ranked], "category": node.get("lang"),
                   "id": node.get("message_id")}  # fmt: skip
        waiting += [(reply, here) for reply in reversed(replies)]


def _replies(node: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    found = node.get("replies") or []
    if not isinstance(found, list):
        raise RecordError(place, "replies", "not a list", "correct it, or drop the row")
    return [reply for reply in found if isinstance(reply, Mapping)]


def tree_message(row: Row, place: str) -> list[Fields]:
    """OpenAssistant, a message a row."""
    for name in ("message_id", "role", "text"):
        text(row, name, place)
    return [dict(row)]


def planted(rows: Sequence[Placed]) -> list[Outcome]:
    """Messages → the records of their trees; an error for each message that stands there twice, whose parent is not there, or
    that follows itself, and for each tree that is none."""
    nodes: dict[str, dict[str, Any]] = {}
    found: list[Outcome] = []
    own: list[Placed] = []
    for place, row in rows:
        if row["message_id"] in nodes:
            found.append((place, RecordError(place, "message_id", "is another message's too", "keep one of them")))
            continue
        nodes[row["message_id"]] = {**row, "replies": []}
        own.append((place, row))
    for place, row in own:
        if not (parent := row.get("parent_id")):
            continue
        if parent not in nodes or _follows_itself(row["message_id"], nodes):
            problem = "no message of the file" if parent not in nodes else "leads back to the message itself"
            found.append((place, RecordError(place, "parent_id", problem, "add the message, or drop this one")))
        else:
            nodes[parent]["replies"].append(nodes[row["message_id"]])
    for place, row in own:
        if not row.get("parent_id"):
            try:
                found += [(place, made) for made in list(_ranked(nodes[row["message_id"]], place))]
            except RecordError as error:
                found.append((place, error))
    return found


def _follows_itself(name: str, nodes: Mapping[str, Mapping[str, Any]]) -> bool:
    seen: set[str] = set()
    at: Any = nodes[name].get("parent_id")
    while at in nodes and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = nodes[at].get("parent_id")
    return False


def _sides(row: Row) -> bool:
    given = [row["chosen"], row["rejected"]]
    plain = all(isinstance(side, str) for side in given) and not any(map(is_transcript, given))
    return not {"prompt", "messages", "instruction", "conversations"} & row.keys() and (
        plain or all(map(is_turns, given))
    )


LAYOUTS = (
    Layout(
        "sharegpt_pair", "ShareGPT with two answers", frozenset({"conversations", "chosen", "rejected"}), sharegpt_pair,
        lambda row: is_turns(row["conversations"]),
    ),
    Layout(
        "sharegpt", "ShareGPT, one conversation a row", frozenset({"conversations"}), sharegpt,
        lambda row: is_turns(row["conversations"]),
    ),
    Layout(
        "llama_factory", "LLaMA-Factory (alpaca) with two answers", frozenset({"instruction", "chosen", "rejected"}),
        llama_factory,
    ),
    Layout("alpaca", "LLaMA-Factory (alpaca) with one answer", frozenset({"instruction", "output"}), llama_factory),
    Layout("arena", "Chatbot Arena", frozenset({"conversation_a", "conversation_b", "winner"}), arena),
    Layout(
        "openassistant_tree", "trees of OpenAssistant", frozenset({"message_tree_id", "prompt"}), tree,
        lambda row: isinstance(row["prompt"], Mapping),
    ),
    Layout(
        "openassistant", "messages of OpenAssistant's trees", frozenset({"message_id", "parent_id", "role", "text"}),
        tree_message, join=planted,
    ),
    Layout(
        "labeled", "two answers and which is better", frozenset({"prompt", "output_1", "output_2", "label"}), labeled
    ),
    Layout("trl_implicit", "TRL without a prompt of its own", frozenset({"chosen", "rejected"}), trl_implicit, _sides),
    Layout("pointwise", "one scored answer a row", frozenset({"prompt"}), pointwise, _is_pointwise, join=grouped),
)  # fmt: skip
