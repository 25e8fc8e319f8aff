"""Rewards a second beside `transformers`, requests lost, and waiting times: `python -m experiments.study serving`.

Both servers stand on one machine with the generator of the load, take the same bytes on one route, and have the same budget of
tokens a call. In a round both answer the same requests, in an order that turns; ratios are formed within a round. Before that,
the rewards of one request have to agree.
"""

import asyncio
import contextlib
import functools
import http.client
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.studies import timing
from experiments.studies.serving import load, sides
from experiments.studies.serving.load import Target
from experiments.studies.serving.sides import OURS, THEIRS, body, rewards_in, serving
from experiments.trainers.processes import processor
from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, fact_lines
from rmjax.study.table import markdown

RATE, TOLERANCE, PATH = "rewards_per_second", 1e-3, "/pooling"
KINDS = {"shared": "answers to one prompt", "apart": "no sharing at all"}
QUANTILES = {"p50": 0.5, "p99": 0.99}


def cells(config: Any) -> Iterator[Cell]:
    """Beside the peer, open loads, many clients: each starts its own servers; what is timed comes first."""
    common = {key: config[key] for key in ("clients", "batch_tokens", "model", "texts", "prompts")}
    common["folder"] = f"work:{sides.MODELS}"
    yield Cell("beside", {"cell": "beside"}, ConfigDict({**common, "peer": config.peer, "rounds": config.rounds}))
    yield Cell("open", {"cell": "open"}, ConfigDict({**common, "loads": config.loads, "seconds": config.seconds}))
    many = {"requests": config.requests, "known": config.known}
    yield Cell("many", {"cell": "many"}, ConfigDict({**common, **many}))


def make_data(config: Any, workdir: Path) -> None:
    """The model, for both sides."""
    folder = workdir / sides.MODELS
    if not (folder / "theirs" / "config.json").exists():
        sides.write_models(config, folder)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """The rows of a cell; its folder has the servers' logs."""
    config, folder = cell.config, workdir / cell.name
    yield Row("run", "run", "cores", float(os.cpu_count() or 0), {"said": processor()})
    yield from {"beside": beside, "many": many, "open": opened}[cell.name](config, folder)


# --- beside the peer ----------------------------------------------------------------------------------------------------


def beside(config: Any, folder: Path) -> Iterator[Row]:
    """Rewards a second of both sides in each round, and by how much their rewards differ."""
    with contextlib.ExitStack() as stack:
        ports = {side: stack.enter_context(serving(side, config, folder)) for side in (OURS, THEIRS)}
        difference = agreement(config, ports)
        yield Row("run", "run", "difference", difference)
        for number in range(-1, config.rounds):  # the first warms caches and threads up
            for kind in KINDS:
                asked = sides.requests(config, kind == "shared", seed=number + 1)
                for side in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                    seconds = answered(ports[side], asked, config.clients)
                    rate = sum(map(len, asked)) / seconds
                    if number >= 0:
                        yield Row(f"round {number}", number, RATE, rate, {"side": side, "kind": kind})
        yield from counted(ports[OURS])


def agreement(config: Any, ports: Mapping[str, int]) -> float:
    """The largest difference between the sides' rewards of one request.

    Raises:
      ValueError: it is more than `TOLERANCE`.
    """
    asked = sides.requests(config, shared=True, seed=99)[0]
    ours, theirs = (np.array(ask(port, asked)) for port in ports.values())
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"a reward differs by {difference:.2g} between the sides: not the same model; nothing is timed"
        )
    return difference


def ask(port: int, texts: Sequence[Sequence[int]]) -> list[float]:
    """The rewards of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", PATH, body(texts))
    return rewards_in(connection.getresponse().read())


def answered(port: int, asked: Sequence[Sequence[Sequence[int]]], clients: int) -> float:
    """Seconds for these requests. RuntimeError: one is not answered."""
    failed: list[int] = []

    def seen(number: int, status: int, reply: bytes) -> None:
        if status != 200:
            failed.append(number)

    seconds = asyncio.run(load.closed(Target(port, PATH), map(body, asked), clients, seen))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(asked)} requests got no rewards, the first one request {failed[0]}")
    return seconds


def counted(port: int) -> Iterator[Row]:
    """Counters of our server."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("rmjax_") and name.endswith("_total"):
            yield Row("server", "server", name.removeprefix("rmjax_"), float(value))


# --- ours alone ---------------------------------------------------------------------------------------------------------


