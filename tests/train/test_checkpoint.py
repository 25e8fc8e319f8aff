import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from rmjax.train import checkpoint, manifest
from rmjax.train.checkpoint import CheckpointError, Checkpoints

ROOT = Path(__file__).parents[2]


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


def test_nothing_saved_is_none_and_makes_no_directory(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.latest() is None
    assert checkpoints.restore(abstract(make_state(0))) is None
    assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        checkpoints.restore_subtree("params")


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state(7)
    special = jnp.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 3.4e38], jnp.float32)
    state = state.replace(params={**state.params, "special": special})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, {"position": 3, "nested": {"seed": [1, None, "x"]}})
    step, restored, data = checkpoints.restore(abstract(state))
    assert step == checkpoints.latest() == 7
    assert data == {"position": 3, "nested": {"seed": [1, None, "x"]}}
    assert_same_bits(restored, state)
    checkpoints.close()


def test_values_are_those_at_the_call_even_if_donated_right_after(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    for step in range(3):
        state = {f"w{i}": jnp.full((300, 300), float(step)) for i in range(8)}
        shape = abstract(state)
        checkpoints.save(step, state, {})
        jax.block_until_ready(overwrite(overwrite(state)))
        restored = checkpoints.restore(shape)[1]
        assert all(bool((leaf == step).all()) for leaf in restored.values())


def test_keeps_the_newest_and_the_multiples(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 9):
        checkpoints.save(step, {"w": jnp.ones(1)}, {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "7", "8"]


def test_the_old_one_goes_only_after_the_new_manifest(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": jnp.ones(1)}, {}, wait=True)

    def power_cut(*_):
        raise OSError("power cut")

    monkeypatch.setattr(checkpoint, "write_manifest", power_cut)
    checkpoints.save(2, {"w": jnp.ones(1)}, {})
    with pytest.raises(CheckpointError, match="power cut"):
        checkpoints.wait()
    assert checkpoints.latest() == 1


def test_a_save_without_manifest_is_ignored_then_replaced(tmp_path, caplog):
    checkpoints = saved_run(tmp_path)
    (tmp_path / "20" / manifest.MANIFEST).unlink()
    caplog.set_level("INFO")
    assert checkpoints.restore(abstract(make_state(0)))[0] == 10
    assert f"unfinished save {tmp_path / '20'}" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    checkpoints.save(20, make_state(21), {"next": 21}, wait=True)
    assert_same_bits(checkpoints.restore(abstract(make_state(0)))[1], make_state(21))


def test_a_saved_step_is_not_saved_again(tmp_path, caplog):
    checkpoints = saved_run(tmp_path)
    caplog.set_level("INFO")
    checkpoints.save(20, make_state(99), {}, wait=True)
    assert "already saved" in caplog.text
    assert_same_bits(checkpoints.restore(abstract(make_state(0)))[1], make_state(20))


def flip_a_bit(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "missing": lambda path: largest_file(path).unlink(),
    "truncated": lambda path: os.truncate(largest_file(path), largest_file(path).stat().st_size // 2),
    "bit-flipped": lambda path: flip_a_bit(largest_file(path)),
    "data": lambda path: flip_a_bit(path / "data_0.json"),
    "manifest": lambda path: os.truncate(path / manifest.MANIFEST, 40),
    "empty manifest": lambda path: os.truncate(path / manifest.MANIFEST, 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_one_is_reported_set_aside_and_the_one_before_used(tmp_path, caplog, kind):
    checkpoints = saved_run(tmp_path)
    names = {"data": "data_0.json", "manifest": "manifest.json", "empty manifest": "manifest.json"}
    damaged_file = names.get(kind, largest_file(tmp_path / "20").name)
    DAMAGE[kind](tmp_path / "20")
    with pytest.warns(RuntimeWarning, match=f"step 20 is damaged.*{damaged_file}"):
        step, state, data = checkpoints.restore(abstract(make_state(0)))
    assert (step, data) == (10, {"next": 10})
    assert_same_bits(state, make_state(10))
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert damaged_file in errors[0] and "step 10" in errors[-1]
    assert (tmp_path / "20.damaged").is_dir() and not (tmp_path / "20").exists()
    checkpoints.save(20, make_state(20), {}, wait=True)
    assert checkpoints.latest() == 20 and (tmp_path / "20.damaged").is_dir()


def test_none_intact_is_an_error_now_and_at_the_next_start(tmp_path):
    checkpoints = saved_run(tmp_path)
    for step in ("10", "20"):
        DAMAGE["truncated"](tmp_path / step)
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoints.restore(abstract(make_state(0)))
    with pytest.raises(CheckpointError, match=r"damaged: 10\.damaged, 20\.damaged"):
        Checkpoints(tmp_path).restore(abstract(make_state(0)))


def test_a_step_asked_for_is_that_step_or_an_error(tmp_path):
    checkpoints = saved_run(tmp_path)
    assert checkpoints.restore(abstract(make_state(0)), step=10)[0] == 10
    with pytest.raises(CheckpointError, match=r"no step 15; it has \[10, 20\]"):
        checkpoints.restore(abstract(make_state(0)), step=15)
    DAMAGE["missing"](tmp_path / "20")
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="of step 20"):
        checkpoints.restore(abstract(make_state(0)), step=20)


def test_another_architecture_names_the_differing_paths(tmp_path):
    checkpoints = saved_run(tmp_path)
    other = make_state(0)
    params = {"layers": {"kernel": jnp.ones((2, 4))}, "head": jnp.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(abstract(other.replace(params=params)))
    message = str(caught.value)
    assert "3 paths differ" in message
    assert "params/embed: in the checkpoint, not in this model" in message
    assert "params/head: in this model, not in the checkpoint" in message
    assert "params/layers/kernel: (2, 3) in the checkpoint, (2, 4) in this model" in message
    assert checkpoints.latest() == 20


def test_many_differences_are_cut_to_twelve_and_a_count(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {f"a{i}": jnp.ones(1) for i in range(20)}, {}, wait=True)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(abstract({"b": jnp.ones(1)}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 12 + 1 and lines[-1].strip() == "... and 9 more"


def test_another_dtype_is_cast_and_logged(tmp_path, caplog):
    checkpoints = saved_run(tmp_path)
    target = abstract(make_state(0))
    kernel = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16, sharding=target.step.sharding)
    target = target.replace(params={**target.params, "layers": {"kernel": kernel}})
    restored = checkpoints.restore(target)[1]
    expected = make_state(20).params["layers"]["kernel"].astype(jnp.bfloat16)
    assert_same_bits(restored.params["layers"]["kernel"], expected)
    assert "1 arrays are cast" in caplog.text and "params/layers/kernel" in caplog.text


def test_parameters_alone_need_no_optimizer(tmp_path):
    checkpoints = saved_run(tmp_path)
    assert Checkpoints(tmp_path).metadata()[1]["params"]["embed"].dtype == jnp.bfloat16
    for known in (None, abstract(make_state(0)).params):
        step, params = checkpoints.restore_subtree("params", known)
        assert step == 20
        assert_same_bits(params, make_state(20).params)
    with pytest.raises(CheckpointError, match="no `head`; it has optimizer, params, rng, step"):
        checkpoints.restore_subtree("head")
    with pytest.raises(CheckpointError, match="params/embed: in the checkpoint"):
        checkpoints.restore_subtree("params", {"layers": abstract(make_state(0).params["layers"])})


def test_data_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="`data` must be JSON-able"):
        Checkpoints(tmp_path).save(1, {"w": jnp.ones(1)}, {"iterator": object()})


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("not a directory")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/run/1: a file stands"):
        Checkpoints(tmp_path / "run").save(1, {"w": jnp.ones(1)}, {})


@pytest.mark.parametrize(("number", "remedy"), [(28, "the disk is full"), (13, "no permission"), (30, "no permission")])
def test_errors_of_the_system_name_path_and_remedy(tmp_path, monkeypatch, number, remedy):
    def refuse(path, text):
        raise OSError(number, os.strerror(number))

    checkpoints = saved_run(tmp_path, steps=(10,))
    monkeypatch.setattr(checkpoint, "write_text", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/20: {remedy}"):
        checkpoints.save(20, make_state(20), {})
    assert checkpoints.restore(abstract(make_state(0)))[0] == 10


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False)
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_the_checkpoint_before_stays(small_disk):
    checkpoints = saved_run(small_disk, steps=(10,))
    with pytest.raises(CheckpointError, match=f"{small_disk}/20: the disk is full: free some"):
        checkpoints.save(20, {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}, {})
        checkpoints.wait()
    assert not (small_disk / "20").exists()
    checkpoints.save(30, make_state(30), {}, wait=True)
    assert checkpoints.latest() == 30


def test_no_thread_is_left_waiting_where_no_folder_can_be_made(tmp_path, monkeypatch):
    def in_the_way(file, text):
        shutil.rmtree(file.parent)
        file.parent.write_text("")

    before = set(threading.enumerate())
    monkeypatch.setattr(checkpoint, "write_text", in_the_way)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/1: a file stands"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(1)}, {})
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)  # one that is about to end
    assert set(threading.enumerate()) <= before  # orbax's would hold up the process's end for 300 s


def test_a_url_is_refused(tmp_path):
    for directory in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(ValueError, match="gs://bucket/run is a URL; mount the bucket"):
            Checkpoints(directory)


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


def test_leaving_the_with_statement_by_an_error_finishes_the_save(tmp_path):
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        raise KeyError("the loop failed")
    assert Checkpoints(tmp_path).latest() == 1


# --- what no step changes ----------------------------------------------------------------------------------------------


def two_parts(step: int, base: float = 7.0) -> dict:
    return {"moving": {"w": jnp.full(3, step, jnp.float32)}, "base": {"w": jnp.full(1000, base)}}


def with_constant(directory: Path, *steps, base: float = 7.0) -> Checkpoints:
    checkpoints = Checkpoints(directory, constant=("base", "absent"))
    for step in steps:
        checkpoints.save(step, two_parts(step, base), {}, wait=True)
    return checkpoints


def test_constant_arrays_are_written_once_and_read_from_every_checkpoint(tmp_path):
    checkpoints = with_constant(tmp_path, 1)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "constant").rglob("*")}
    checkpoints = with_constant(tmp_path, 2, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "constant").rglob("*")} == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "constant"]
    assert checkpoint._saved_tree(tmp_path / "3").keys() == {"moving"}
    for step in (2, 3):
        found, state, _ = checkpoints.restore(abstract(two_parts(0)), step)
        assert found == step
        assert_same_bits(state, two_parts(step))
    assert_same_bits(Checkpoints(tmp_path).restore_subtree("base")[1], two_parts(0)["base"])
    assert_same_bits(Checkpoints(tmp_path).restore_subtree("moving", step=2)[1], two_parts(2)["moving"])
    assert Checkpoints(tmp_path).metadata()[1].keys() == {"moving", "base"}
    with pytest.raises(CheckpointError, match=r"base/w: \(1000,\) in the checkpoint, \(4,\) in this model"):
        checkpoints.restore(abstract(two_parts(0) | {"base": {"w": jnp.zeros(4)}}))


def test_constant_arrays_of_a_run_without_a_checkpoint_do_not_stay(tmp_path):
    with_constant(tmp_path, 1, base=1.0)
    shutil.rmtree(tmp_path / "1")
    assert_same_bits(with_constant(tmp_path, 1).restore(abstract(two_parts(0)))[1], two_parts(1))


def test_checkpoints_that_have_all_in_one_are_read_and_followed_by_others(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, two_parts(1), {}, wait=True)
    checkpoints = with_constant(tmp_path)
    assert_same_bits(checkpoints.restore(abstract(two_parts(0)))[1], two_parts(1))
    checkpoints.save(2, two_parts(2), {}, wait=True)
    for step in (1, 2):
        assert_same_bits(checkpoints.restore(abstract(two_parts(0)), step)[1], two_parts(step))


def test_damaged_constant_arrays_are_an_error(tmp_path):
    checkpoints = with_constant(tmp_path, 1, 2)
    flip_a_bit(largest_file(tmp_path / "constant"))
    with pytest.raises(CheckpointError, match="constant is damaged, and every checkpoint beside it needs it.*SHA-256"):
        checkpoints.restore(abstract(two_parts(0)))
    assert (tmp_path / "2").is_dir()


@pytest.mark.parametrize("recorded", [True, False])
def test_missing_constant_arrays_are_named_as_such(tmp_path, monkeypatch, recorded):
    if not recorded:  # as by older versions
        monkeypatch.setattr(checkpoint, "write_manifest", lambda path, beside=None: manifest.write_manifest(path))
    checkpoints = with_constant(tmp_path, 1)
    shutil.rmtree(tmp_path / "constant")
    with pytest.raises(CheckpointError, match="constant is .*missing.* bring back"):
        checkpoints.restore(abstract(two_parts(0)))
    if recorded:
        with pytest.raises(CheckpointError, match="constant is damaged.*the folder is missing"):
            Checkpoints(tmp_path).metadata()


def test_constant_arrays_of_another_run_are_an_error(tmp_path):
    with_constant(tmp_path / "a", 1)
    with_constant(tmp_path / "b", 1, base=8.0)
    shutil.rmtree(tmp_path / "a" / "constant")
    shutil.copytree(tmp_path / "b" / "constant", tmp_path / "a" / "constant")
    with pytest.raises(CheckpointError, match="not the folder that 1 was saved with"):
        Checkpoints(tmp_path / "a").metadata()
