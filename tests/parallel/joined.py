"""A small run whose parameters tell every batch and its order, as one process or as one of several:
`python -m tests.parallel.joined DIRECTORY EPOCHS SECONDS COORDINATOR PROCESSES INDEX`."""

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from rmjax.data.packing import ForestShape, Tree
from rmjax.data.pipeline import FileSource, batches, tree_dataset
from rmjax.data.placement import forest_shardings, place, shard_of_process
from rmjax.parallel import hosts
from rmjax.parallel.mesh import RULES, batch_sharding, make_mesh, replicated
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.loop import restored, saved_part, train
from rmjax.train.metrics import MetricWriter
from rmjax.train.state import State

STEPS = 40
STREAMS = 4
SHAPE = ForestShape(rows=8, row_tokens=24, groups=3, branches=1)


def encode(record: int, index: int) -> list[Tree]:
    return [Tree.from_sequences([[record + 1] * (1 + (7 * record) % 23)], [0], record=index)]


def step(state, forest):
    """Order matters: everything is doubled before what is new is added. Integers, so sums have no rounding."""
    record_R = jnp.sum((forest.record_RG + 1) * (1 + jnp.arange(3)), axis=-1)
    rows = (2 * state.trainable["rows"] + record_R) % 1021
    total = (2 * state.trainable["total"] + jnp.sum(record_R)) % 1021
    one, cells = jnp.float32(1), jnp.float32(forest.group_RT.size)
    terms = {"loss": (jnp.sum(record_R).astype(jnp.float32), one), "accuracy": (one, one)}
    terms |= {"pad_fraction": (cells - jnp.sum(forest.group_RT > 0), cells)}
    return state.replace(step=state.step + 1, trainable={"rows": rows, "total": total}), terms


def run(directory: Path, epochs: int | None = None, seconds: float = 0.0) -> State:
    """From wherever it stopped; `seconds` a step at least, so that there is time to interrupt it."""
    mesh = make_mesh({"data": -1})
    share = shard_of_process(mesh, RULES, SHAPE.rows, STREAMS)
    stream = iter(batches(tree_dataset(range(40), encode, seed=0, epochs=epochs), SHAPE, share=share))
    everywhere = replicated(mesh)
    shardings = State(everywhere, {"rows": batch_sharding(mesh), "total": everywhere}, {}, {}, everywhere)
    start = State(jnp.int32(0), {"rows": jnp.zeros(8, jnp.int32), "total": jnp.int32(0)}, {}, {}, jnp.zeros(2))
    state, first = jax.jit(lambda: start, out_shardings=shardings)(), -1

    def placed(forest):
        time.sleep(seconds)
        return place(forest, forest_shardings(mesh), share)

    with jax.set_mesh(mesh), Checkpoints(directory / "checkpoints") as checkpoints:
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved_part(state))
        found = checkpoints.restore(wanted)
        batched = hosts.EndTogether(stream) if epochs else stream
        if found is not None:
            first, parts, data = found
            state = restored(state, parts)
            batched.set_state(data["iterator"])
        writer = MetricWriter(directory, resume_step=first)
        return train(
            state, jax.jit(step, out_shardings=(shardings, everywhere)), FileSource(batched), steps=STEPS, place=placed,
            checkpoints=checkpoints, writer=writer, directory=directory, log_every=1, save_every=5,
        )  # fmt: skip


if __name__ == "__main__":
    directory, epochs, seconds, coordinator, processes, index = sys.argv[1:]
    hosts.join(coordinator, int(processes), int(index), timeout=60, join_timeout=120)
    from rmjax.guard import guarded
    from rmjax.joining import leave

    leave(functools.partial(guarded, lambda: run(Path(directory), int(epochs) or None, float(seconds))))
