"""The mesh: its errors, and that eight devices in any arrangement train as one does."""

import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rmjax.parallel.mesh import (
    AXES,
    RULES,
    _across_slices,
    batch_sharding,
    make_mesh,
    make_rules,
    parameter_shardings,
    shards,
)
from tests import simulated

ROOT = Path(__file__).parents[2]
FEW = [(2, 2, 2, 1), (1, 2, 2, 2)]
ALL = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if sizes[0] * sizes[1] * sizes[2] * sizes[3] == 8]


def collectives():
    """What a step sends in each arrangement, by this jax's compiler: collectives.json has what changed by the jax since which."""
    found, since = {}, json.loads((ROOT / "tests/parallel/collectives.json").read_text())
    for version, changed in since.items():  # oldest first
        if tuple(map(int, version.split("."))) <= jax.__version_info__:
            found |= changed
    return found


def name(sizes):
    return "x".join(map(str, sizes))


def reported(kind, arrangements):
    environment = os.environ | simulated.devices(8)
    command = [sys.executable, "-m", "tests.parallel.arrangements", kind, json.dumps(arrangements)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Involuntary full rematerialization" not in done.stderr  # an array that is gathered only to be cut anew
    line = next(line for line in done.stdout.splitlines() if line.startswith("REPORT"))
    return json.loads(line.removeprefix("REPORT"))


def assert_trains_as_one(report, sizes, parameters=1e-5):
    assert report["devices"] == 8
    assert report["moved"] > 1e-3
    found = report[name(sizes)]
    assert found["terms"] < 1e-5
    assert found["gradient"] < 1e-5
    assert found["moments"] < 1e-5
    assert found["parameters"] < parameters
    assert found["frozen"] == 0


@pytest.fixture(scope="module")
def report():
    """With remat, two microbatches, a frozen layer and a frozen embedding."""
    return reported("everything", FEW)


@pytest.mark.parametrize("sizes", FEW, ids=name)
def test_eight_devices_train_as_one(report, sizes):
    assert_trains_as_one(report, sizes)


@pytest.mark.parametrize("sizes", FEW, ids=name)
def test_parameters_and_moments_are_sharded_alike(report, sizes):
    found = report[name(sizes)]
    assert found["mu"] == found["nu"] == found["shards"]
    _, fsdp, tensor, _ = sizes
    shard, whole = found["shards"]["backbone/layers/mlp/up/kernel"]
    assert (shard, whole) == ([2, 32 // fsdp, 64 // tensor], [2, 32, 64])
    shard, whole = found["shards"]["backbone/layers/attention/output/kernel"]
    assert (shard, whole) == ([2, 64 // tensor, 32 // fsdp], [2, 64, 32])
    assert found["shards"]["head/kernel"] == [[32 // fsdp, 1], [32, 1]]


@pytest.mark.slow
def test_every_arrangement_trains_as_one():
    assert len(ALL) == 20
    report = reported("everything", ALL)
    for sizes in ALL:
        assert_trains_as_one(report, sizes)
    assert {sizes: found["collectives"] for sizes, found in report.items() if "x" in sizes} == collectives()


@pytest.mark.parametrize("sizes", FEW, ids=name)
def test_the_step_communicates_as_it_did(report, sizes):
    """What is new is sent in every step: write it into collectives.json if it is meant."""
    assert report[name(sizes)]["collectives"] == collectives()[name(sizes)]


@pytest.mark.slow
def test_experts_are_sharded_and_train_as_on_one_device():
    report = reported("loramoe", [(2, 2, 2, 1)])
    assert_trains_as_one(report, (2, 2, 2, 1))
    found = report["2x2x2x1"]
    assert found["shards"]["backbone/layers/mlp/up/lora_a"] == [[2, 2, 16, 4], [2, 4, 32, 4]]
    assert found["shards"]["backbone/layers/mlp/up/lora_b"] == [[2, 2, 4, 64], [2, 4, 4, 64]]
    assert found["mu"] == found["nu"] == found["shards"]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["pallas", "blockwise", "windows"])
def test_attention_in_tiles_trains_as_on_one_device(attention):
    """Rows, heads and tokens are cut; where tokens are, a device's gradients of keys are a part of a sum. `windows` is the dense
    form, with layers that differ; in `blockwise` they do as well."""
    # More parts than key-value heads, and the smallest part of a row: kernels refuse the one, and take 128 tokens at least.
    arrangements = FEW + ([(1, 1, 8, 1), (1, 1, 1, 8)] if attention == "blockwise" else [])
    report = reported(attention, arrangements)
    for sizes in arrangements:
        # Adam divides by a gradient's own size: 1e-7 of a gradient near 0 were 6e-5 of a parameter that moved by 5e-3. What
        # is exact are gradients and moments.
        assert_trains_as_one(report, sizes, parameters=1e-4)


def test_one_size_may_be_the_rest():
    mesh = make_mesh({"data": -1})
    assert mesh.axis_names == AXES
    assert mesh.shape["data"] == jax.device_count()
    assert make_mesh({"fsdp": -1, "data": 1}).shape["fsdp"] == jax.device_count()
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 1}, "mesh axis 'model' is unknown; axes are data, fsdp, tensor, context, dcn_data, dcn_fsdp"),
        ({"data": -1, "fsdp": -1}, "at most one mesh axis may be -1"),
        ({"data": 3, "fsdp": 2}, r"mesh \{'data': 3, 'fsdp': 2, .*\} needs 6 devices; there are"),
        ({"data": -1, "tensor": 3}, r"'tensor': 3, .*\} needs \d+ devices; there are"),
        ({"data": -1, "fsdp": 0}, "mesh axis 'fsdp' has size 0"),
        ({"data": -2}, "mesh axis 'data' has size -2"),
        ({"dcn_data": -1}, "mesh axis 'dcn_data' has size -1; give 1 or more$"),
        ({"data": 1, "dcn_data": 64}, r"'dcn_data': 64\} needs 64 devices"),
    ],
)
def test_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(sizes)


def devices(slices, processes, each):
    """Of so many slices of so many processes of so many devices; on a CPU there are no slices."""
    places = list(itertools.product(range(slices or 1), range(processes), range(each)))
    return [
        types.SimpleNamespace(id=i, device_kind="", platform="", process_index=s * processes + p)
        if slices is None
        else types.SimpleNamespace(id=i, device_kind="", platform="", process_index=s * processes + p, slice_index=s)
        for i, (s, p, _) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("there", "granule"),
    [(devices(2, 2, 2), "slice_index"), (devices(1, 2, 4), "process_index"), (devices(None, 2, 4), "process_index")],
    ids=["slices", "processes of one slice", "processes"],
)
def test_only_the_slow_factors_cross_slices(there, granule):
    def granules(inner, outer):
        return np.vectorize(lambda device: getattr(device, granule))(_across_slices(inner, outer, there))

    by_data = granules((1, 2, 2, 1), (2, 1, 1, 1))
    assert by_data.shape == (2, 2, 2, 1)
    assert (by_data == np.arange(2).reshape(2, 1, 1, 1)).all()
    by_fsdp = granules((2, 2, 1, 1), (1, 2, 1, 1))
    assert by_fsdp.shape == (2, 4, 1, 1)
    assert (by_fsdp == np.array([0, 0, 1, 1]).reshape(1, 4, 1, 1)).all()


def test_slow_factors_are_those_of_the_slices():
    with pytest.raises(
        ValueError, match="mesh.dcn_data · mesh.dcn_fsdp is 8; the devices form 2 slices and 4 processes"
    ):
        _across_slices((1, 1, 1, 1), (4, 2, 1, 1), devices(2, 2, 2))


def test_rules_are_the_table_with_changes():
    assert dict(make_rules({})) == {name: axes or None for name, axes in RULES}
    changed = make_rules({"embed": (), "mlp": ("fsdp", "tensor")})
    assert [name for name, _ in changed] == [name for name, _ in RULES]  # an earlier row has a mesh axis first
    assert dict(changed) == dict(make_rules({})) | {"embed": None, "mlp": ("fsdp", "tensor")}
    mesh = make_mesh({"data": -1})
    assert shards(mesh, changed, "rows") == jax.device_count() and shards(mesh, changed, "embed") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": ()}, "sharding has no logical axis 'width'; it has rows, tokens, "),
        ({"embed": ("model",)}, "sharding.embed: mesh axis 'model' is unknown"),
    ],
)
def test_errors_of_rules(changes, message):
    with pytest.raises(ValueError, match=message):
        make_rules(changes)


def test_a_parameter_that_does_not_divide_is_named():
    boxed = {"up": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((32, 63), "float32"), ("embed", "mlp"))}}
    mesh = AbstractMesh((1, 1, 2, 1), AXES)
    with pytest.raises(ValueError, match=r"up/kernel has shape \(32, 63\), and 63 does not divide into the 2 parts of"):
        parameter_shardings(boxed, mesh)
