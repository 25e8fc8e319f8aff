"""Requests → items, and outcomes → replies, as pure functions; those of trainers and the native one. `openai.py` has servers'.

A dialect reads a JSON object and gives an `Asked`: what is to be scored, and how the reply is written. What a request must say
is checked here, what a text must be by `items.Encoding`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmjax.serve.items import Item, Record, Text
from rmjax.serve.outcomes import Outcome, Refused, Rewarded, wrong

VERSION = 1
"""Of the native route's requests and replies."""
Body = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a reply says beside rewards, and what the server was told of its clients."""

    model: str
    fingerprint: str
    kind: str  # of the model's format
    split_token: str = ""  # polar: its separator
    strip: tuple[str, ...] = ()  # texts that end a query and are not of the answer: a policy's EOS token
    scalar: bool = False  # /pooling answers with numbers, as LMDeploy does
    id: str = ""
    created: int = 0  # seconds since 1970

    @property
    def reads_references(self) -> bool:
        """Whether the format has a place for a reference."""
        return self.kind == "polar"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request wants.

    Attributes:
      reply: outcomes, in the order of the items → what is sent as JSON.
      each: an item that fails has its error in the reply; otherwise the whole request fails with the first one's.
    """

    items: tuple[Item, ...]
    reply: Callable[[Sequence[Any]], Any]
    each: bool = False


def texts(value: Any, where: str) -> list[str]:
    """A list of strings; 400 otherwise."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise wrong(f"`{where}`", "is not a list of strings", "send a list of strings")
    return value


def one_reward(outcome: Rewarded) -> float:
    """The reward of an item with one answer."""
    return outcome.rewards[0]


# --- trainers -----------------------------------------------------------------------------------------------------------


def get_reward(body: Body, context: Context) -> Asked:
    """OpenRLHF's {"query": [text]}, or slime's {"prompt", "response"}."""
    if "query" in body:
        return open_rlhf(body, context)
    if "prompt" in body and "response" in body:
        return slime(body, context)
    raise Refused(400, "the request has neither `query` nor `prompt` and `response`; send OpenRLHF's or slime's form")


def open_rlhf(body: Body, context: Context) -> Asked:
    """{"query": [text], "prompts": [text]?, "labels": [any]?} → {"rewards", "scores", "extra_logs"}; empty lists get empty lists.

    A query alone is laid out by the model's format; with `prompts` it begins with its prompt, and the rest is the answer.
    `labels` are POLAR's references.
    """
    queries = texts(body["query"], "query")
    prompts = _beside(body, "prompts", len(queries))
    labels = _beside(body, "labels", len(queries))
    if any(not isinstance(prompt, str | None) for prompt in prompts):
        raise wrong("`prompts`", "is not a list of strings", "send the text that each query begins with")
    items = tuple(
        _query(text, prompt, label, f"query[{i}]", context)
        for i, (text, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True))
    )

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        rewards = [one_reward(each) for each in outcomes]
        logs = {"reward_tokens": [float(each.tokens[0]) for each in outcomes],
                "reward_truncated": [float(each.truncated[0]) for each in outcomes]}  # fmt: skip
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return Asked(items, reply)


def _beside(body: Body, name: str, count: int) -> list[Any]:
    value = body.get(name)
    if value is None or (value == [] and count):
        return [None] * count
    if not isinstance(value, list) or len(value) != count:
        raise wrong(f"`{name}`", f"is not a list of {count}, as `query` is", "send one for each query, or leave it out")
    return value


def _query(text: str, prompt: str | None, label: Any, place: str, context: Context) -> Item:
    for ending in context.strip:
        text = text.removesuffix(ending)
    if prompt == "":  # it says nothing of the query but that all of it is the policy's
        if context.split_token and context.split_token in text:
            raise wrong(place, "has the separator, and its prompt is empty", "send the prompt, or no `prompts`")
        prompt = None
    references = references_of(label, place, context)
    if context.kind == "chat" or (prompt is None and not references):
        return Text(text, place)
    if prompt is None:
        raise wrong(
            place, "has a label and no prompt", "send `prompts`, so that the reference can stand behind its prompt"
        )
    if not text.startswith(prompt):
        raise wrong(
            place, "does not begin with its prompt", "send both as the policy read and wrote them, or without `prompts`"
        )
    # Only the trainer's own data may lay a text out: a separator that the policy writes would make it its own reference.
    if context.reads_references and context.split_token in prompt and not references:
        return Text(text, place)
    return Record({"prompt": prompt, "output": text[len(prompt) :], **references}, place)


def references_of(label: Any, place: str, context: Context) -> dict[str, Any]:
    """The fields of a record that a label is. Formats without a place for references read none."""
    if not context.reads_references or label in (None, "", []):
        return {}
    if isinstance(label, str | int | float) and not isinstance(label, bool):  # the answer 72 of a data set is its text
        return {"reference": str(label)}
    if isinstance(label, list) and all(isinstance(each, str) for each in label):
        return {"references": label}
    raise wrong(place, "has a label that is neither text nor number", "send POLAR's reference answer as text, or null")


def slime(body: Body, context: Context) -> Asked:
    """{"prompt": text or messages, "response": text, "label": any} → the bare number."""
    if not isinstance(body["response"], str):
        raise wrong("`response`", "is not a string", "send the answer's text")
    prompt = body["prompt"]
    field = "prompt" if isinstance(prompt, str) else "messages"
    row = {field: prompt, "output": body["response"], **references_of(body.get("label"), "label", context)}
    return Asked((Record(row, "the request"),), lambda outcomes: one_reward(outcomes[0]))


# --- native -------------------------------------------------------------------------------------------------------------


def native(body: Body, context: Context) -> Asked:
    """{"records": [record]}, or one record: a result each, with rewards or an error."""
    rows = body.get("records", [body] if body.keys() & {"prompt", "messages"} else None)
    if not isinstance(rows, list):
        raise wrong(
            "`records`", "is not a list", 'send {"records": [{"prompt": …, "output": …}]}, fields as in docs/data.md'
        )
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise wrong(f"records[{i}]", "is not an object", "send prompt and output as fields")
    items = tuple(Record(row, f"records[{i}]") for i, row in enumerate(rows))

    def reply(outcomes: Sequence[Outcome]) -> Any:
        results = [_result(i, row, each) for i, (row, each) in enumerate(zip(rows, outcomes, strict=True))]
        return {
            "object": "reward.list", "version": VERSION, "id": context.id, "model": context.model,
            "fingerprint": context.fingerprint, "format": context.kind, "results": results,
        }  # fmt: skip

    return Asked(items, reply, each=True)


def _result(index: int, row: Body, outcome: Outcome) -> dict[str, Any]:
    is_id = "id" in row and isinstance(
        row["id"], str | int | None
    )  # another is an error already, and may be no JSON: 1e999
    named = {"index": index, **({"id": row["id"]} if is_id else {})}
    if isinstance(outcome, Refused):
        return {**named, **outcome.body()}
    notes = {"notes": list(outcome.notes)} if outcome.notes else {}
    return named | {
        "rewards": list(outcome.rewards), "tokens": list(outcome.tokens), "truncated": list(outcome.truncated), **notes
    }  # fmt: skip
