"""Our side of the comparison with TRL: `python -m experiments.trainers.rmjax_side JOB.json`, a process for each job.

prepare  writes what both sides read, and how many rows of ours hold a batch of theirs
agree    loss and rewards of the first batch, before any step; how fast the library under it multiplies
train    the step of experiments.train in its own loop, without checkpoints; times of the steps after the first
learn    `rmjax.Trainer` with rewards of held-out pairs on the way (experiments/trainers/learning.py)
dense    that step on the other side's batch: a row for each sequence, padded to the same shape, nothing shared
pack     seconds that the input of a batch takes, and the step, both on one core
score    POLAR groups of five candidates: as forests, and a row for each candidate
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import peak_bytes
from experiments.start import guarded
from experiments.start import prepare as prepare_process
from experiments.trainers.exchange import (
    TRIAL,
    padded,
    read_pairs,
    rows_for,
    sequences,
    shape_of,
    write_model,
    write_pairs,
)
from experiments.trainers.learning import learn
from experiments.trainers.polar import score_groups
from experiments.trainers.start import config_of, start_of
from rmjax.config import chosen
from rmjax.data import placement
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import Tree, pack
from rmjax.data.pipeline import FileSource
from rmjax.evaluate import environment
from rmjax.files import write_json
from rmjax.losses import ranking
from rmjax.losses.reduction import total
from rmjax.methods.preference import preference
from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import make_mesh, make_rules
from rmjax.program import check, first_state, make_program
from rmjax.start import Start
from rmjax.streams import format_of, open_stream, training_trees
from rmjax.train import gradient, loop, objective
from rmjax.train.metrics import count_traces
from rmjax.train.state import compile_step, make_step

PACKED = 20  # batches whose making is timed


class Times:
    """Takes the loop's metrics in place of a `MetricWriter`."""

    def __init__(self) -> None:
        self.ends: list[float] = []  # seconds since 1970
        self.steps: list[dict[str, Any]] = []  # without those that compiled

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """A logged step."""
        del step
        self.ends.append(time.time())
        if "train/step_seconds" in scalars:
            seconds = scalars["train/step_seconds"]
            counts = {name: round(seconds * scalars[f"train/{name}_per_second"]) for name in ("pairs", "tokens")}
            self.steps.append({"seconds": seconds, "loss": scalars["train/loss"]} | counts)


