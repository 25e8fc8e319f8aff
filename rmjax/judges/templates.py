"""Prompts as data: TOML files of Jinja templates, rendered in a sandbox. No sentence that a judge reads stands in code."""

import dataclasses
import functools
import tomllib
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from rmjax.data.messages import SYSTEM, USER, Message, messages_of, text_of
from rmjax.sections import listed

PROMPTS = "prompts"


class PromptError(ValueError):
    """A file of prompts that cannot be used; the message names it and the key."""


@dataclasses.dataclass(frozen=True)
class Template:
    """One text with places for fields, in Jinja. A field's value is never rendered itself, whatever it says."""

    source: str
    place: str = "prompt"  # for errors: FILE: KEY

    def fields(self) -> set[str]:
        """The names that it reads. PromptError where it is no template."""
        try:
            return jinja2.meta.find_undeclared_variables(_environment().parse(self.source))
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(f"{self.place}, line {error.lineno}: {error.message}; correct the template") from None

    def checked(self, known: Collection[str], needed: Collection[str] = ()) -> "Template":
        """The template; PromptError where it reads a field that there is not, or does not read one that it needs."""
        read = self.fields()
        if unknown := sorted(read - set(known)):
            raise PromptError(
                f"{self.place} reads `{unknown[0]}`, which does not exist; there are {listed(sorted(known))}"
            )
        if lacking := sorted(set(needed) - read):
            raise PromptError(
                f"{self.place} does not read `{lacking[0]}`; write {{{{ {lacking[0]} }}}} where it belongs"
            )
        return self

    def render(self, **fields: Any) -> str:
        """The text with the fields' values, without blanks around it. PromptError where a field is missing."""
        try:
            return _compiled(self.source).render(**fields).strip()
        except jinja2.TemplateError as error:
            raise PromptError(f"{self.place}: {error}; correct the template") from None


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def conversation(system: str, user: str) -> str:
    """A prompt of a system's message, left out where it is empty, and a user's."""
    first = [Message(SYSTEM, system)] if system else []
    return text_of([*first, Message(USER, user)], USER)


def turns(prompt: str) -> list[dict[str, str]]:
    """A prompt's messages as a template reads them: `role` and `content` of each."""
    return [{"role": message.role, "content": message.content} for message in messages_of(prompt, USER)]


def read_prompts(name: str | Path) -> tuple[dict[str, Any], str]:
    """The tables of a file of prompts, and what errors call it.

    Args:
      name: one that ships, or a TOML file.

    Raises:
      FileNotFoundError: neither; the message has those that ship.
      PromptError: the file is no TOML.
    """
    shipped = resources.files("rmjax.judges") / PROMPTS
    for file in (shipped / f"{name}.toml", Path(name)):
        if file.is_file():
            try:
                return tomllib.loads(file.read_text(encoding="utf-8")), str(name)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise PromptError(f"{name} is no TOML: {error}; correct it") from None
    known = listed(sorted(file.name.removesuffix(".toml") for file in shipped.iterdir()))
    raise FileNotFoundError(f"{name}: no such prompts; give a TOML file, or one that ships: {known}")


def text_at(tables: Mapping[str, Any], key: str, place: str, default: str | None = None) -> Template:
    """The template at a key. PromptError where there is none and no default, or something else than text."""
    found = tables.get(key, default)
    if not isinstance(found, str) or (default is None and not found.strip()):
        raise PromptError(f"{place}: `{key}` is {'missing' if found is None else 'no text'}; give a template")
    return Template(found, f"{place}: {key}")
