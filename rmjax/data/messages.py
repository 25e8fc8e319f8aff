"""Messages: who said what. A record's text is a string; one that was given as messages also keeps them.

A plain string is one message of the user's where it is a prompt and of the assistant's where it is an answer, so a list of
just that message is the string, and a text has one form only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

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


def conversations(texts: Iterable[str]) -> int:
    """How many of the texts were given as messages."""
    return sum(isinstance(text, Conversation) for text in texts)


def as_value(text: str) -> str | list[dict[str, Any]]:
    """A text as a field of a row: the string, or the list of messages."""
    return [message.as_row() for message in text.messages] if isinstance(text, Conversation) else text
