"""What no step changes is written once for all checkpoints."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from rmjax.train import checkpoint, manifest
from rmjax.train.checkpoint import CheckpointError, Checkpoints
from tests.train.saving import abstract, assert_same_bits, flip_a_bit, largest_file

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
