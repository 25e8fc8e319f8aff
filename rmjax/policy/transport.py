"""JSON over HTTP to a server that may stall, refuse, or talk without end. Standard library only; nothing is asked on import."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import json
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rmjax_client import pause

_AGAIN = (408, 425, 429)
"""Statuses below 500 after which the same request may succeed; of 5xx all may."""
_SHOWN = 300
"""Characters of a server's message that are kept."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class RequestFault(Exception):
    """A request without a usable reply.

    Attributes:
      reason: short, and the same for all requests with the same fault, to count by.
      said: what else is known, a server's message say.
      status: HTTP's; 0 where there is none.
      again: whether the same request may succeed later.
      after: seconds at the earliest, as the server asks.
    """

    def __init__(self, reason: str, said: str = "", status: int = 0, again: bool = False, after: float = 0.0):
        super().__init__(reason)
        self.reason, self.said, self.status, self.again, self.after = reason, said, status, again, after


@dataclasses.dataclass(frozen=True)
class Transport:
    """How a server is asked.

    Raises:
      ValueError: an address that is not http or https, or a number out of range.
    """

    url: str  # http:// or https://, up to where the routes begin; without a path it is …/v1
    key_variable: str = ""  # environment variable with the bearer token; empty = none is sent
    seconds: float = 300.0  # of a try, from connecting to the last byte of the reply
    tries: int = 4  # of a request, before its fault is final
    longest_pause: float = 60.0  # seconds between two tries, whatever the server asks for
    connections: int = 16  # requests at a time
    largest_reply: int = 64 * 2**20  # bytes

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {self.url!r}; give an address such as http://127.0.0.1:8000/v1")
        _ = parts.port  # ValueError where it is none
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError(f"url is {self.url!r}, with characters that no address has; correct it")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("url has a query, a fragment or a user; give the address alone, and a key by key_variable")
        if self.seconds <= 0 or self.longest_pause < 0 or min(self.tries, self.connections, self.largest_reply) < 1:
            raise ValueError(
                f"seconds={self.seconds}, longest_pause={self.longest_pause}, tries={self.tries}, "
                f"connections={self.connections}, largest_reply={self.largest_reply}; "
                "give seconds above 0, no pause below 0, and 1 or more of the others"
            )

    def address(self, route: str) -> str:
        """Of a route, such as "/chat/completions"."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}{route}"

    def key(self) -> str:
        """The bearer token; ValueError where the variable is not set, or holds what no header can."""
        if not self.key_variable:
            return ""
        found = os.environ.get(self.key_variable, "").strip()
        if not found:
            raise ValueError(f"the environment variable {self.key_variable} is not set; set it, or empty key_variable")
        if not (found.isascii() and found.isprintable()):
            raise ValueError(f"{self.key_variable} holds characters that no header can; set it to the key alone")
        return found


class Session(contextlib.AbstractContextManager):
    """Requests to one route, some at a time. Leaving it ends whatever still runs: at once, not when its time is up."""

    def __init__(self, transport: Transport, route: str):
        self._transport, self._address, self._key = transport, transport.address(route), transport.key()
        self._stopped = threading.Event()
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(transport.connections, thread_name_prefix="asking")

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        with self._lock:
            for connected in self._live:
                _cut(connected)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, ask: Callable[[_T], _R], parts: Iterable[_T]) -> list[_R]:
        """`ask` of all parts, in their order; the first error that one raises."""
        futures = [self._pool.submit(ask, part) for part in parts]
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]

    def post(self, body: Mapping[str, Any]) -> Any:
        """The reply's JSON, after as many tries as it takes; RequestFault where none succeeds."""
        data = json.dumps(body).encode()
        for attempt in range(self._transport.tries):
            try:
                return self._once(data)
            except RequestFault as fault:
                if not fault.again or attempt + 1 == self._transport.tries or self._stopped.is_set():
                    raise
                self._stopped.wait(pause(attempt, fault.after, self._transport.longest_pause))
        raise AssertionError("a try returns or raises")

    def _once(self, data: bytes) -> Any:
        status, text, after = self._exchange(data)
        if 300 <= status < 400:
            raise RequestFault(f"HTTP {status}", "a redirect, which is not followed", status)
        if not 200 <= status < 300:
            raise self._refusal(status, text, after)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestFault("the reply is not JSON", self._shown(text), again=True) from error
        fault = found.get("error") if isinstance(found, Mapping) and "choices" not in found else None
        if isinstance(fault, Mapping):
            code = fault.get("code")  # some gateways send a fault of the server behind them with status 200
            raise self._refusal(code if isinstance(code, int) and 400 <= code < 600 else 400, text, after)
        return found

    def _exchange(self, data: bytes) -> tuple[int, bytes, float]:
        """(status, body, seconds to wait as the server says) of one try."""
        seconds, most = self._transport.seconds, self._transport.largest_reply
        connection = _connection(self._address, seconds)
        with self._bounded(connection) as is_late:
            try:
                connection.request("POST", urllib.parse.urlsplit(self._address).path, data, self._headers())
                reply = connection.getresponse()
                text = reply.read(most + 1)
            except (OSError, http.client.HTTPException) as error:
                if is_late() or isinstance(error, TimeoutError):
                    raise RequestFault(f"no reply within {seconds:g} s", again=True) from error
                raise RequestFault(f"no connection ({type(error).__name__})", str(error), again=True) from error
            if is_late():
                raise RequestFault(f"no reply within {seconds:g} s", again=True)
            if len(text) > most:
                raise RequestFault(f"a reply above {most} bytes")
            return reply.status, text, retry_after(reply.headers.get("Retry-After", ""))

    @contextlib.contextmanager
    def _bounded(self, connection: http.client.HTTPConnection) -> Iterator[Callable[[], bool]]:
        """Connects, and cuts the connection when its time is up: a socket's own time-out begins anew with every byte."""
        late = threading.Event()
        connected: socket.socket | None = None

        def end() -> None:
            late.set()
            _cut(connected)

        timer = threading.Timer(self._transport.seconds, end)
        try:
            connection.connect()
            connected = connection.sock
            with self._lock:
                self._live.add(connected)
                if self._stopped.is_set():
                    _cut(connected)
            timer.daemon = True
            timer.start()
            yield late.is_set
        except TimeoutError as error:
            raise RequestFault(f"no reply within {self._transport.seconds:g} s", again=True) from error
        except OSError as error:
            raise RequestFault(f"no connection ({type(error).__name__})", str(error), again=True) from error
        finally:
            timer.cancel()
            with self._lock:
                self._live.discard(connected)  # type: ignore[arg-type]
            connection.close()

    def _headers(self) -> dict[str, str]:
        known = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        return known | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _refusal(self, status: int, text: bytes, after: float) -> RequestFault:
        code, message = _error(text)
        reason = f"HTTP {status} ({code})" if code else f"HTTP {status}"
        return RequestFault(reason, self._shown(message), status, status in _AGAIN or status >= 500, after)

    def _shown(self, text: str | bytes) -> str:
        """The beginning of a message, without the key that a server may repeat."""
        found = text.decode(errors="replace") if isinstance(text, bytes) else text
        return " ".join((found.replace(self._key, "***") if self._key else found).split())[:_SHOWN]


def _connection(address: str, seconds: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=seconds)


def _cut(connected: socket.socket | None) -> None:
    """Ends what another thread reads or writes there. TLS's own `shutdown` would take its state from under that thread."""
    if connected is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _error(text: bytes) -> tuple[str, str]:
    """(code, message) of an error's body, in the forms of OpenAI, vLLM and FastAPI; ("", the text) of others."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "", text.decode(errors="replace")
    outer = found if isinstance(found, Mapping) else {}
    error = outer.get("error", outer)
    if not isinstance(error, Mapping):
        return "", str(error)
    code = next((error[name] for name in ("code", "type") if isinstance(error.get(name), str)), "")
    message = error.get("message") or outer.get("detail") or text.decode(errors="replace")
    return (code if code.isprintable() else "")[:60], str(message)


def retry_after(given: str) -> float:
    """Seconds that the header of this name asks for, as a number or as a date; 0 where it is neither."""
    given = given.strip()
    if given.replace(".", "", 1).isdecimal():
        return float(given)
    try:
        until = email.utils.parsedate_to_datetime(given)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
