"""Texts of a row: strings or lists of messages, checked; and what a candidate holds that is not its own taken off."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.messages import ASSISTANT, SYSTEM, USER, Conversation, Message, messages_of, text_of

Notes = Counter[str]
"""What was done to the texts of a file's records, in words, and how often."""
_SYSTEM = (SYSTEM, "developer")
_NO_TEXT = "give each message a string `content` or a list of text parts"
_SAYS_NOTHING = ("tool_calls", "function_call")
"""Keys of a message that may go without content: a call of a tool."""
_ROLES = (USER, ASSISTANT, *_SYSTEM, "tool", "function")
_OTHER_NAMES = {
    "human": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
_COPIED = 12
"""Characters from which on a prompt at the start of an answer is no accident."""


def read_text(value: object, role: str, place: str, field: str, notes: Notes | None = None, blank: bool = False) -> str:
    """A string or a list of messages as a text; a message without a role is of `role`.

    Args:
      notes: counts the messages' keys beside role and content.
      blank: whether a text without characters but white space is allowed.

    Raises:
      RecordError: neither; a part that is not text; a lone surrogate; a blank text that is not allowed.
    """
    given = message_list(value)
    if isinstance(value, str):
        text: str = value
    elif given is not None:
        text = text_of([_message(one, role, place, field) for one in given], role)
    else:
        remedy = "give a string or a list of {role, content} messages"
        raise RecordError(place, field, "neither text nor messages", remedy, type(value).__name__)
    messages = messages_of(text, role)
    if not blank and not text.strip() and not any(message.more for message in messages):
        raise RecordError(place, field, "empty text", "fill it in or drop the record")
    for message in messages:
        require_encodable(message.content + message.more + message.role, place, field)
        if notes is not None:
            notes.update(f"messages' `{key}` kept; only chat templates read it" for key in message.others)
    return text


def require_encodable(text: str, place: str, field: str) -> None:
    """RecordError for half of a surrogate pair, which no tokenizer takes and no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        remedy = "remove the half of a \\ud800-\\udfff escape"
        raise RecordError(place, field, "text with a lone surrogate", remedy) from None


def message_list(value: object) -> list[Mapping[str, object]] | None:
    """The value if it is a list of message objects, else None."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        return list(value)
    return None


def _message(given: Mapping[str, object], role: str, place: str, field: str) -> Message:
    role_given = given.get("role", role)
    if not isinstance(role_given, str) or not role_given.strip():
        raise RecordError(place, field, "message with a role that is no word", "give user, assistant, system or tool")
    if "role" not in given and "from" in given:
        raise RecordError(
            place, field, "message with `from` instead of `role`",
            "rename `from` to `role` and `value` to `content`, with the roles user, assistant and system",
        )  # fmt: skip
    known = role_given.strip().lower()
    if role_given not in _ROLES and (known in _ROLES or known in _OTHER_NAMES):
        problem = "message with a role by another name"
        raise RecordError(place, field, problem, f"write {_OTHER_NAMES.get(known, known)!r}", repr(role_given))
    # Columnar files fill keys that a message lacks with nulls.
    others = {key: value for key, value in given.items() if key not in ("role", "content") and value is not None}
    try:
        more = json.dumps(others, ensure_ascii=False, allow_nan=False) if others else ""
    except (TypeError, ValueError) as error:
        raise RecordError(
            place, field, "message with a key that is not JSON", "remove or rename it", str(error)
        ) from None
    content = given.get("content")
    if content is None and any(others.get(key) for key in _SAYS_NOTHING):
        return Message(role_given, "", more)
    if content is None and others:
        keys = ", ".join(f"`{key}`" for key in others)
        raise RecordError(place, field, "message without text content", _NO_TEXT, f"it has {keys}"[:80])
    return Message(role_given, _content(content, place, field), more)


def _content(content: object, place: str, field: str) -> str:
    if isinstance(content, str):
        return content
    parts = message_list(content)
    if parts is None:
        raise RecordError(place, field, "message without text content", _NO_TEXT)
    texts = [part.get("text") if part.get("type", "text") == "text" else None for part in parts]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) != len(parts):
        other = next(part for part, text in zip(parts, texts, strict=True) if not isinstance(text, str))
        detail = f"a part of type {str(other.get('type', 'text'))!r:.40}"
        raise RecordError(place, field, "message part that is not text", "give text parts only", detail)
    return "\n".join(strings)


