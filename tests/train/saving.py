"""States and saved runs for the tests of checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rmjax.train import manifest
from rmjax.train.checkpoint import Checkpoints


@struct.dataclass
class State:
    params: dict
    optimizer: tuple
    step: jax.Array
    rng: jax.Array


def make_state(step: int, width: int = 3) -> State:
    keys = jax.random.split(jax.random.key(step), 2)
    params = {
        "layers": {"kernel": jax.random.normal(keys[0], (2, width))},
        "embed": jax.random.normal(keys[1], (5,), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(params, optimizer, jnp.int32(step), jax.random.key_data(keys[1]))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved_run(directory: Path, steps=(10, 20)) -> Checkpoints:
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, make_state(step), {"next": step}, wait=True)
    return checkpoints


def largest_file(path: Path) -> Path:
    files = [f for f in path.rglob("*") if f.is_file() and f.name != manifest.MANIFEST]
    return max(files, key=lambda file: file.stat().st_size)


def flip_a_bit(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
