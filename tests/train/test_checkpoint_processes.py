"""Checkpoints of processes that are killed, that have several devices, and that are several."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from rmjax.train import manifest
from rmjax.train.checkpoint import CheckpointError, Checkpoints
from tests.train.saving import abstract, make_state, saved_run

ROOT = Path(__file__).parents[2]


def start(script: str, *arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
    )


SAVE_FOREVER = """
    import sys, jax, jax.numpy as jnp
    from rmjax.train.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1])
    step = (checkpoints.latest() or 0) + 1
    while True:
        checkpoints.save(step, {f"w{i}": jnp.full((64, 64), step) for i in range(4)}, {"at": step})
        checkpoints.wait()
        print(step, flush=True)
        step += 1
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_last_finished_checkpoint(tmp_path):
    rng = random.Random(0)
    target = abstract({f"w{i}": jnp.zeros((64, 64), int) for i in range(4)})
    for _ in range(3):
        process = start(SAVE_FOREVER, tmp_path)
        announced = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        announced = max([announced, *map(int, process.communicate()[0].split())])
        step, state, data = Checkpoints(tmp_path).restore(target)
        assert step in (announced, announced + 1) and data == {"at": step}
        assert all(bool((leaf == step).all()) for leaf in state.values())
    assert not list(tmp_path.glob("*.damaged*"))


def test_every_truncated_tail_of_a_save_is_ignored(tmp_path):
    """A kill leaves a prefix of the save's writes: each prefix must be an unfinished save."""
    saved_run(tmp_path / "whole")
    target = abstract(make_state(0))
    files = [f for f in (tmp_path / "whole/20").rglob("*") if f.is_file()]
    files.sort(key=lambda file: (file.name == manifest.MANIFEST, file.stat().st_mtime_ns))
    assert files[-1].name == manifest.MANIFEST
    for count in range(len(files)):
        run = tmp_path / f"cut{count}"
        shutil.copytree(tmp_path / "whole/10", run / "10")
        for file in files[:count]:
            copy = run / file.relative_to(tmp_path / "whole")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        assert Checkpoints(run).restore(target)[0] == 10


SHARDED = """
    import sys, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from rmjax.train.checkpoint import Checkpoints
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    values = jnp.arange(48.0).reshape(8, 6)
    save = NamedSharding(mesh, P(("data", "fsdp"), None))
    load = NamedSharding(mesh, P(None, "fsdp"))
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(3, {"w": jax.device_put(values, save)}, {})
    target = {"w": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=load)}
    restored = checkpoints.restore(target)[1]["w"]
    assert restored.sharding == load, restored.sharding
    assert (restored == values).all()
    assert isinstance(checkpoints.restore_subtree("w")[1], np.ndarray)
    print("same")
"""


def test_sharded_arrays_come_back_in_the_shardings_asked_for(tmp_path):
    process = start(SHARDED, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert process.communicate()[0].split() == ["same"]
    target = abstract({"w": jnp.zeros((8, 6))})
    restored = Checkpoints(tmp_path).restore(target)[1]["w"]
    assert (restored == jnp.arange(48.0).reshape(8, 6)).all()


def saved_by_two(tmp_path, other: dict) -> Checkpoints:
    """The newest checkpoint as two processes would have left it; `other` is the second one's data."""
    checkpoints = saved_run(tmp_path)
    path = tmp_path / "20" / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "processes": 2}))
    (tmp_path / "20" / "data_1.json").write_text(json.dumps(other))
    return checkpoints


def test_what_other_processes_saved_comes_with_it(tmp_path):
    data = saved_by_two(tmp_path, {"next": 20, "streams": {"1": [3, 4]}}).restore(abstract(make_state(0)))[2]
    assert data == {"next": 20, "streams": {"1": [3, 4]}}


def test_processes_that_contradict_each_other_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/20: its processes saved different data under one key"):
        saved_by_two(tmp_path, {"next": 21}).restore(abstract(make_state(0)))


TWO_PROCESSES = """
    import os, sys, jax, numpy as np
    index, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from rmjax.train.checkpoint import Checkpoints
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    target = {"w": jax.ShapeDtypeStruct((4,), np.float32, sharding=sharding)}
    checkpoints = Checkpoints(directory)
    for step in (1, 2, 3):
        local = np.full((2,), 10.0 * step + index, np.float32)
        array = jax.make_array_from_process_local_data(sharding, local)
        checkpoints.save(step, {"w": array}, {"streams": {str(index): step}, "at": step})
    checkpoints.wait()
    if index == 0:
        assert checkpoints.latest() == 3
        os.truncate(os.path.join(directory, "3", "data_1.json"), 3)
    step, state, data = checkpoints.restore(target)
    assert (step, data) == (2, {"streams": {"0": 2, "1": 2}, "at": 2}), (step, data)
    assert (state["w"].addressable_data(0) == 20 + index).all()
    checkpoints.close()
    print("same")
"""


def test_two_processes_save_and_fall_back_together(tmp_path, unused_port):
    processes = [start(TWO_PROCESSES, i, unused_port, tmp_path) for i in range(2)]
    try:
        assert [p.communicate(timeout=90)[0].split()[-1] for p in processes] == ["same"] * 2
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def unused_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
