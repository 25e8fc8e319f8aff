"""Messages: who said what. A record's text is a string; one that was given as messages also keeps them.

A plain string is one message of the user's where it is a prompt and of the assistant's where it is an answer, so a list of
just that message is the string, and a text has one form only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user", "assistant", "tool" or what a template knows
    content: str  # text parts already joined by newlines
    more: str = ""  # JSON object of all other keys (tool_calls, tool_call_id, name, …); empty = none

    @property
    def others(self) -> dict[str, Any]:
        """The other keys as they were given."""
        return json.loads(self.more) if self.more else {}

    def as_row(self) -> dict[str, Any]:
        """The message as a JSON object, with all its keys."""
        return {"role": self.role, "content": self.content, **self.others}


class Conversation(str):
    """A text that was given as messages.

    As a string it is their contents joined by newlines, which is what POLAR's format, plain text, baselines and word counts
    read; what looks at roles reads `messages`. It equals another text only if that has the same messages, so it differs from
    the plain string of the same characters. An operation on strings gives a plain string, without messages.
    """

    messages: tuple[Message, ...]

    def __new__(cls, messages: Sequence[Message]) -> Conversation:
        made = super().__new__(cls, "\n".join(message.content for message in messages))
        made.messages = tuple(messages)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.messages,)

    @property
    def text(self) -> str:
        """The joined contents as a plain string."""
        return str.__str__(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Conversation):
            return NotImplemented if not isinstance(other, str) else False
        return self.messages == other.messages

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __repr__(self) -> str:
        return f"Conversation({self.messages!r})"


def messages_of(text: str, role: str) -> tuple[Message, ...]:
    """A text's messages; a plain string is one of `role`."""
    return text.messages if isinstance(text, Conversation) else (Message(role, text),)


def text_of(messages: Sequence[Message], role: str) -> str:
    """The text of messages: a plain string for a single one of `role` without other keys, else a `Conversation`."""
    if len(messages) == 1 and messages[0] == Message(role, messages[0].content):
        return messages[0].content
    return Conversation(messages)


def as_value(text: str) -> str | list[dict[str, Any]]:
    """A text as a field of a row: the string, or the list of messages."""
    return [message.as_row() for message in text.messages] if isinstance(text, Conversation) else text


# --- files whose columns are text ---------------------------------------------------------------------------------------

IN_COLUMNS = "messages_json"
"""The field that holds the messages where a file's `prompt`, `outputs` and `references` are columns of strings."""


def as_strings(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `record.to_row` whose texts are strings, for Parquet and TFDS: what was given as messages is their contents
    joined, and the messages are JSON in `messages_json`, {"prompt": [MESSAGES], "outputs": [null, MESSAGES]}, null for a plain
    string."""
    texts = _texts(row)
    messages = {name: [None if isinstance(t, str) else t for t in found] for name, found in texts.items()}
    if not any(any(found) for found in messages.values()):
        return dict(row)
    strings = {name: [_joined(text) for text in found] for name, found in texts.items()}
    return {**row, **_fields(strings), IN_COLUMNS: json.dumps(messages, ensure_ascii=False)}


def from_strings(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The inverse of `as_strings`; other rows stay as they are.

    Raises:
      RecordError: the messages are no such JSON, or not those of the texts beside them.
    """
    found = {name: value for name, value in row.items() if name != IN_COLUMNS}
    if not row.get(IN_COLUMNS):
        return found
    strings = _texts(found)
    try:
        messages = json.loads(row[IN_COLUMNS])
        texts = {name: [m or s for m, s in zip(messages[name], strings[name], strict=True)] for name in strings}
        agree = {name: [_joined(text) for text in texts[name]] == list(strings[name]) for name in strings}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        remedy = f"write the file again with `write_records`, or empty {IN_COLUMNS}"
        raise RecordError(place, IN_COLUMNS, "not what was written there", remedy, repr(error)) from None
    for name, same in agree.items():
        if not same:
            remedy = f"change both, or empty {IN_COLUMNS} to go by the text"
            raise RecordError(place, IN_COLUMNS, f"has other messages than the text of `{name}`", remedy)
    return found | _fields(texts)


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a row by field, `prompt` as a list of one."""
    prompt = {"prompt": [row["prompt"]]} if "prompt" in row else {}
    return prompt | {name: row[name] for name in ("outputs", "references") if row.get(name)}


def _fields(texts: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_texts`."""
    return {name: found[0] if name == "prompt" else found for name, found in texts.items()}


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)
