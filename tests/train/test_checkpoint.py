"""Checkpoints of one process: whole or not at all, verified when read, refused where they do not fit."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.train import checkpoint, manifest
from rmjax.train.checkpoint import CheckpointError, Checkpoints
from tests.train.saving import abstract, assert_same_bits, flip_a_bit, largest_file, make_state, saved_run


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


def test_leaving_the_with_statement_by_an_error_finishes_the_save(tmp_path):
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        raise KeyError("the loop failed")
    assert Checkpoints(tmp_path).latest() == 1
