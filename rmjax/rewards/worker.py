"""The other side of `deadline.InProcess`: `python -m rmjax.rewards.worker NAME OPTIONS` answers JSON lines with JSON lines.

What a verifier prints goes to the standard error stream, so that it cannot be taken for an answer.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rmjax.rewards.answers import SameNumber
from rmjax.rewards.reward import Failure, value_of
from rmjax.rewards.tasks import Task
from rmjax.rewards.texts import Matches

Asked = Mapping[str, Any]
"""`prompt`, `output`, `references`, and the record's `id`."""


def _simple(kind: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[[Asked], Any]]:
    def make(**options: Any) -> Callable[[Asked], Any]:
        verify = kind(**options)
        return lambda asked: verify(asked["prompt"], asked["output"], asked["references"])

    return make


VERIFIERS: dict[str, Callable[..., Callable[[Asked], Any]]] = {
    "number": _simple(SameNumber),
    "matches": _simple(Matches),
    "reasoning_gym": lambda **options: Task(**options).of,
}
"""Name → options → (what is asked → a value)."""


def made(name: str, options: Mapping[str, Any]) -> Callable[[Asked], Any]:
    """The verifier of a name; of `module:function` the function, which takes prompt, output, references, and the options by name.

    Raises:
      ValueError: no such name.
    """
    if name in VERIFIERS:
        return VERIFIERS[name](**options)
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"there is no such verifier; choose one of {', '.join(VERIFIERS)}, or name module:function")
    found = getattr(importlib.import_module(module), function)
    return lambda asked: found(asked["prompt"], asked["output"], asked["references"], **options)


def answer(verify: Callable[[Asked], Any], line: str) -> dict[str, Any]:
    """The reply to a line: {"value"} or {"failure"}."""
    try:
        value = value_of(verify(json.loads(line)))
    except Exception as error:  # anybody's code: one answer must not end the process
        value = Failure(type(error).__name__)
    return {"failure": value.reason} if isinstance(value, Failure) else {"value": value}


def serve(name: str, options: Mapping[str, Any], asked: TextIO, replies: TextIO) -> None:
    """Says whether the verifier is there, then answers every line."""

    def say(reply: Mapping[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        verify = made(name, options)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        say({"failure": str(error)})
        return
    say({"ready": True})
    for line in asked:
        say(answer(verify, line))


if __name__ == "__main__":
    own_replies, sys.stdout = sys.stdout, sys.stderr
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, own_replies)
