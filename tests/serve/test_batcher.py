"""The queue by itself: bounded, fair, and no longer for those who left."""

import asyncio
import threading
import time

import numpy as np
import pytest

from rmjax.serve.batcher import Batcher
from rmjax.serve.items import key
from rmjax.serve.ladder import ladder, plan
from rmjax.serve.outcomes import Refused

SHAPES = ladder(64, 64, tiled=True)


class Model:
    """Rewards are the first token; it can be held, and fails on token 13."""

    def __init__(self):
        self.batches, self.threads = [], set()
        self.free = threading.Event()
        self.free.set()

    def run(self, batch):
        self.free.wait(10)
        self.threads.add(threading.current_thread().name)
        self.batches.append([int(np.frombuffer(each, ">u4")[0]) for each in batch.keys])
        if 13 in self.batches[-1]:
            raise MemoryError("too large")
        return {each: np.float32(np.frombuffer(each, ">u4")[0]) for each in batch.keys}


def used(job, limit=100, wait=0.0, at_once=1, planned=lambda waiting: plan(waiting, SHAPES)):
    """Runs `await job(batcher, model)` beside a batcher at work."""

    async def whole():
        model = Model()
        batcher = Batcher(planned, model.run, limit, wait, at_once=at_once)
        work = asyncio.create_task(batcher.work())
        try:
            return await asyncio.wait_for(job(batcher, model), 30)
        finally:
            model.free.set()
            work.cancel()
            batcher.close()

    return asyncio.run(whole())


def ids(*numbers):
    return [key([n] * 30) for n in numbers]


def test_everyone_gets_his_own():
    async def job(batcher, model):
        found = await asyncio.gather(*(batcher.rewards(ids(i, i + 100)) for i in range(10)))
        assert [list(map(int, each)) for each in found] == [[i, i + 100] for i in range(10)]
        assert len(model.threads) == 1 and threading.current_thread().name not in model.threads

    used(job)


def test_who_is_cancelled_is_not_run():
    async def job(batcher, model):
        model.free.clear()
        first = asyncio.create_task(batcher.rewards(ids(1)))
        await asyncio.sleep(0.05)  # the model is at it
        gone, stays = (asyncio.create_task(batcher.rewards(ids(n))) for n in (2, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        assert batcher.waiting == 2  # the first and the one that stays
        model.free.set()
        assert [int(x) for x in await stays] == [3] and [int(x) for x in await first] == [1]
        assert model.batches == [[1], [3]]

    used(job)


def test_the_queue_is_bounded():
    async def job(batcher, model):
        model.free.clear()
        held = [asyncio.create_task(batcher.rewards(ids(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="3 texts wait, of 3 at most; try again later") as full:
            await batcher.rewards(ids(4))
        assert (full.value.status, full.value.retry_after) == (503, 1)
        with pytest.raises(Refused, match="the request has 4 texts, and the queue holds 3") as large:
            await batcher.rewards(ids(4, 5, 6, 7))
        assert large.value.status == 413
        model.free.set()
        await asyncio.gather(*held)
        assert [int(x) for x in await batcher.rewards(ids(4))] == [4]

    used(job, limit=3)


def test_a_batch_that_fails_is_told_so_and_the_next_one_runs():
    async def job(batcher, model):
        (failed,) = await batcher.rewards(ids(13))
        assert failed.status == 500 and "MemoryError" in str(failed)
        assert [int(x) for x in await batcher.rewards(ids(1))] == [1]

    used(job)


def test_two_batches_run_at_the_same_time_and_none_is_run_twice():
    async def job(batcher, model):
        model.free.clear()
        asked = [asyncio.create_task(batcher.rewards(ids(n))) for n in range(6)]
        for _ in range(100):
            await asyncio.sleep(0.01)
            if len(batcher._running) == 4:  # two of 30 tokens fit 64
                break
        assert len(batcher._running) == 4 and batcher.waiting == 6
        model.free.set()
        assert [int(x) for each in await asyncio.gather(*asked) for x in each] == list(range(6))
        assert sorted(n for batch in model.batches for n in batch) == list(range(6))
        assert len(model.threads) == 2

    used(job, at_once=2)


def test_what_cannot_be_planned_is_told_so_and_the_server_lives_on():
    def planned(waiting):
        if ids(13)[0] in waiting:
            raise IndexError("a mistake")
        return plan(waiting, SHAPES)

    async def job(batcher, model):
        (failed,) = await batcher.rewards(ids(13))
        assert failed.status == 500
        assert "could not make a batch of the waiting texts (IndexError)" in str(failed)
        assert [int(x) for x in await batcher.rewards(ids(1))] == [1]

    used(job, at_once=2, planned=planned)


def test_the_loop_goes_on_while_the_model_runs():
    async def job(batcher, model):
        model.free.clear()
        asked = asyncio.create_task(batcher.rewards(ids(1)))
        began = time.monotonic()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert time.monotonic() - began < 5 and not asked.done()
        model.free.set()
        await asked

    used(job)
