"""Load on a server, by asyncio alone: closed (so many clients, each with one request at a time) and open.

An open load sends at times drawn beforehand, whatever the server does, and counts a request's seconds from then on: a server
that stalls makes those wait that were due, which a closed load hides.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Seen = Callable[[int, int, bytes], None]
"""Told of each reply: number of the request, status (0 = none came), body."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where requests go."""

    port: int
    path: str
    host: str = "127.0.0.1"


class Connection:
    """One connection, kept; opened again where the server has closed it."""

    def __init__(self, target: Target):
        self.target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, number: int, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply; 0 where none came. The request's id is its number."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.target.host, self.target.port)
            reader, writer = self._streams
            head = f"POST {self.target.path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            return int(lines[0].split()[1]), await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, StopIteration):
            self.close()
            return 0, b""

    def close(self) -> None:
        """Closes it."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed(target: Target, bodies: Iterator[bytes], clients: int, seen: Seen) -> float:
    """Seconds in which the clients got all answers."""
    numbered, began = enumerate(bodies), time.monotonic()

    async def client() -> None:
        connection = Connection(target)
        for number, body in numbered:  # shared: each takes the next one
            seen(number, *await connection.post(number, body))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.monotonic() - began


async def opened(target: Target, bodies: Sequence[bytes], rate: float, seed: int, seen: Seen) -> list[float]:
    """Seconds of each request from when it was due, requests arriving at random, `rate` a second."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(bodies)))
    idle: list[Connection] = []
    seconds, began = [0.0] * len(bodies), time.monotonic()

    async def one(number: int) -> None:
        await asyncio.sleep(began + due[number] - time.monotonic())
        connection = idle.pop() if idle else Connection(target)
        seen(number, *await connection.post(number, bodies[number]))
        seconds[number] = time.monotonic() - began - due[number]
        idle.append(connection)

    await asyncio.gather(*map(one, range(len(bodies))))
    for connection in idle:
        connection.close()
    return seconds
