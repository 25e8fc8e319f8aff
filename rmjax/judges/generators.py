"""The generator that a name means, opened where it is first asked: what is on file needs none."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated, Generator
from rmjax.sections import number


@dataclasses.dataclass(frozen=True)
class Generation:
    """How replies are drawn."""

    temperature: float = number(0.0, low=0.0)  # 0: the most likely token each time, so that several votes are one
    top_p: float = number(1.0, above=0.0, high=1.0)  # nucleus mass
    max_new_tokens: int = number(512, low=1)  # of a reply
    key_variable: str = ""  # environment variable that holds an endpoint's bearer token; empty: none is sent

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}, top_p {self.top_p:g}, {self.max_new_tokens} tokens"


@dataclasses.dataclass(frozen=True)
class Named:
    """A generator by its name, with the same replies however often it is opened.

    Args:
      model: http://HOST/v1#MODEL, an endpoint of OpenAI's form; smollm2; or the folder of a language model.
      how: how replies are drawn.
      open: what opens it.
    """

    model: str
    how: Generation = Generation()
    open: Callable[[str, Generation], Generator] = dataclasses.field(default=lambda m, how: open_generator(m, how))

    @property
    def name(self) -> str:
        """The model and how it draws: with another one, replies are others."""
        return f"{self.model} ({self.how})"

    @functools.cached_property
    def opened(self) -> Generator:
        """The generator itself."""
        return self.open(self.model, self.how)

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """See `Generator`."""
        return self.opened(records, samples, seed)


def open_generator(model: str, how: Generation) -> Generator:
    """A generator by name, as `Named` takes it.

    Raises:
      FileNotFoundError, ValueError: there is none, or it cannot be loaded; says why.
    """
    if model.startswith(("http://", "https://")):
        return _endpoint(model, how)
    return _local(model, how)
