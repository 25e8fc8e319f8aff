"""The study of the server: its load generator against a server that drops and stalls, its tables, and a run of ours (slow)."""

import asyncio
import json

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from experiments.studies.serving import config, load, measure, sides
from experiments.studies.serving.load import Target
from rmjax.evaluate.rows import Row
from rmjax.study.study import Result, run_cell


def small():
    grid = config.get_config()
    grid.model.update(width=16, depth=1, heads=2, kv_heads=1, mlp_width=16)
    grid.texts.update(prompt=20, answer=(4, 8), answers=4)
    grid.small.update(model=grid.model, texts=grid.texts)
    grid.update(clients=4, batch_tokens=256, prompts=2, rounds=1, requests=5, known=6, loads=(0.5,), seconds=0.5)
    return grid


def under_load(job, answer):
    """What `await job(target)` gives beside a server that `await answer(number)` speaks for: bytes, or None to hang up."""

    async def whole():
        async def connected(reader, writer):
            while True:
                try:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                except asyncio.IncompleteReadError:
                    break
                await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
                reply = await answer(int(head.partition("x-request-id:")[2].split()[0]))
                if reply is None:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(reply) + reply)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            return await asyncio.wait_for(job(Target(server.sockets[0].getsockname()[1], "/x")), 30)

    return asyncio.run(whole())


async def echo(number):
    return b"%d" % number


async def dropping(number):
    return None if number % 5 == 0 else b"%d" % number


@pytest.mark.parametrize(("answer", "lost"), [(echo, 0), (dropping, 4)])
def test_closed_clients_see_every_reply_and_every_loss(answer, lost):
    seen = []
    asked = iter([b"{}"] * 20)
    under_load(lambda target: load.closed(target, asked, 3, lambda *reply: seen.append(reply)), answer)
    assert sorted(number for number, *_ in seen) == list(range(20))
    assert sum(status == 0 for _, status, _ in seen) == lost
    assert all(int(body) == number for number, status, body in seen if status == 200)


def test_an_open_load_counts_from_when_a_request_was_due():
    """A server that stalls at first holds up all of them; a closed client would see one slow reply."""
    turn = asyncio.Lock()

    async def stalling(number):
        async with turn:
            await asyncio.sleep(0.3 if number == 0 else 0.0)
        return b"0"

    seconds = under_load(lambda target: load.opened(target, [b"{}"] * 40, 200.0, 0, lambda *_: None), stalling)
    assert sum(each > 0.05 for each in seconds) > 10


def test_requests_share_a_prompt_or_nothing():
    grid = small()
    shared, apart = (sides.requests(grid, kind, seed=3) for kind in (True, False))
    assert [len(texts) for texts in shared] == [4, 4]
    assert all(len({tuple(text[:20]) for text in texts}) == 1 for texts in shared)
    assert all(len({tuple(text[:20]) for text in texts}) == 4 for texts in apart)
    assert all(text[-1] == sides.REWARD and len(text) <= sides.longest(grid) for texts in shared for text in texts)


def test_the_tables():
    rows = [
        Row(f"round {n}", n, measure.RATE, rate * (1 + n), {"side": side, "kind": kind})
        for kind in measure.KINDS for n in range(2) for side, rate in ((sides.OURS, 400.0), (sides.THEIRS, 100.0))
    ]  # fmt: skip
    many = [Row("run", "run", name, 7.0) for name in ("requests", "requests_per_second", "lost", "swapped")]
    many.append(Row("server", "server", "recompiles_total", 0.0))
    opened = [Row("run", "run", name, 0.02, {"load": "0.5"}) for name in ("reached", "p50", "p99", "lost")]
    done = {
        "beside": Result("done", tuple(rows)),
        "many": Result("done", tuple(many)),
        "open": Result("done", tuple(opened)),
    }
    text = measure.parts(measure.summarize(small(), done))
    assert "| answers to one prompt | 600 | 150 | 4.00 (4.00 to 4.00) |" in text["beside"]
    assert "| 7 | 7 | 7 | 7 | 0 |" in text["many"] and "| 0.5 | 0 | 20 | 20 | 0 |" in text["open"]


def test_rewards_are_read_as_a_client_reads_them():
    reply = {"data": [{"data": [[1.5]]}, {"data": [[0.0], [2.5]]}]}
    assert sides.rewards_in(json.dumps(reply).encode()) == [1.5, 2.5]


@pytest.mark.slow
def test_our_side_loses_and_swaps_nothing(tmp_path):
    study = measure.get_claim(small()).study
    study.prepare(tmp_path)
    found = {row.metric: row.value for row in run_cell(study, "many", tmp_path).rows}
    assert (found["requests"], found["lost"], found["swapped"], found["recompiles_total"]) == (20, 0, 0, 0)
    found = {row.metric: row.value for row in run_cell(study, "open", tmp_path).rows}
    assert found["lost"] == 0 and 0 < found["p50"] <= found["p99"]
