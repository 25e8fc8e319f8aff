"""A reward server over HTTP as a reward: rmjax's own route or OpenRLHF's form. Standard library only.

An item that the server refuses, and a request that fails to the end, are failures of these outputs alone. There is no default
reward.
"""

import dataclasses
import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rmjax.data.record import Comparison, to_row
from rmjax.rewards.reward import Failure, Values, checked

DIALECTS = ("native", "open_rlhf")
_LARGEST_REPLY = 64 * 2**20
"""Bytes."""
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class ServerFault(Exception):
    """A request without a usable reply; `again` says whether another try may help, `after` how many seconds at the earliest."""

    def __init__(self, reason: str, again: bool = False, after: float = 0.0):
        super().__init__(reason)
        self.reason, self.again, self.after = reason, again, after


@dataclasses.dataclass(frozen=True)
class Server:
    """Rewards from an address.

        native     POST {"records": [row]} → {"results": [{"index", "rewards"} or {"index", "error": {"message"}}]}
        open_rlhf  POST {"query": [prompt + output], "prompts": [prompt], "labels": [reference]} → {"rewards": [number]}

    Raises:
      ValueError: an address that is not http or https, another dialect, a number out of range.
    """

    url: str
    dialect: str = "native"
    seconds: float = 60.0  # to connect, and between two parts of a reply
    tries: int = 3
    wait: float = 1.0  # seconds before the second try, doubled before each further one, up to as much again at random
    batch: int = 16  # outputs a request at most (one record at least)
    workers: int = 4  # requests at a time

    def __post_init__(self) -> None:
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url is {self.url!r}; give an address that begins with http:// or https://")
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect is {self.dialect!r}; choose {' or '.join(DIALECTS)}")
        if self.seconds <= 0 or self.wait < 0 or min(self.tries, self.batch, self.workers) < 1:
            raise ValueError(f"{self}: want seconds > 0, wait >= 0, and tries, batch and workers of 1 or more")

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        requests = list(_batches(records, self.batch))
        with ThreadPoolExecutor(self.workers) as pool:
            found = list(pool.map(self._one, requests))
        return checked(records, [values for part in found for values in part], self.name)

    def _one(self, records: Sequence[Comparison]) -> list[list[object]]:
        asked, read = _DIALECTS[self.dialect]
        try:
            return read(self._reply(asked(records)), records)
        except ServerFault as fault:
            return [[Failure(fault.reason)] * len(c.outputs) for c in records]

    def _reply(self, body: Mapping[str, Any]) -> Any:
        """The reply, after as many tries as it takes. ServerFault where none succeeds."""
        for number in range(1, self.tries + 1):
            try:
                return _post(self.url, body, self.seconds)
            except ServerFault as fault:
                if not fault.again or number == self.tries:
                    raise
                pause = self.wait * 2 ** (number - 1) * (1 + random.random())
                time.sleep(max(pause, min(fault.after, self.seconds)))
        raise AssertionError("a try returns or raises")


def _batches(records: Sequence[Comparison], size: int) -> list[list[Comparison]]:
    found: list[list[Comparison]] = []
    room = 0
    for c in records:
        if not found or len(c.outputs) > room:
            found.append([])
            room = size
        found[-1].append(c)
        room -= len(c.outputs)
    return found


def _post(url: str, body: Mapping[str, Any], seconds: float) -> Any:
    data = json.dumps(body, ensure_ascii=True).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            text = reply.read(_LARGEST_REPLY + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ServerFault(f"HTTP {error.code}", error.code in _TRY_AGAIN, _seconds(error.headers)) from error
    except TimeoutError as error:
        raise ServerFault("the server timed out", again=True) from error
    except (OSError, http.client.HTTPException) as error:
        timed_out = isinstance(getattr(error, "reason", None), TimeoutError)
        raise ServerFault("the server timed out" if timed_out else "no connection", again=True) from error
    if len(text) > _LARGEST_REPLY:
        raise ServerFault("the reply is too large")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerFault("the reply is not JSON") from error


def _seconds(headers: Any) -> float:
    """`Retry-After` where it is a number."""
    given = (headers or {}).get("Retry-After", "")
    return float(given) if given.isdecimal() else 0.0


# --- dialects -----------------------------------------------------------------------------------------------------------


def _ask_native(records: Sequence[Comparison]) -> dict[str, Any]:
    return {"records": [to_row(dataclasses.replace(c, columns={}, ranks=None, scores=None)) for c in records]}


def _read_native(reply: Any, records: Sequence[Comparison]) -> list[list[object]]:
    results = reply.get("results") if isinstance(reply, Mapping) else None
    if not isinstance(results, list):
        raise ServerFault("the reply has no `results`")
    by_index = {each.get("index"): each for each in results if isinstance(each, Mapping)}
    return [_result(by_index.get(i), len(c.outputs)) for i, c in enumerate(records)]


def _result(result: Mapping[str, Any] | None, count: int) -> list[object]:
    if result is None:
        return [Failure("the reply lacks this record")] * count
    if "error" in result:
        error = result["error"]
        return [Failure(f"the server: {error.get('message', '') if isinstance(error, Mapping) else error}")] * count
    rewards = result.get("rewards")
    if not isinstance(rewards, list) or len(rewards) != count:
        return [Failure("the reply has another number of rewards")] * count
    return list(rewards)


def _ask_open_rlhf(records: Sequence[Comparison]) -> dict[str, Any]:
    items = [(c.prompt, output, _label(c)) for c in records for output in c.outputs]
    return {
        "query": [prompt + output for prompt, output, _ in items], "prompts": [prompt for prompt, _, _ in items],
        "labels": [label for *_, label in items],
    }  # fmt: skip


def _label(c: Comparison) -> str | list[str]:
    """The reference, or a list of several, as our own server reads them."""
    return list(c.references) if len(c.references) > 1 else "".join(c.references)


def _read_open_rlhf(reply: Any, records: Sequence[Comparison]) -> list[list[object]]:
    rewards, count = reply.get("rewards") if isinstance(reply, Mapping) else None, sum(len(c.outputs) for c in records)
    if not isinstance(rewards, list) or len(rewards) != count:
        raise ServerFault("the reply has another number of rewards")
    values = iter(rewards)
    return [[next(values) for _ in c.outputs] for c in records]


_Asked = Callable[[Sequence[Comparison]], dict[str, Any]]
_Read = Callable[[Any, Sequence[Comparison]], list[list[object]]]
_DIALECTS: dict[str, tuple[_Asked, _Read]] = {
    "native": (_ask_native, _read_native),
    "open_rlhf": (_ask_open_rlhf, _read_open_rlhf),
}
