"""The generator that a name means, opened where it is first asked: what is on file needs none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated, Generator
from rmjax.sections import listed, number

if TYPE_CHECKING:
    from rmjax.evaluate.language import LanguageModel


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
      model: http://HOST/v1#MODEL, an endpoint of OpenAI's form; smollm2; or the folder of a language model.
      how: how replies are drawn.
    """

    model: str
    how: Generation = Generation()
    open: Callable[[str, Generation], Generator] | None = None  # in place of `open_generator`

    @property
    def name(self) -> str:
        """The model and how it draws: with another one, replies are others."""
        return f"{self.model} ({self.how})"

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
    return _endpoint(model, how) if model.startswith(("http://", "https://")) else _local(model, how)


def _endpoint(model: str, how: Generation) -> Generator:
    from rmjax.policy.endpoint import Endpoint
    from rmjax.policy.transport import Transport

    url, _, name = model.partition("#")
    if not name:
        raise ValueError(f"--model={model} names no model of the server; write http://HOST/v1#MODEL")
    transport = Transport(url, how.key_variable)
    return Endpoint(
        transport,
        name,
        temperature=how.temperature,
        top_p=how.top_p,
        max_tokens=how.max_new_tokens,
        log_probs=how.log_probs,
    )


def _local(model: str, how: Generation) -> Generator:
    """Imported late: an endpoint needs no model code."""
    from rmjax.data.formats import Encoder
    from rmjax.policy.local import LocalGenerator
    from rmjax.policy.sampling import Decoding

    found = language_model(model)
    encoder = Encoder(found.tokenizer, found.form, found.config.max_positions)
    decoding = Decoding(how.temperature, how.top_p)
    return LocalGenerator(found.config, found.params, encoder, decoding, how.max_new_tokens, model)


@functools.lru_cache(maxsize=2)
def language_model(model: str) -> LanguageModel:
    """A language model by name: one of a wheel, in its own chat template or else ChatML, or the folder of a run.

    Raises:
      FileNotFoundError, ValueError: there is none, or it cannot be loaded; says why.
    """
    from rmjax.data.formats import Format
    from rmjax.evaluate.language import LanguageModel
    from rmjax.hub.gguf import NAMED, gguf_path, load_gguf

    if model in NAMED:
        config, params, tokenizer = load_gguf(gguf_path(model))
        template = "" if tokenizer.chat_template else "chatml"
        form = Format(kind="chat", template=template, max_length=config.max_positions)
        return LanguageModel(config, params, tokenizer, form)
    if not Path(model).is_dir():
        raise FileNotFoundError(
            f"--model={model} is no folder; give http://HOST/v1#MODEL, {listed(list(NAMED))}, or the folder of a language model"
        )
    return LanguageModel.load(model)
