"""Items → outcomes: what is between a dialect and the queue."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from rmjax.serve.batcher import Batcher
from rmjax.serve.engine import Engine, finite
from rmjax.serve.items import Encoded, Item
from rmjax.serve.ladder import Batch, plan
from rmjax.serve.metrics import Metrics
from rmjax.serve.outcomes import Outcome, Refused, Rewarded

_log = logging.getLogger(__name__)
TURN = 0.01
"""Seconds for which the encoder's thread works for one request while others may wait for it."""


class Service:
    """A model that many ask at once.

    Args:
      truncate: cut too long records by the format's rule; otherwise they are refused.
      queue: texts that may wait.
      wait: seconds that the first text of a batch waits for others while nothing else waits.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, truncate: bool = False, queue: int = 4096, wait: float = 0.003
    ):
        self.engine, self.metrics = engine, metrics
        self._encoding = engine.encoding(truncate)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._unencoded = 0
        self.batcher = Batcher(
            partial(plan, shapes=engine.shapes, quadratic=engine.quadratic, kept=engine.kept),
            engine.run, queue, wait, self._ran, engine.at_once,
        )  # fmt: skip

    async def score(self, items: Sequence[Item]) -> list[Outcome]:
        """An outcome for each item. What one is refused for does not touch the others.

        Raises:
          Refused: the queue is full.
        """
        if not items:
            return []
        encoded = await self._encoded(items)
        good = [each for each in encoded if isinstance(each, Encoded)]
        keys = [key for each in good for row in each.sequences for key in row]
        values = iter(await self.batcher.rewards(keys) if keys else [])
        outcomes = [self._outcome(each, values) if isinstance(each, Encoded) else each for each in encoded]
        self.metrics.count(outcomes)
        return outcomes

    async def _encoded(self, items: Sequence[Item]) -> list[Encoded | Refused]:
        """Texts that wait to be encoded are bounded as the queue is; who is cancelled is not encoded any further.

        Raises:
          Refused: too many wait, or more is asked at once than the queue holds.
        """
        limit = self.batcher.limit
        if len(items) > limit:
            raise Refused(413, f"the request has {len(items)} texts, and the queue holds {limit}; send fewer at once")
        if self._unencoded + len(items) > limit:
            raise Refused(503, f"{self._unencoded} texts wait to be encoded, of {limit} at most; try again later", 1)
        loop, found = asyncio.get_running_loop(), list[Encoded | Refused]()
        self._unencoded += len(items)
        try:
            while len(found) < len(items):
                found += await loop.run_in_executor(self._encoder, self._turn, items[len(found) :])
            return found
        finally:
            self._unencoded -= len(items)

    def _turn(self, items: Sequence[Item]) -> list[Encoded | Refused]:
        """The first of them, until others have their turn."""
        found, end = list[Encoded | Refused](), time.monotonic() + TURN
        for item in items:
            found.append(self._encoding.encode(item))
            if time.monotonic() > end:
                break
        return found

    def _outcome(self, encoded: Encoded, values: Iterator[np.ndarray | Refused]) -> Outcome:
        each = [[next(values) for _ in row] for row in encoded.sequences]
        if failed := next((value for row in each for value in row if isinstance(value, Refused)), None):
            return failed
        rewards = self.engine.combined(np.array(each))
        if not finite(rewards):
            _log.error("a reward is not finite: %s", rewards)
            return Refused(500, "the reward is not finite: the model overflows on this text or is broken")
        return Rewarded(tuple(rewards), encoded.tokens, encoded.truncated, encoded.notes)

    def _ran(self, batch: Batch, seconds: float) -> None:
        self.metrics.ran(batch, seconds)

    def close(self) -> None:
        """Ends the threads."""
        self.batcher.close()
        self._encoder.shutdown(wait=True, cancel_futures=True)
