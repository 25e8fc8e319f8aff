"""The bounded queue, and the one thread in which the model runs."""

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rmjax.serve.ladder import Batch
from rmjax.serve.outcomes import Refused

_log = logging.getLogger(__name__)
WINDOW = 1024
"""Sequences, the oldest ones, among which common beginnings are looked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Waiting:
    """A sequence in the queue."""

    key: bytes
    reward: "asyncio.Future[np.ndarray | Refused]"


class Batcher:
    """Sequences → rewards, in batches of whatever waits.

    Args:
      plan: keys of waiting sequences → the next batch.
      run: batch → key → reward. Both are called in one thread, never at the same time.
      limit: sequences that may wait; more are refused with 503.
      wait: seconds that the first of a batch waits for others while the model is idle.
      ran: told of each batch with its seconds.
    """

    def __init__(
        self,
        plan: Callable[[Sequence[bytes]], Batch],
        run: Callable[[Batch], dict[bytes, np.ndarray]],
        limit: int,
        wait: float,
        ran: Callable[[Batch, float], None] = lambda batch, seconds: None,
    ):
        self._plan, self._run, self.limit, self._wait, self._ran = plan, run, limit, wait, ran
        self._waiting: list[Waiting] = []
        self._some = asyncio.Event()
        self._rate = 0.0  # sequences a second, lately
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        """Sequences in the queue that somebody still wants."""
        return len(self._alive())

    async def rewards(self, keys: Sequence[bytes]) -> list[np.ndarray | Refused]:
        """The reward of each, or that the model failed on its batch. Who is cancelled while waiting takes its sequences out of
        the queue.

        Raises:
          Refused: the queue is full, or more is asked at once than it holds.
        """
        if len(keys) > self.limit:
            raise Refused(
                413, f"the request has {len(keys)} texts, and the queue holds {self.limit}; send fewer at once"
            )
        if len(keys) + self.waiting > self.limit:
            raise Refused(503, f"{self.waiting} texts wait, of {self.limit} at most; try again later", self._soon())
        loop = asyncio.get_running_loop()
        mine = [Waiting(key, loop.create_future()) for key in keys]
        self._waiting += mine
        self._some.set()
        try:
            return await asyncio.gather(*(each.reward for each in mine))
        finally:
            for each in mine:
                each.reward.cancel()

    async def work(self) -> None:
        """Runs batches until it is cancelled."""
        while True:
            if not self._alive():
                self._some.clear()
                await self._some.wait()
                await asyncio.sleep(self._wait)
            window = self._alive()[:WINDOW]
            if window:
                await self._batch(window)

    def close(self) -> None:
        """Ends the thread, after the batch that it is at."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _alive(self) -> list[Waiting]:
        self._waiting = [each for each in self._waiting if not each.reward.done()]
        return self._waiting

    async def _batch(self, window: Sequence[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        batch = await loop.run_in_executor(self._thread, self._plan, [each.key for each in window])
        keys, began = set(batch.keys), time.monotonic()
        mine = [each for each in window if each.key in keys]
        try:
            found = await loop.run_in_executor(self._thread, self._run, batch)
        except Exception as error:  # whatever XLA raises: those who asked are told, and the next batch is run
            _log.exception("a batch of %d texts failed", len(keys))
            self._fail(mine, error)
            return
        seconds = time.monotonic() - began
        self._rate = 0.8 * self._rate + 0.2 * len(mine) / max(seconds, 1e-6)
        self._ran(batch, seconds)
        for each in mine:
            if not each.reward.done():
                each.reward.set_result(found[each.key])

    @staticmethod
    def _fail(these: Sequence[Waiting], error: Exception) -> None:
        reason = f"the model failed on the batch of this text ({type(error).__name__}); the server's log has more"
        for each in these:
            if not each.reward.done():
                each.reward.set_result(Refused(500, reason))

    def _soon(self) -> int:
        """Seconds until what waits is done, as it goes lately; 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting / self._rate))) if self._rate else 1