def read_answer(
    value: object, prompt: str, place: str, field: str, notes: Notes | None = None, blank: bool = False
) -> str:
    """A candidate or a reference as a text, without the copy of the prompt that it begins with.

    Copies that differ from the prompt by blanks at a turn's ends or by a system turn are copies; so is one whose last turn
    is the prompt's own last turn of the assistant, continued.

    Args:
      blank: whether a text without characters but white space is allowed: a policy may say nothing.

    Raises:
      RecordError: as `read_text`; or the answer begins with a turn that can only be of a prompt, but not of this one.
    """
    text = read_text(value, ASSISTANT, place, field, notes, blank)
    if not isinstance(text, Conversation):
        return text
    own, asked = text.messages, messages_of(prompt, USER)
    while (rest := _after_copy(own, asked)) is not None:
        own = rest
    if own is not text.messages and notes is not None:
        notes["copy of the prompt taken off an answer"] += 1
    if not any(message.content.strip() or message.more for message in own):
        raise RecordError(place, field, "empty text", "fill it in or drop the record", "nothing but the prompt")
    if own[0].role in (USER, *_SYSTEM):
        raise RecordError(
            place, field, "begins with a turn that is not its own",
            "give the answer's turns only, or as prompt exactly the messages that all answers begin with",
            f"of the {own[0].role}, and the prompt is another",
        )  # fmt: skip
    if notes is not None and any(message.role in (USER, *_SYSTEM) for message in own):
        notes["answers with turns of the user or system inside"] += 1
    return text_of(own, ASSISTANT)


def copied_prompts(prompt: str, answers: Sequence[str]) -> list[str]:
    """Notes on plain strings that begin with the whole prompt, which are kept: a text that continues it would begin so, too."""
    start = prompt.strip()
    begin = [str(answer).lstrip().startswith(start) for answer in answers]
    if len(start) < _COPIED or not any(begin):
        return []
    if all(begin):
        return ["answers that begin with the whole prompt, kept as they are; cut it off if it is a copy"]
    return [
        "some answers of a record begin with the whole prompt and others do not, which tells them apart; cut it off"
    ]


def _after_copy(answer: Sequence[Message], prompt: Sequence[Message]) -> tuple[Message, ...] | None:
    """The answer's messages behind the prompt's; None where it does not begin with them."""
    for cut in (lambda messages: messages, _without_system):
        ours, theirs = cut(tuple(prompt)), cut(tuple(answer))
        asks = any(message.role == USER for message in ours)
        if not asks or len(theirs) < len(ours) or not _alike(ours[:-1], theirs):
            continue
        last, copy = ours[-1], theirs[len(ours) - 1]
        if _alike([last], [copy]):
            return theirs[len(ours) :]
        if last.role == copy.role == ASSISTANT and copy.content.startswith(last.content):
            continued = Message(copy.role, copy.content[len(last.content) :], copy.more)
            return (continued, *theirs[len(ours) :])
    return None


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    first = next((i for i, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
    return messages[first:]


def _alike(ours: Sequence[Message], theirs: Sequence[Message]) -> bool:
    """Whether `theirs` begins with `ours`, whatever the blanks at their ends."""
    return len(theirs) >= len(ours) and all(
        (a.role, a.content.strip()) == (b.role, b.content.strip()) for a, b in zip(ours, theirs, strict=False)
    )


def without_answer(prompt: str, answers: Sequence[str], notes: Notes | None = None) -> str:
    """The prompt without a last turn of the assistant that is one of the answers: it stands there by mistake."""
    messages = messages_of(prompt, USER)
    last = messages[-1]
    if len(messages) < 2 or last.role != ASSISTANT or last.more or not last.content.strip():
        return prompt
    if last.content.strip() not in [str(answer).strip() for answer in answers]:
        return prompt
    if notes is not None:
        notes["an answer taken off the end of the prompt"] += 1
    return text_of(messages[:-1], USER)


def split_answer(value: object, place: str, field: str) -> tuple[list[Any], list[Any]]:
    """A list of messages as prompt and answer: from the last turn of the user or system on it is the assistant's.

    RecordError where the last turn is not the assistant's.
    """
    given = message_list(value)
    roles = [str(message.get("role")) for message in given or ()]
    if given is None or roles[-1] != ASSISTANT:
        raise RecordError(place, field, "does not end with a turn of the assistant", "add it, or give `output`")
    first = max((i + 1 for i, role in enumerate(roles) if role in (USER, *_SYSTEM)), default=0)
    return given[:first], given[first:]
