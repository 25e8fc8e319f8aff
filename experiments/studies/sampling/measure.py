"""Tokens a second beside `transformers.generate`: `python -m experiments.study sampling`.

Both sides are processes of one machine with the same weights and as many threads, and draw as many samples at once. A round asks
both for the same prompts, in an order that turns; ratios are formed within it. Greedy tokens have to be equal, all of them.
"""

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.studies import timing
from experiments.studies.serving import sides as of_serving
from experiments.trainers.exchange import write_model
from experiments.trainers.processes import processor
from rmjax.data.formats import Encoder, Format
from rmjax.data.record import Comparison
from rmjax.evaluate.rows import Row
from rmjax.policy.local import LocalGenerator
from rmjax.policy.sampling import Decoding
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, fact_lines

OURS, THEIRS, RATE, PEER = "rmjax", "transformers", "tokens_per_second", Path(__file__).with_name("peer.py")
KINDS = {"greedy": "greedy", "drawn": "drawn at temperature 1", "short": "drawn, short prompts"}
Side = Callable[[list[str], str], list[list[int]]]
"""(prompts, kind) → ids of each prompt's samples in turn."""


def cells(config: Any) -> Iterator[Cell]:
    """One, whose process has as many threads as it is to have."""
    threads = {"OMP_NUM_THREADS": str(config.threads), "NPROC": str(config.threads)}
    eigen = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if config.threads == 1 else {}
    yield Cell("beside", {"cell": "beside"}, ConfigDict(config.to_dict()), threads | eigen)


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """Tokens a second of both sides in each round, and how many greedy tokens were equal."""
    config = cell.config
    yield Row("run", "run", "threads", float(config.threads), {"said": processor()})
    with sides(config, workdir / cell.name) as both:
        for number in range(-1, config.rounds):  # the first compiles, and warms caches up
            for kind in KINDS:
                prompts, found = asked(config, kind, number + 1), {}
                for side in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                    began = time.monotonic()
                    found[side] = both[side](prompts, kind)
                    rate = sum(map(len, found[side])) / (time.monotonic() - began)
                    if number >= 0:
                        yield Row(f"round {number}", number, RATE, rate, {"side": side, "kind": kind})
                if kind == "greedy" and found[OURS] != found[THEIRS]:
                    raise ValueError(f"round {number}: greedy tokens differ between the sides; nothing was compared")
        yield Row("run", "run", "rounds_of_equal_tokens", config.rounds + 1.0)


def asked(config: Any, kind: str, seed: int) -> list[str]:
    """Prompts of random letters, a byte a token."""
    tokens = config.short_prompt_tokens if kind == "short" else config.prompt_tokens
    letters = np.random.default_rng(seed).integers(ord("a"), ord("z") + 1, (config.prompts, tokens))
    return ["".join(map(chr, row)) for row in letters]


@contextlib.contextmanager
def sides(config: Any, folder: Path) -> Iterator[Mapping[str, Side]]:
    """Both, with the same random weights."""
    architecture, tokenizer = of_serving.architecture(config)
    params = {"backbone": of_serving.random_params(architecture)["backbone"]}
    write_model(folder / "theirs", architecture, params, tokenizer.to_json())
    form = Format(kind="plain", reward_token=of_serving.SPECIAL[of_serving.REWARD])
    encoder, weights = Encoder(tokenizer, form, 1), jax.tree.map(jnp.asarray, params["backbone"])
    ours = LocalGenerator(architecture, weights, encoder, Decoding(), config.new_tokens, slots=config.rows)
    greedily = dataclasses.replace(ours, decoding=Decoding(0.0))

    def by_us(prompts: list[str], kind: str) -> list[list[int]]:
        records = [Comparison(prompt, ()) for prompt in prompts]
        found = (greedily if kind == "greedy" else ours)(records, config.samples, 0)
        return [list(ids) for c in found.records for ids in c.columns["token_ids"]]

    def by_them(prompts: list[str], kind: str) -> list[list[int]]:
        assert peer.stdin and peer.stdout
        told = {name: config[name] for name in ("samples", "new_tokens", "rows")}
        told |= {"prompts": list(map(encoder.begun, prompts)), "greedy": kind == "greedy"}
        print(json.dumps(told), file=peer.stdin, flush=True)
        found: list[list[int]] = json.loads(peer.stdout.readline())
        return found

    command = [config.peer, "-P", str(PEER), str(folder / "theirs"), str(config.threads)]
    log = (folder / "theirs.log").open("w")
    with log, subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True) as peer:
        try:
            yield {OURS: by_us, THEIRS: by_them}
        finally:
            peer.kill()


def summarize(done: Mapping[str, Result]) -> list[Line]:
    """Rates and ratios by kind."""
    rows = done["beside"].rows
    return timing.rate_lines(rows, RATE, (OURS, THEIRS), KINDS) + fact_lines([r for r in rows if r.metric != RATE])


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/methods/policy.md."""
    return {"beside": timing.rate_table(lines, RATE, (OURS, THEIRS), KINDS, "samples")}


def get_claim(config: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study(f"sampling_{config.machine}", tuple(cells(config)), timing.no_training, measure, code=(of_serving,))
    return Claim(study, Path("docs/methods/policy.md"), summarize, parts)
