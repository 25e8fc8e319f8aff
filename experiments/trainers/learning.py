"""Our side of time to accuracy: `rmjax.Trainer`, step by step, with rewards of held-out pairs on the way."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.trainers.exchange import read_pairs, rows_for, write_model, write_pairs
from experiments.trainers.start import config_of, start_of
from rmjax import Trainer
from rmjax.config import chosen
from rmjax.data.formats import Encoder
from rmjax.data.packing import Tree, pack
from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import BATCH_TOKENS, fitting_shape
from rmjax.streams import format_of, open_stream, training_trees

HEAD_SCALE = 0.02  # deviation of a new head's weights, as Hugging Face draws them
Rewards = list[list[float]]


def prepare(config: Any, batch: int, folder: Path) -> dict[str, Any]:
    """Writes what the other side reads of a config with its file of comparisons: model-seedN and pairs-seedN.jsonl in `folder`.

    Returns:
      `pairs`; `rows` of our batch, which hold no more than `batch` pairs in the mean; `steps` of one pass over them; tokens.
    """
    chosen_methods, seed = chosen(config), config.run.seed
    start = start_of(config, seed, HEAD_SCALE)
    write_model(folder / f"model-seed{seed}", start.config, start.params, start.tokenizer.to_json())
    encoder = Encoder(start.tokenizer, format_of(chosen_methods, start.tokenizer), config.data.row_tokens)
    stream, _ = training_trees(chosen_methods, encoder)
    trees = [tree for i in range(len(stream)) for tree in stream[i] or []]
    write_pairs(folder / f"pairs-seed{seed}.jsonl", trees)
    config.data.rows = rows_for(config, trees, batch, 1)
    batches = open_stream(chosen(config), start.tokenizer, encoder.form).batches
    device = "gpu" if jax.default_backend() == "gpu" else "cpu"
    return {
        "pairs": len(trees), "rows": config.data.rows, "steps": sum(1 for _ in batches), "cut": encoder.counts["cut"],
        "tokens": sum(tree.size for tree in trees), "device": device,
    }  # fmt: skip


def write_held_out(config: Any, held_out: Sequence[Comparison], path: Path) -> None:
    """The pairs that both sides score, cut as in training."""
    start = start_of(config)
    encoder = Encoder(start.tokenizer, format_of(chosen(config), start.tokenizer), config.data.row_tokens)
    write_pairs(path, [tree for i, c in enumerate(held_out) for tree in encoder.trees(c, i)])


def learn(job: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, and scores the held-out pairs after each of the steps `at`, of which 0 is before the first one.

    Returns:
      `points`: step, rewards, and the wall and CPU seconds of the steps after the first one until then, without scoring;
      `first_step_ended` and `startup_cpu_seconds`: the end of the first step, as if nothing had been scored before.
    """
    trainer = Trainer(config_of(job))
    trainer.start = start_of(trainer.config, job["seed"], HEAD_SCALE)
    held_out = [
        Tree.from_sequences([row[name] for name in ("chosen_ids", "rejected_ids")], [0.0, 1.0])
        for row in read_pairs(Path(job["held_out"]))
    ]
    model = trainer.program.model
    rewards = jax.jit(lambda params, forest: model.apply({"params": params}, forest))

    def score(number: int) -> Rewards:
        return rewards_of(functools.partial(rewards, trainer.params), held_out)

    return timed_points(lambda number: trainer.step(), score, job["steps"], job["at"])


def timed_points(
    step: Callable[[int], object], score: Callable[[int], Rewards], steps: int, at: Sequence[int]
) -> dict[str, Any]:
    """Calls `step` for 1 to `steps`, and `score` after those of `at`; what `learn` returns."""
    points: list[dict[str, Any]] = []
    first, scoring = np.zeros(2), np.zeros(2)  # wall and CPU seconds
    for number in range(steps + 1):
        if number:
            step(number)
        if number == 1:
            first = _now() - scoring
        if number in at:
            began = _now()
            wall, cpu = (began - scoring - first).tolist() if number else (0.0, 0.0)
            points.append({"step": number, "seconds": wall, "cpu_seconds": cpu, "rewards": score(number)})
            scoring += _now() - began
    return {"points": points, "first_step_ended": float(first[0]), "startup_cpu_seconds": float(first[1])}


def _now() -> np.ndarray:
    return np.array([time.time(), time.process_time()])


def rewards_of(rewards: Callable[[Any], Any], trees: Sequence[Tree]) -> Rewards:
    """Of each group, in the order of its ranks."""
    found: Rewards = [[] for _ in trees]
    for forest, places in pack(trees, fitting_shape(trees, BATCH_TOKENS)):
        rewards_RGN = np.asarray(rewards(forest), np.float64)
        for r, row in enumerate(places):
            for g, t in enumerate(row):
                found[t] = rewards_RGN[r, g, np.argsort(trees[t].ranks, kind="stable")].tolist()
    return found