def many(config: Any, folder: Path) -> Iterator[Row]:
    """Requests lost (no reward came) and swapped (another's id, or another text's reward), of clients that ask at once."""
    with serving(OURS, config, folder) as port:
        texts = known(config)
        wanted, bodies = [ask(port, [text])[0] for text in texts], [body([text]) for text in texts]
        lost, swapped = [0], [0]

        def seen(number: int, status: int, reply: bytes) -> None:
            if status != 200:
                lost[0] += 1
                return
            found = json.loads(reply)
            near = abs(rewards_in(reply)[0] - wanted[number % len(wanted)]) <= 1e-4
            swapped[0] += not (near and found["id"] == f"pool-{number}")

        count = config.clients * config.requests
        asked = itertools.islice(itertools.cycle(bodies), count)
        seconds = asyncio.run(load.closed(Target(port, PATH), asked, config.clients, seen))
        facts = {"requests": count, "lost": lost[0], "swapped": swapped[0], "requests_per_second": count / seconds}
        yield from (Row("run", "run", name, float(value)) for name, value in facts.items())
        yield from counted(port)


def known(config: Any) -> list[list[int]]:
    """Different texts, several to a prompt."""
    each = (text for seed in itertools.count(1000) for asked in sides.requests(config, True, seed) for text in asked)
    return list(itertools.islice(each, config.get("known", 64)))


def opened(config: Any, folder: Path) -> Iterator[Row]:
    """Seconds at fractions of the rate that closed clients reach."""
    with serving(OURS, config, folder) as port:
        bodies = [body([text]) for text in known(config)]
        rate = _closed_rate(port, bodies, config)
        yield Row("run", "run", "closed_rate", rate)
        for fraction in config.loads:
            missing: list[int] = []
            count = max(1, round(rate * fraction * config.seconds))
            asked = list(itertools.islice(itertools.cycle(bodies), count))

            def seen(number: int, status: int, reply: bytes, missing: list[int] = missing) -> None:
                if status != 200:
                    missing.append(number)

            began = time.monotonic()
            seconds = asyncio.run(load.opened(Target(port, PATH), asked, rate * fraction, 0, seen))
            groups = {"load": f"{fraction:g}"}
            yield Row("run", "run", "lost", float(len(missing)), groups)
            yield Row("run", "run", "reached", count / (time.monotonic() - began), groups)
            for name, quantile in QUANTILES.items():
                yield Row("run", "run", name, float(np.quantile(seconds, quantile)), groups)


def _closed_rate(port: int, bodies: Sequence[bytes], config: Any) -> float:
    """Requests a second of clients that ask as fast as they are answered."""
    asked = itertools.islice(itertools.cycle(bodies), max(2 * config.clients, len(bodies)))
    count = max(2 * config.clients, len(bodies))
    return count / asyncio.run(load.closed(Target(port, PATH), asked, config.clients, lambda *_: None))


# --- what is committed, and the page -----------------------------------------------------------------------------------


def summarize(config: Any, done: Mapping[str, Result]) -> list[Line]:
    """Rates and ratios by kind; what was lost; waiting times."""
    del config
    rows = done["beside"].rows
    lines = timing.rate_lines(rows, RATE, (OURS, THEIRS), KINDS)
    lines += fact_lines([r for r in rows if r.metric != RATE], {"cell": "beside"})
    return lines + [line for name in ("many", "open") for line in fact_lines(done[name].rows, {"cell": name})]


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The tables of docs/serving.md."""
    beside = timing.rate_table(lines, RATE, (OURS, THEIRS), KINDS, "requests")
    return {"beside": beside, "many": _many(lines), "open": _open(lines)}


def _many(lines: Sequence[Line]) -> str:
    found = {line["metric"]: line["value"] for line in lines if line.get("cell") == "many"}
    heads = ["requests", "a second", "lost", "swapped", "compiled after the start"]
    cells = ("requests", "requests_per_second", "lost", "swapped", "recompiles_total")
    return markdown([heads, [f"{found[name]:,.0f}" for name in cells]])


def _open(lines: Sequence[Line]) -> str:
    loads: dict[str, dict[str, float]] = {}
    for line in lines:
        if line.get("cell") == "open" and "load" in line:
            loads.setdefault(line["load"], {})[line["metric"]] = line["value"]
    heads = ["load", "requests a second", "p50, ms", "p99, ms", "lost"]
    body = [
        [each, f"{x['reached']:.0f}", f"{1000 * x['p50']:.0f}", f"{1000 * x['p99']:.0f}", f"{x['lost']:.0f}"]
        for each, x in loads.items()
    ]
    return markdown([heads, *body])


def get_claim(config: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study(
        f"serving_{config.machine}", tuple(cells(config)), timing.no_training, measure,
        functools.partial(make_data, config), code=(load, sides, sides.peer()),
    )  # fmt: skip
    return Claim(study, Path("docs/serving.md"), functools.partial(summarize, config), parts)
