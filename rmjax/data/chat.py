"""Chat templates: messages to token ids through a Jinja template, as the hub stores it and `transformers` renders it.

What a message says never becomes a special token: where it spells one, a placeholder goes through the template in its
stead, and only the template's own special tokens are looked up.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from rmjax.data.messages import ASSISTANT, USER, Message
from rmjax.data.tokenizer import Tokenizer

TEMPLATES = "templates"
_OPEN = "\ue000"  # ends what is known of an unfinished turn; private use, as the placeholders
_PLACEHOLDERS = range(0xE001, 0xF8FF)


class TemplateError(ValueError):
    """A template that cannot be read or rendered, or one that refuses a conversation."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training on it alone; it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_text(name: str) -> str:
    """The text of a template: a shipped one by name, a file, or the text itself.

    Raises:
      FileNotFoundError: neither; the message names those that ship.
    """
    if "{%" in name or "{{" in name:
        return name
    shipped = resources.files("rmjax.data") / TEMPLATES
    for file in (shipped / f"{name}.jinja", Path(name)):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    known = ", ".join(sorted(file.name.removesuffix(".jinja") for file in shipped.iterdir()))
    raise FileNotFoundError(f"{name}: no such template; format.template is a .jinja file, or one that ships: {known}")


def written(source: str, messages: Sequence[Message], asked: bool = False) -> str:
    """The text of messages in a template that needs no token given; `asked`: up to where the assistant speaks."""
    return _render(source, [message.as_row() for message in messages], add_generation_prompt=asked)


def end_of_turn(source: str, tokenizer: Tokenizer) -> str:
    """The special token that the template writes behind the assistant's turn; "" where it writes none."""
    answer = "a" * 16
    probe = [{"role": USER, "content": "q"}, {"role": ASSISTANT, "content": answer}]
    written = _render(source, probe, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    behind = tokenizer.split(written.rpartition(answer)[2])
    return next((part for part in behind if part in tokenizer.special), "")


def between_turns(source: str, tokenizer: Tokenizer) -> list[str]:
    """Added tokens, special or not, that the template writes around turns: what a user could forge a turn with. What it writes
    for the assistant's last answer alone, as `<think>`, is the model's own to write, and no part of them."""
    rows = [Message(role, "q").as_row() for role in (USER, ASSISTANT, USER)]
    try:
        text = _render(source, rows, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    except TemplateError:
        return []
    return [token for token in tokenizer.added if len(token) > 1 and token in text]


class Chat:
    """A template with the tokens that it needs, for one tokenizer.

    Args:
      source: Jinja text.
      end_token: ends the assistant's turn.
      bos_token, eos_token: the template's; no other beginning of text is added. Without an `eos_token` it is `end_token`.
      date: ISO date that the template's `strftime_now` tells; a score must not depend on the day.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        end_token: str,
        bos_token: str = "",
        date: str = "",
        eos_token: str = "",
    ):
        self.source, self.tokenizer, self.end_token, self.date = source, tokenizer, end_token, date
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token or end_token}
        self._spelled = re.compile(
            "|".join(map(re.escape, sorted(tokenizer.special, key=len, reverse=True))) or r"(?!)"
        )

    def ended(self, messages: Sequence[Message], whole: bool = False) -> list[int]:
        """Ids of a conversation up to the end token of its last turn, which is added where the template does not end with it.

        Args:
          whole: all that the template writes and nothing else: what stands behind the end token stays, and none is added.

        Raises:
          TemplateError: the template refuses the conversation.
        """
        text, restore = self._rendered(messages)
        if whole:
            return self._ids(text, restore)
        before, end, behind = text.rpartition(self.end_token)
        if not end or not self.is_behind(behind):  # the template itself does not end with it
            return [*self._ids(text, restore), self.tokenizer.id(self.end_token)]
        return self._ids(before + end, restore)

    def is_behind(self, text: str) -> bool:
        """Whether this may stand behind the end token of a last turn: blanks, an end of text."""
        return not text.replace(self._tokens["eos_token"], "").strip()

    def begun(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant goes on: in a new turn, or in its own last one."""
        if messages and messages[-1].role == ASSISTANT and not messages[-1].more:
            last = Message(ASSISTANT, messages[-1].content + _OPEN)
            text, restore = self._rendered([*messages[:-1], last])
            return self._ids(text.partition(_OPEN)[0], restore)
        return self._ids(*self._rendered(messages, add_generation_prompt=True))

    def closed(self, messages: Sequence[Message]) -> list[int]:
        """Ids of whole turns, as they stand before others."""
        return self._ids(*self._rendered(messages)) if messages else []

    def _rendered(self, messages: Sequence[Message], **more: Any) -> tuple[str, Callable[[str], str]]:
        """The text, and what gives back what its placeholders stand for."""
        rows = [message.as_row() for message in messages]
        if not any(self._spelled.search(message.role + message.content + message.more) for message in messages):
            return _render(self.source, rows, self.date, **self._tokens, **more), str
        everything = json.dumps(rows, ensure_ascii=False)
        mark = next(chr(code) for code in _PLACEHOLDERS if chr(code) not in everything)
        number = {token: f"{mark}{i}{mark}" for i, token in enumerate(self.tokenizer.special)}
        hidden = _each_text(rows, lambda text: self._spelled.sub(lambda found: number[found[0]], text))
        marks = re.compile(f"{mark}(\\d+){mark}")

        def restore(text: str) -> str:
            return marks.sub(lambda found: self.tokenizer.special[int(found[1])], text)

        return _render(self.source, hidden, self.date, **self._tokens, **more), restore

    def _ids(self, text: str, restore: Callable[[str], str]) -> list[int]:
        return self.tokenizer.encode_marked(text, restore)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _each_text(item, change) for key, item in value.items()}
    return [_each_text(item, change) for item in value] if isinstance(value, list) else value


def _render(source: str, rows: list[dict[str, Any]], date: str = "", **names: Any) -> str:
    today = datetime.date.fromisoformat(date) if date else datetime.date.today()
    given = {"add_generation_prompt": False, "tools": None, "documents": None} | names
    try:
        return _compiled(source).render(messages=rows, strftime_now=today.strftime, **given)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template refuses the conversation ({error})") from error
    except Exception as error:  # a template calls methods of strings, lists and numbers, which raise what they like
        raise TemplateError(f"the chat template refuses the conversation ({type(error).__name__}: {error})") from error


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"format.template, line {error.lineno}: {error.message}; correct the template") from error


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
) -> str:
    # jinja2's own would escape characters for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
