"""A generator that asks a server with OpenAI's routes: /chat/completions of messages, /completions of a text or token ids.

A request that fails to the end, and a choice that is no answer, drop their samples; the reasons are counted. What no sample can
get past (a wrong address, key or model) is an error.
"""

import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rmjax.data.messages import SYSTEM, USER, Message, messages_of, text_of
from rmjax.data.record import Comparison
from rmjax.policy.answers import answered
from rmjax.policy.generator import Generated
from rmjax.policy.policies import sequence_seed
from rmjax.policy.transport import RequestFault, Session, Transport

_log = logging.getLogger(__name__)
_LARGEST_ID = 2**31
_NO_N = (400, 422)
"""What servers say that refuse `n`, and to prompts that they do not take."""
_CUT_OFF = ("length", "max_tokens")
_NO_ANSWER = ("content_filter", "tool_calls", "function_call", "error", "abort", "cancelled")
REASONING = ("leave", "prepend")


class EndpointError(RuntimeError):
    """What no request to this endpoint can get past; the message has the server's own words."""


class Answer(NamedTuple):
    """One choice of a reply."""

    text: str
    truncated: bool
    ids: tuple[int, ...] | None = None  # None: the server gave none
    log_probs: tuple[float, ...] | None = None  # one for each id


class Missing(NamedTuple):
    """Why there is no answer, and what else is known of it."""

    reason: str
    said: str = ""


class _Part(NamedTuple):
    """Samples `first` to `first + size − 1` of a record, asked for in one request."""

    record: int
    first: int
    size: int


