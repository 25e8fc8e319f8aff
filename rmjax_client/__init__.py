"""Client of the reward server (docs/serving.md). Needs Python alone: no jax, no other package.

    from rmjax_client import Client

    client = Client("http://127.0.0.1:8000")
    client.rewards([{"prompt": "2 + 2 = ?", "reference": "It is 4.", "output": "4"}])

One client keeps its connections and may be used by many threads. `adapters` makes trainers' reward functions of it.
"""

import http.client
import json
import os
import queue
import random
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Client", "RewardError"]
TOKEN = "RMJAX_SERVE_TOKEN"
AGAIN = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed. All other 4xx are final."""


class RewardError(RuntimeError):
    """There is no reward, and the message says why.

    Attributes:
      status: HTTP's, 0 where the server was not reached.
    """

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Client:
    """Asks one server.

    Args:
      url: http:// or https://, host, port.
      token: bearer token; RMJAX_SERVE_TOKEN of the environment where none is given.
      connections: requests at once at most.
      attempts: of a request, before it is given up.
      timeout: seconds of silence after which an attempt has failed.
      records: in a request at most.

    Raises:
      ValueError: another kind of URL, or less than one connection, attempt or record.
    """

    def __init__(
        self, url: str, token: str | None = None, connections: int = 16, attempts: int = 8, timeout: float = 120.0,
        records: int = 64,
    ):  # fmt: skip
        self._url = urllib.parse.urlsplit(url)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address; give one, such as http://127.0.0.1:8000")
        if min(connections, attempts, records) < 1:
            raise ValueError(
                f"connections={connections}, attempts={attempts}, records={records}: each must be 1 or more"
            )
        self._token = os.environ.get(TOKEN, "") if token is None else token
        self._attempts, self._timeout, self._records = attempts, timeout, records
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        for _ in range(connections):
            self._idle.put(self._connection())
        self._closed = False
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="rewards")

    def rewards(self, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """The reward of each record with one `output` (or `messages` alone), in their order.

        Raises:
          RewardError: one has none; the message says which one and why.
        """
        found = []
        for i, result in enumerate(self.results(records)):
            if "error" in result:
                raise RewardError(f"record {i}: {result['error']['message']}", result["error"]["code"])
            found.append(_only(i, result))
        return found

    def rewards_or_none(self, records: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The same with None for a record that has no reward. A server that is not reached is still an error."""
        return [None if "error" in result else _only(i, result) for i, result in enumerate(self.results(records))]

    def results(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What /v1/reward says of each record: {"rewards", "tokens", "truncated"} with a number per answer, or {"error"}.

        Raises:
          RewardError: the server refuses the request as a whole, sends another number of results, or is not reached after all
            attempts.
        """
        parts = [records[i : i + self._records] for i in range(0, len(records), self._records)]
        replies = self._threads.map(lambda part: self.post("/v1/reward", {"records": list(part)}), parts)
        found = []
        for part, reply in zip(parts, replies, strict=True):
            if len(reply["results"]) != len(part):
                raise RewardError(f"the server sent {len(reply['results'])} results for {len(part)} records")
            found += reply["results"]
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON reply of a route.

        Raises:
          RewardError: as `results`.
          ValueError: the client is closed.
        """
        if self._closed:
            raise ValueError("the client is closed; make another")
        text = json.dumps(body).encode()
        connection = self._idle.get()
        try:
            return self._persist(connection, self._url.path.rstrip("/") + path, text)
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Closes all connections, for good."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def _persist(self, connection: http.client.HTTPConnection, path: str, text: bytes) -> Any:
        for attempt in range(self._attempts):
            status, answer, after = self._once(connection, path, text)
            if status == 200:
                return json.loads(answer)
            if status and status not in AGAIN:
                break
            if attempt + 1 < self._attempts:
                time.sleep(pause(attempt, after))
        raise RewardError(f"{self._url.netloc}{path}: {_reason(status, answer)}", status)

    def _once(self, connection: http.client.HTTPConnection, path: str, text: bytes) -> tuple[int, bytes, float]:
        """Status (0: not reached), what was said, and how many seconds the server wants to be left alone."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._token}"} if self._token else {}
        )
        try:
            connection.request("POST", path, text, headers)
            reply = connection.getresponse()
            after = reply.headers.get("Retry-After", "")
            return reply.status, reply.read(), float(after) if after.isdecimal() else 0.0
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next request opens it again
            return 0, f"{type(error).__name__}: {error}".encode(), 0.0

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=self._timeout)


def _only(i: int, result: Mapping[str, Any]) -> float:
    if len(result["rewards"]) != 1:
        raise RewardError(f"record {i} has {len(result['rewards'])} answers; ask for `results`, or give one `output`")
    return result["rewards"][0]


def pause(attempt: int, after: float, most: float = 30.0) -> float:
    """Seconds before the next attempt: what the server asks for, and up to 0.2 · 2ᵃ more, drawn anew so that clients that were
    refused together do not come back together."""
    return min(most, after) + random.uniform(0.0, min(most, 0.2 * 2**attempt))


def _reason(status: int, answer: bytes) -> str:
    if not status:
        return answer.decode()
    try:
        return f"{status}: {json.loads(answer)['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return f"{status}: {answer[:200].decode(errors='replace')}"
