"""The mesh: its errors, and that eight devices in any arrangement train as one does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

from rmjax.parallel.mesh import AXES, batch_sharding, make_mesh

ROOT = Path(__file__).parents[2]

# Trains on one of eight devices, then on all in several arrangements, and prints what differs.
PROGRAM = textwrap.dedent("""
    import json, sys
    import flax.linen as nn
    import jax
    import numpy as np
    from jax.sharding import AxisType

    jax.config.update("jax_disable_most_optimizations", True)

    from rmjax.data.forest import ForestShape, Tree, fill
    from rmjax.losses.balance import Balance
    from rmjax.models.lora import AdapterConfig
    from rmjax.models.reward import RewardTransformer
    from rmjax.models.transformer import TransformerConfig
    from rmjax.parallel.mesh import AXES, batch_sharding, make_mesh
    from rmjax.train import gradient, objective
    from rmjax.train.optimizer import adamw
    from rmjax.train.parameters import flat
    from rmjax.train.routing import balanced
    from rmjax.train.state import compile_step, initial_params, make_state, make_step, state_shardings

    adapter = AdapterConfig("loramoe", experts=4) if sys.argv[2] == "loramoe" else None
    model = RewardTransformer(TransformerConfig(64, 32, 2, 4, 2, 8, 64, adapter=adapter))
    trainable = "lora_|head" if adapter else "layers|final_norm|head"
    update = adamw(lambda step: 1e-3, weight_decay=0.1)
    boxed = jax.jit(lambda: initial_params(model, 0))()
    boxed["head"]["kernel"] = boxed["head"]["kernel"].replace_boxed(
        0.1 * jax.random.normal(jax.random.key(1), (32, 1)))
    start = jax.device_get(make_state(nn.meta.unbox(boxed), trainable, update, 0))
    random = np.random.default_rng(0)

    def ids(most):
        return random.integers(1, 64, random.integers(1, most)).astype(np.int32)

    def forest():
        counts = [2, 1, 0, 2, 1, 1, 2, 0]
        rows = [[Tree(ids(6), (ids(5), ids(5)), np.array([0.0, 1.0]), type=n % 2) for _ in range(n)] for n in counts]
        return fill(ForestShape(8, 32, 2, 2), rows)

    forests = [forest() for _ in range(3)]
    constrained = adapter and balanced(objective.preference, model, Balance((0, 0, 1, 1), beta=1.0))
    form = gradient.plain(constrained or objective.preference(model))

    def train(mesh):
        shardings = state_shardings(start, boxed, trainable, mesh)
        step = compile_step(make_step(form, update, shardings, mesh), shardings, mesh)
        state, terms = jax.device_put(start, shardings), []
        with jax.set_mesh(mesh):
            for batch in forests:
                state, found = step(state, jax.device_put(batch, batch_sharding(mesh)))
                terms.append({name: a / b for name, (a, b) in jax.device_get(found).items()})
        return state, terms

    def difference(one, other):
        leaves = zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True)
        return max(float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in leaves)

    def shards(tree):
        return {p: [list(x.sharding.shard_shape(x.shape)), list(x.shape)] for p, x in flat(tree).items()}

    alone = jax.make_mesh((1, 1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 4)
    wanted, wanted_terms = train(alone)
    report = {"devices": jax.device_count(), "moved": difference(wanted.trainable, start.trainable)}
    for sizes in json.loads(sys.argv[1]):
        state, terms = train(make_mesh(dict(zip(AXES, sizes))))
        adam = state.optimizer[1][0]
        report["x".join(map(str, sizes))] = {
            "parameters": difference(state.trainable, wanted.trainable),
            # After one step the first moment is a tenth of the gradient; here it holds those of all three steps.
            "gradients": difference(adam.mu, wanted.optimizer[1][0].mu),
            "frozen": difference(state.frozen, start.frozen),
            "terms": difference(terms, wanted_terms),
            "shards": shards(state.trainable), "mu": shards(adam.mu), "nu": shards(adam.nu),
        }
    print("REPORT", json.dumps(report))
""")
ARRANGEMENTS = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 4, 1)]


def reported(kind, arrangements):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(arrangements), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("REPORT"))
    return json.loads(line.removeprefix("REPORT"))


@pytest.fixture(scope="module")
def report():
    return reported("plain", ARRANGEMENTS)


@pytest.mark.parametrize("sizes", ARRANGEMENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_eight_devices_train_as_one(report, sizes):
    assert report["devices"] == 8
    assert report["moved"] > 1e-3
    found = report["x".join(map(str, sizes))]
    assert found["terms"] < 1e-5
    assert found["gradients"] < 1e-5
    assert found["parameters"] < 1e-5
    assert found["frozen"] == 0


@pytest.mark.parametrize("sizes", ARRANGEMENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_parameters_and_moments_are_sharded_alike(report, sizes):
    found = report["x".join(map(str, sizes))]
    assert found["mu"] == found["nu"] == found["shards"]
    _, fsdp, tensor, _ = sizes
    shard, whole = found["shards"]["backbone/layers/mlp/up/kernel"]
    assert (shard, whole) == ([2, 32 // fsdp, 64 // tensor], [2, 32, 64])
    shard, whole = found["shards"]["backbone/layers/attention/output/kernel"]
    assert (shard, whole) == ([2, 32 // tensor, 32 // fsdp], [2, 32, 32])
    assert found["shards"]["head/kernel"] == [[32 // fsdp, 1], [32, 1]]


def test_experts_are_sharded_and_train_as_on_one_device():
    found = reported("loramoe", [(2, 2, 2, 1)])
    assert found["moved"] > 1e-3
    found = found["2x2x2x1"]
    assert max(found["terms"], found["gradients"], found["parameters"]) < 1e-5 and found["frozen"] == 0
    assert found["shards"]["backbone/layers/mlp/up/lora_a"] == [[2, 2, 16, 4], [2, 4, 32, 4]]
    assert found["shards"]["backbone/layers/mlp/up/lora_b"] == [[2, 2, 4, 64], [2, 4, 4, 64]]
    assert found["mu"] == found["nu"] == found["shards"]


def test_one_size_may_be_the_rest():
    mesh = make_mesh({"data": -1})
    assert mesh.axis_names == AXES
    assert mesh.shape["data"] == jax.device_count()
    assert make_mesh({"fsdp": -1, "data": 1}).shape["fsdp"] == jax.device_count()
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 1}, "mesh axis 'model' is unknown; axes are data, fsdp, tensor, context"),
        ({"data": -1, "fsdp": -1}, "at most one mesh axis may be -1"),
        ({"data": 3, "fsdp": 2}, r"mesh \{'data': 3, 'fsdp': 2, .*\} needs 6 devices; there are"),
        ({"data": -1, "tensor": 3}, r"'tensor': 3, .*\} needs \d+ devices; there are"),
        ({"data": -1, "fsdp": 0}, "mesh axis 'fsdp' has size 0"),
        ({"data": -2}, "mesh axis 'data' has size -2"),
    ],
)
def test_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(sizes)