_OWN = {
    "model", "messages", "prompt", "n", "seed", "stream", "temperature", "top_p", "stop", "max_tokens", "max_completion_tokens",
    "logprobs",
}  # fmt: skip
"""Keys of a request that have fields of their own."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Answers of a model that a server has. Each call is a session of its own.

    Raises:
      ValueError: a value out of range, or a key of `more` that has a field of its own.
    """

    transport: Transport
    model: str
    name: str = ""  # of the policy; empty = the model's
    encode: Callable[[str], str | Sequence[int]] | None = None  # a prompt for /completions; None = /chat/completions
    system: str = ""  # put before every prompt, as a system message
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    max_tokens_key: str = "max_tokens"  # newer models of OpenAI want max_completion_tokens
    stop: tuple[str, ...] = ()
    seeded: bool = True  # a `seed` goes with every request, made of the seed, the record's id and the sample's number
    several: bool = True  # one request for all samples of a prompt, by `n`; those that do not come are asked for singly
    log_probs: bool = False
    reasoning: str = "leave"  # what the server gives as reasoning: left out | put before the answer in <think>…</think>
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # further keys of the request

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model is empty; give the name that the server knows it by")
        object.__setattr__(self, "name", self.name or self.model)
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, max_tokens={self.max_tokens}; give a temperature of 0 or "
                "more, top_p above 0 and at most 1, and max_tokens of 1 or more"
            )
        if self.reasoning not in REASONING:
            raise ValueError(f"reasoning is {self.reasoning!r}; choose {' or '.join(REASONING)}")
        if taken := _OWN & self.more.keys():
            raise ValueError(f"more has {', '.join(sorted(taken))}, which the request has already; remove it")

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """See `Generator`.

        Raises:
          EndpointError: the address, the key or the model is wrong.
          ValueError: less than one sample, or a key that is not set.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples}; it must be 1 or more")
        size = samples if self.several else 1
        parts = [_Part(i, first, size) for i in range(len(records)) for first in range(0, samples, size)]
        with Session(self.transport, self._route) as session:
            ask = functools.partial(self._part, session, records, seed)
            found = dict(zip(parts, session.each(ask, parts), strict=True))
            rest = [_Part(p.record, p.first + n, 1) for p in parts for n in range(len(found[p]), p.size)]
            if rest:
                message = "%s: %d samples did not come with others in one request; they are asked for singly"
                _log.warning(message, self.name, len(rest))
            found |= zip(rest, session.each(ask, rest), strict=True)
        outcomes: list[list[Answer | Missing]] = [[] for _ in records]
        for part, ones in found.items():
            outcomes[part.record] += ones
        return self._generated(records, outcomes)

    @property
    def _route(self) -> str:
        return "/chat/completions" if self.encode is None else "/completions"

    def _part(self, session: Session, records: Sequence[Comparison], seed: int, part: _Part) -> list[Answer | Missing]:
        """As many outcomes as were asked for; fewer, or none, where the rest is to be asked for singly."""
        try:
            reply = session.post(self._body(records[part.record], part, seed))
        except RequestFault as fault:
            if fault.status in (401, 404, 405) or 300 <= fault.status < 400:
                said = f"{fault.reason}: {fault.said}" if fault.said else fault.reason
                raise EndpointError(
                    f"{self.transport.address(self._route)}: {said}; correct the address, the key or the model {self.model!r}"
                ) from fault
            return [] if part.size > 1 and fault.status in _NO_N else [Missing(fault.reason, fault.said)] * part.size
        choices = reply.get("choices") if isinstance(reply, Mapping) else None
        if not isinstance(choices, list) or not choices:
            return [] if part.size > 1 else [Missing("the reply has no `choices`")]
        return [self._outcome(choice) for choice in choices[: part.size]]

    def _body(self, record: Comparison, part: _Part, seed: int) -> dict[str, Any]:
        messages = messages_of(record.prompt, USER)
        if self.system:
            messages = (Message(SYSTEM, self.system), *messages)
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            self.max_tokens_key: self.max_tokens,
        }
        if self.encode is None:
            body["messages"] = [message.as_row() for message in messages]
        else:
            given = self.encode(text_of(messages, USER))
            body["prompt"] = given if isinstance(given, str) else list(given)
        if self.log_probs:
            body["logprobs"] = True if self.encode is None else 1
        # Not all servers know every key: one that would change nothing is left out.
        if self.top_p < 1:
            body["top_p"] = self.top_p
        if self.stop:
            body["stop"] = list(self.stop)
        if part.size > 1:
            body["n"] = part.size
        if self.seeded:
            body["seed"] = sequence_seed(seed, record.id, self.name, part.first)
        return body | dict(self.more)

    def _outcome(self, choice: Any) -> Answer | Missing:
        if not isinstance(choice, Mapping):
            return Missing("a choice that is no object")
        ended = choice.get("finish_reason")
        message = choice if self.encode is not None else choice.get("message")
        if not isinstance(message, Mapping):
            return Missing("a choice without a message")
        if message.get("refusal"):
            return Missing("a refusal", str(message["refusal"]))
        if ended in _NO_ANSWER or message.get("tool_calls") or message.get("function_call"):
            return Missing(f"ended by {ended}" if ended in _NO_ANSWER else "a call of a tool")
        cut_off = ended in _CUT_OFF
        text = message.get("content" if self.encode is None else "text")
        if text is None and cut_off:  # it was still thinking
            text = ""
        if not isinstance(text, str):
            return Missing("null content" if text is None else "content that is no text")
        thought = message.get("reasoning_content") or message.get("reasoning")
        if self.reasoning == "prepend" and isinstance(thought, str) and thought:
            text = f"<think>\n{thought}" if cut_off and not text else f"<think>\n{thought}\n</think>\n\n{text}"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return Missing("text with a lone surrogate")
        tokens = _tokens(choice) if self.log_probs else None
        return Answer(text, cut_off, *(tokens or (None, None)))

    def _generated(self, records: Sequence[Comparison], outcomes: Sequence[Sequence[Answer | Missing]]) -> Generated:
        missing = [one for found in outcomes for one in found if isinstance(one, Missing)]
        said: dict[str, str] = {}
        for one in missing:
            said.setdefault(one.reason, one.said)
        dropped = Counter(one.reason for one in missing)
        for reason, count in dropped.items():
            more = f"; the first: {said[reason][:300]}" if said[reason] else ""
            _log.warning("%s: dropped %d samples: %s%s", self.name, count, reason, more)
        made, without = [], 0
        for record, found in zip(records, outcomes, strict=True):
            if answers := [one for one in found if isinstance(one, Answer)]:
                columns, whole = _columns(answers, self.log_probs)
                without += 0 if whole else len(answers)
                made.append(answered(record, [one.text for one in answers], self.name, columns))
        several = [record.outputs for record in made if len(record.outputs) > 1]
        if self.temperature > 0 and len(several) > 1 and all(len(set(outputs)) == 1 for outputs in several):
            message = (
                "%s: a prompt's answers are all the same, for %d prompts, at temperature %g: the server may not draw"
            )
            _log.warning(message, self.name, len(several), self.temperature)
        if without:
            message = "%s: %d answers have no `token_ids` and `log_probs`: the server did not give both for every token"
            _log.warning(message, self.name, without)
        return Generated(made, dropped)


def _columns(answers: Sequence[Answer], log_probs: bool) -> tuple[dict[str, Any], bool]:
    """The columns of a record's answers, and whether they have all that was asked for."""
    found: dict[str, Any] = {"truncated": tuple(float(one.truncated) for one in answers)}
    if not log_probs:
        return found, True
    if any(one.ids is None for one in answers):
        return found, False
    return found | {
        "token_ids": tuple(one.ids for one in answers), "log_probs": tuple(one.log_probs for one in answers)
    }, True  # fmt: skip


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """(token ids, their log-probabilities); None where the server did not give both for every token.

    Ids are `token_ids` of the choice (vLLM), `id` of each token (llama.cpp), or its text, `token_id:ID` (vLLM).
    """
    given: Any = choice.get("logprobs") or {}
    try:
        if given.get("content") is not None:
            log_probs = [entry["logprob"] for entry in given["content"]]
            own = [entry.get("id", entry.get("token")) for entry in given["content"]]
        else:
            log_probs, own = given["token_logprobs"], given["tokens"]
        ids = tuple(_id(one) for one in choice.get("token_ids") or own)
        values = tuple(float(value) for value in log_probs)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    good = len(ids) == len(values) and all(map(math.isfinite, values)) and all(0 <= i < _LARGEST_ID for i in ids)
    return (ids, values) if good else None


def _id(given: Any) -> int:
    """ValueError where it is none."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    return int(str(given).removeprefix("token_id:")) if str(given).startswith("token_id:") else int("")
