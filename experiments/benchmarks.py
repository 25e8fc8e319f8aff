"""What benchmarks share: a compiled step on random pairs, rounds in which the order turns, peaks."""

import dataclasses
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rmjax import config as base
from rmjax.config import chosen
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import RULES, make_mesh
from rmjax.program import first_state, make_program
from rmjax.start import start_of
from rmjax.train.state import State, compile_step

WARMUP = 2  # rounds that are not counted


def configured(changes: Mapping[str, Any], *, layers: int, rows: int, row_tokens: int) -> ConfigDict:
    """`rmjax.config.get_config()` with random weights, these sizes and `changes`."""
    config = base.get_config()
    shape = {"model.init": "random", "model.layers": layers, "data.rows": rows, "data.row_tokens": row_tokens}
    config.update_from_flattened_dict(shape | dict(changes))
    return config


@dataclasses.dataclass
class Arm:
    """A compiled step with the state that it goes on from."""

    step: Any
    state: State
    batch: Any  # a forest, or several by name
    program: Any = None  # what it was made of

    @classmethod
    def make(cls, config: Any, batch: Any = None) -> "Arm":
        """Of the weights that the config starts from; the batch is random pairs where none is given."""
        methods = chosen(config)
        mesh, start = make_mesh(config.mesh.to_dict()), start_of(methods)
        program = make_program(methods, start.config, mesh, RULES)
        batch = random_pairs(config, start.config.vocab_size) if batch is None else batch
        with jax.set_mesh(mesh):
            state = first_state(methods, program, start)
            jitted: Any = compile_step(program.step, program.shardings, mesh)
            return cls(jitted.lower(state, batch).compile(), state, batch, program)

    def seconds(self) -> float:
        """Takes one step."""
        started = time.perf_counter()
        self.state, terms = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, terms))
        return time.perf_counter() - started

    def planned_bytes(self) -> dict[str, int]:
        """What the compiler plans: the state and the batch, and what the step needs beside them."""
        plan = self.step.memory_analysis()
        return {"arguments": int(plan.argument_size_in_bytes), "temporary": int(plan.temp_size_in_bytes)}


def random_pairs(config: Any, vocab_size: int) -> Forest:
    """Full rows of pairs, of both types in turn; two groups a row, each a prefix and two branches of one size."""
    data = config.data
    shape = ForestShape(data.rows, data.row_tokens, data.groups, data.candidates)
    third = data.row_tokens // (3 * 2)
    return random_rows(shape, 2, (third, third), np.arange(2, dtype=np.float32), vocab_size)


def random_rows(
    shape: ForestShape, groups: int, tokens: tuple[int, int], ranks_N: np.ndarray, vocab_size: int
) -> Forest:
    """So many groups in each row, of types 0 and 1 in turn: a prefix and N branches of random tokens, of these two lengths."""
    random, (prefix, own) = np.random.default_rng(0), tokens

    def tree(number: int) -> Tree:
        branches = tuple(random.integers(1, vocab_size, (len(ranks_N), own), dtype=np.int32))
        shared = random.integers(1, vocab_size, prefix, dtype=np.int32)
        return Tree(shared, branches, ranks_N, type=number % 2, record=number)

    return fill(shape, [[tree(row * groups + g) for g in range(groups)] for row in range(shape.rows)])


def timed(built: Mapping[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Arm → seconds of its step in each round."""
    names = list(built)
    found: dict[str, list[float]] = {name: [] for name in built}
    for number in range(WARMUP + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = built[name].seconds()
            if number >= WARMUP:
                found[name].append(seconds)
    return found


def peak_bytes() -> int:
    """Peak resident bytes of this process. Linux's `ru_maxrss` is no less than that of the process which started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