class NotSaved:
    """In place of `Checkpoints`: the other side saves nothing either."""

    def save(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""


def encoder_of(config: Any, start: Start) -> Encoder:
    """As in training."""
    return Encoder(start.tokenizer, Format(**config.format.to_dict()), config.data.row_tokens)


def first_trees(config: Any, encoder: Encoder, count: int) -> list[Tree]:
    """Of the training stream, in its order."""
    stream, _ = training_trees(chosen(config), encoder)
    return [tree for i in range(count) for tree in stream[i] or []]


def prepare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the model and each round's pairs; gives rows by batch, the platform, and what is known of the pairs."""
    config = config_of(job)
    start = start_of(config)
    write_model(Path(job["model"]), start.config, start.params, start.tokenizer.to_json())
    encoder = encoder_of(config, start)
    trees = first_trees(config, encoder, TRIAL * 2 * max(job["batches"]))
    lengths = {"pair": [t.size for t in trees], "sequence": [len(s) for t in trees for s in sequences(t)]}
    facts: dict[str, Any] = {f"mean_tokens_of_a_{name}": float(np.mean(x)) for name, x in lengths.items()}
    facts |= {"counted_pairs": len(trees), "cut_pairs": encoder.counts["cut"]}
    sizes = zip(job["batches"], job["parts"], strict=True)
    rows = {str(batch): rows_for(config, trees, batch, parts) for batch, parts in sizes}
    for seed in range(job["rounds"]):
        config.run.seed = seed
        for batch, steps in zip(job["batches"], job["steps"], strict=True):
            path = Path(job["pairs"]) / f"{batch}.{seed}.jsonl"
            write_pairs(path, first_trees(config, encoder, batch * steps))
    return {"rows": rows, "platform": jax.default_backend(), "data": facts}


def agree(job: Mapping[str, Any]) -> dict[str, Any]:
    """In fp32, packed as in training."""
    jax.config.update("jax_default_matmul_precision", "highest")
    config = config_of(job)
    config.model.dtype = "float32"
    start = start_of(config)
    trees = first_trees(config, encoder_of(config, start), job["batch"])
    model = RewardTransformer(start.config)
    ((forest, places),) = pack(trees, shape_of(config, len(trees)))
    rewards_RGN = np.asarray(
        jax.jit(lambda params, forest: model.apply({"params": params}, forest))(start.params, forest)
    )
    terms = jax.jit(preference(model))(start.params, forest, jax.random.key(0))
    rewards: list[list[float]] = [[] for _ in trees]
    for r, row in enumerate(places):
        for g, t in enumerate(row):
            order = np.argsort(trees[t].ranks, kind="stable")
            rewards[t] = rewards_RGN[r, g, order].tolist()
    loss, count = terms["loss"]
    rate = product_rate(start.config.width, start.config.mlp_width)
    return {"loss": float(loss / count), "rewards": rewards, "product_rate": rate}


def product_rate(width: int, mlp_width: int) -> float:
    """FLOP/s of an fp32 matrix product of a layer's sizes, 2048 tokens: the median of ten after one."""
    x, kernel = (jnp.ones(shape, jnp.float32) for shape in ((2048, width), (width, mlp_width)))
    product, seconds = jax.jit(jnp.matmul), []
    for _ in range(11):
        began = time.perf_counter()
        product(x, kernel).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * x.size * mlp_width / statistics.median(seconds[1:])


def train_steps(job: Mapping[str, Any]) -> dict[str, Any]:
    """Runs `steps` steps; the first is not timed."""
    config = config_of(job)
    config.data.rows, config.run.seed, config.run.steps = job["rows"], job["seed"], job["steps"]
    config.optimizer.microbatches = job["parts"]
    methods = chosen(config)
    mesh, rules = make_mesh(config.mesh.to_dict()), make_rules(methods.config.sharding)
    check(methods, mesh, rules)
    start = start_of(config)
    form = format_of(methods, start.tokenizer)
    share = placement.shard_of_process(mesh, rules, config.data.rows, config.data.streams)
    stream = open_stream(methods, start.tokenizer, form, share)
    program, times = make_program(methods, start.config, mesh, rules), Times()
    counted, nothing = count_traces(program.step), NotSaved()
    shardings, forests = program.shardings, placement.forest_shardings(mesh, rules)
    with jax.set_mesh(mesh):
        state = first_state(methods, program, start)
        loop.train(
            state, compile_step(counted, shardings, mesh), FileSource(iter(stream.batches)), steps=config.run.steps,
            place=lambda batch: placement.place(batch, forests, share), checkpoints=nothing, writer=times,  # type: ignore[arg-type]
            directory=Path(job["scratch"]), traces=counted, log_every=1, save_every=config.run.steps,
        )  # fmt: skip
    return {"first_step_ended": times.ends[0], "steps": times.steps, "rows": config.data.rows}


def dense_objective(model: RewardTransformer) -> objective.Objective:
    """Bradley–Terry where row i has the better answer and row P + i the other."""

    def loss(params: Any, forest: Any, rng: jax.Array) -> objective.Terms:
        del rng
        rewards_RGN: Any = model.apply({"params": params}, forest)
        rewards_1PN = rewards_RGN.reshape(2, -1).T[None]
        order = ranking.order(jnp.broadcast_to(jnp.arange(2.0), rewards_1PN.shape))
        loss_1P = ranking.bradley_terry(rewards_1PN, order, jnp.zeros(rewards_1PN.shape[:2]))
        return {"loss": total(loss_1P, jnp.ones_like(loss_1P))}

    return loss


def dense_steps(job: Mapping[str, Any]) -> dict[str, Any]:
    """The second batch of the pairs, again and again; the first step is not timed."""
    config = config_of(job)
    config.run.steps = job["steps"]
    methods = chosen(config)
    mesh, rules = make_mesh(config.mesh.to_dict()), make_rules(methods.config.sharding)
    start = start_of(config)
    program = make_program(methods, start.config, mesh, rules)
    rows = read_pairs(Path(job["pairs"]))[job["batch"] : 2 * job["batch"]]
    forest = padded([row[name] for name in ("chosen_ids", "rejected_ids") for row in rows])
    step = make_step(gradient.plain(dense_objective(program.model)), program.update, program.shardings, mesh, rules)
    ends, losses = [], []
    with jax.set_mesh(mesh):
        state = first_state(methods, program, start)
        compiled = compile_step(step, program.shardings, mesh)
        for _ in range(job["steps"]):
            state, terms = compiled(state, forest)
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
            ends.append(time.time())
    facts = {"pairs": len(rows), "tokens": sum(row["tokens"] for row in rows), "shape": list(forest.tokens_RT.shape)}
    steps = [{"seconds": ends[i] - ends[i - 1], "loss": losses[i]} | facts for i in range(1, len(ends))]
    return {"first_step_ended": ends[0], "steps": steps}


def pack_batches(job: Mapping[str, Any]) -> dict[str, Any]:
    """Median seconds of a batch's making (reading, tokenizing, packing) and of a step. `main` has left the process one core."""
    config = config_of(job)
    config.data.rows, config.data.prefetch = job["rows"], 0
    start = start_of(config)
    methods = chosen(config)
    batches = iter(open_stream(methods, start.tokenizer, format_of(methods, start.tokenizer)).batches)
    next(batches)
    seconds = []
    for _ in range(PACKED):
        began = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - began)
    step = statistics.median(s["seconds"] for s in train_steps(job)["steps"])
    packing = statistics.median(seconds)
    return {"batch_seconds": packing, "step_seconds": step, "ratio": step / packing}


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "prepare": prepare, "agree": agree, "train": train_steps, "dense": dense_steps, "pack": pack_batches,
    "score": score_groups, "learn": learn,
}  # fmt: skip


def main(path: str) -> None:
    """Runs the job that the file describes."""
    prepare_process()
    job = json.loads(Path(path).read_text())
    if job["kind"] == "pack" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax makes its threads
    before = _cached()
    found = JOBS[job["kind"]](job)
    found["compiled"] = len(_cached() - before)  # programs that the cache did not have
    found["peak_bytes"] = peak_bytes()
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    found["device_peak_bytes"] = stats["peak_bytes_in_use"] if stats else None
    write_json(Path(job["out"]), found | environment())


def _cached() -> set[str]:
    return {path.name for path in Path(os.environ.get("RMJAX_CACHE", "")).glob("*-cache")}


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1])))
