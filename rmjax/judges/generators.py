"""The generator that a name means, opened where it is first asked: what is on file needs none."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated, Generator
from rmjax.sections import listed, number

WORKERS = 16
"""Requests to a server at a time."""
_SERVER = ("http://", "https://")


@dataclasses.dataclass(frozen=True)
class Generation:
    """How replies are drawn."""

    temperature: float = number(0.0, low=0.0)  # 0: the most likely token each time, so that several votes are one
    top_p: float = number(1.0, above=0.0, high=1.0)  # nucleus mass
    max_new_tokens: int = number(512, low=1)  # of a reply
    log_probs: bool = False  # an endpoint is asked for them; our own generators give them always
    key_variable: str = ""  # environment variable that holds an endpoint's bearer token; empty: none is sent

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}, top_p {self.top_p:g}, {self.max_new_tokens} tokens"


@dataclasses.dataclass(frozen=True)
class Named:
    """A generator by its name, with the same replies however often it is opened.

    Args:
      model: http://HOST/v1#MODEL, an endpoint of OpenAI's form; or as `config.local.init`: smollm2, a .gguf file, the
        folder of a language model.
      how: how replies are drawn.
    """

    model: str
    how: Generation = Generation()
    open: Callable[[str, Generation], Generator] | None = None  # in place of `open_generator`

    @property
    def name(self) -> str:
        """The model and how it draws: with another one, replies are others."""
        return f"{self.model} ({self.how})"

    @property
    def workers(self) -> int:
        """How many calls at a time: several of a server, which batches them itself."""
        return WORKERS if self.model.startswith(_SERVER) else 1

    @functools.cached_property
    def opened(self) -> Generator:
        """The generator itself."""
        return (self.open or open_generator)(self.model, self.how)

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """See `Generator`."""
        return self.opened(records, samples, seed)


def open_generator(model: str, how: Generation) -> Generator:
    """A generator by name, as `Named` takes it.

    Raises:
      FileNotFoundError, ValueError: there is none, or it cannot be loaded; says why.
    """
    return _endpoint(model, how) if model.startswith(_SERVER) else _local(model, how)


def _endpoint(model: str, how: Generation) -> Generator:
    from rmjax.generators import KINDS, AskingSection, EndpointSection

    url, _, name = model.partition("#")
    if not name:
        raise ValueError(f"--model={model} names no model of the server; write http://HOST/v1#MODEL")
    section = EndpointSection(
        model=name, temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_new_tokens, log_probs=how.log_probs
    )
    return KINDS["endpoint"].make(section, AskingSection(url=url, key_variable=how.key_variable), name)


def _local(model: str, how: Generation) -> Generator:
    """Imported late: what is on file needs no model code."""
    from rmjax.generators import KINDS, AskingSection, LocalSection
    from rmjax.hub.gguf import NAMED

    if model not in NAMED and not Path(model).exists():
        raise FileNotFoundError(
            f"--model={model} is not there; give http://HOST/v1#MODEL, {listed(list(NAMED))}, a .gguf file, or a run's folder"
        )
    section = LocalSection(init=model, temperature=how.temperature, top_p=how.top_p, max_new_tokens=how.max_new_tokens)
    return KINDS["local"].make(section, AskingSection(), model)
