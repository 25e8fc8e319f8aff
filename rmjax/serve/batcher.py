"""The bounded queue, and the threads in which the model runs."""

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
      plan: keys of waiting sequences → the next batch; never called twice at the same time.
      run: batch → key → reward.
      limit: sequences that may wait; more are refused with 503.
      wait: seconds that the first of a batch waits for others while nothing else waits.
      ran: told of each batch with its seconds.
      at_once: batches that run at the same time, so that one is planned, filled and read while the other computes. With 1,
        `plan` and `run` are called in one thread.
    """

    def __init__(
        self,
        plan: Callable[[Sequence[bytes]], Batch],
        run: Callable[[Batch], dict[bytes, np.ndarray]],
        limit: int,
        wait: float,
        ran: Callable[[Batch, float], None] = lambda batch, seconds: None,
        at_once: int = 1,
    ):
        self._plan, self._run, self.limit, self._wait, self._ran = plan, run, limit, wait, ran
        self._at_once = at_once
        self._waiting: list[Waiting] = []
        self._running: set[Waiting] = set()
        self._some, self._slots = asyncio.Event(), asyncio.Semaphore(at_once)
        self._rate = 0.0  # sequences a second of one batch, lately
        self._model = ThreadPoolExecutor(at_once, thread_name_prefix="model")
        self._planner = self._model if at_once == 1 else ThreadPoolExecutor(1, thread_name_prefix="planner")

    @property
    def waiting(self) -> int:
        """Sequences that somebody still wants, those in a batch that runs among them."""
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
        async with asyncio.TaskGroup() as batches:
            while True:
                await self._slots.acquire()
                if planned := await self._next():
                    self._running.update(planned[1])
                    batches.create_task(self._batch(*planned))
                else:
                    self._slots.release()

    def close(self) -> None:
        """Ends the threads, after the batches that they are at."""
        for thread in (self._planner, self._model):
            thread.shutdown(wait=True, cancel_futures=True)

    def _alive(self) -> list[Waiting]:
        self._waiting = [each for each in self._waiting if not each.reward.done()]
        return self._waiting

    def _free(self) -> list[Waiting]:
        return [each for each in self._alive() if each not in self._running]

    async def _next(self) -> tuple[Batch, list[Waiting]] | None:
        """The next batch and who waits for it; None where nobody does any more, or none could be planned."""
        if not self._free():
            self._some.clear()
            await self._some.wait()
            await asyncio.sleep(self._wait)
        window = self._free()[:WINDOW]
        if not window:
            return None
        loop = asyncio.get_running_loop()
        try:
            batch = await loop.run_in_executor(self._planner, self._plan, [each.key for each in window])
        except Exception as error:  # a mistake of ours: those who asked are told, and the server lives on
            _log.exception("no batch could be planned of %d texts", len(window))
            self._fail(window, error, "the server could not make a batch of the waiting texts")
            return None
        keys = set(batch.keys)
        return batch, [each for each in window if each.key in keys]

    async def _batch(self, batch: Batch, mine: Sequence[Waiting]) -> None:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        try:
            found = await loop.run_in_executor(self._model, self._run, batch)
            seconds = time.monotonic() - began
            self._rate = 0.8 * self._rate + 0.2 * len(mine) / max(seconds, 1e-6)
            self._ran(batch, seconds)
            for each in mine:
                if not each.reward.done():
                    each.reward.set_result(found[each.key])
        except Exception as error:  # whatever XLA raises: those who asked are told, and the next batch is run
            _log.exception("a batch of %d texts failed", len(mine))
            self._fail(mine, error, "the model failed on the batch of this text")
        finally:
            self._running.difference_update(mine)
            self._slots.release()

    @staticmethod
    def _fail(these: Sequence[Waiting], error: Exception, what: str) -> None:
        reason = f"{what} ({type(error).__name__}); the server's log has more"
        for each in these:
            if not each.reward.done():
                each.reward.set_result(Refused(500, reason))

    def _soon(self) -> int:
        """Seconds until what waits is done, as it goes lately; 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting / (self._rate * self._at_once)))) if self._rate else 1
