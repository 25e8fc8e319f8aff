"""Leaves that lie in files: read in parts, straight into a sharding, in little memory."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from rmjax.models.parameters import first_layers, warm_start
from rmjax.models.stored import Stored, on_host, placed
from tests import simulated

LAYERS = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)


def stacked(reads=None) -> Stored:
    def read(layer, index):
        if reads is not None:
            reads.append(layer)
        return LAYERS[layer][index]

    return Stored(LAYERS.shape, np.float32, read, range(4))


def test_only_what_is_asked_for_is_read():
    reads: list[int] = []
    found = stacked(reads)[1:3][(slice(1, 2), slice(2, 4), slice(None))]
    np.testing.assert_array_equal(found, LAYERS[2:3, 2:4])
    assert reads == [2]


def test_layers_and_dtypes_change_without_reading():
    reads: list[int] = []
    kept = first_layers({"layers": {"x": stacked(reads)}}, 3, frozen=1)
    rounded = kept["layers"]["x"].astype(np.float16)
    assert (rounded.shape, rounded.dtype, reads) == ((2, 6, 8), np.float16, [])
    np.testing.assert_array_equal(on_host(kept)["frozen_layers"]["x"], LAYERS[:1])
    np.testing.assert_array_equal(np.asarray(rounded), LAYERS[1:3].astype(np.float16))


def test_a_warm_start_leaves_it_in_its_file():
    reads: list[int] = []
    found = warm_start({"x": np.zeros((4, 6, 8), np.float16)}, {"x": stacked(reads)}, "")["x"]
    assert isinstance(found, Stored) and found.dtype == np.float16 and not reads


def test_it_is_placed_layer_by_layer():
    whole = placed(stacked(), SingleDeviceSharding(jax.devices()[0]))
    np.testing.assert_array_equal(whole, LAYERS)
    single = Stored((6, 8), np.float32, lambda _, index: LAYERS[0][index])
    np.testing.assert_array_equal(placed(single, SingleDeviceSharding(jax.devices()[0])), LAYERS[0])
    with pytest.raises(TypeError, match="no layers to choose from"):
        single[1:2]


OVER_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rmjax.models.stored import Stored, placed
from tests.models.test_stored import LAYERS, stacked

mesh = jax.make_mesh((2, 2), ("a", "b"))
for spec in (P(None, "a", "b"), P(None, None, "b"), P(), P("a", None, "b")):
    found = placed(stacked(), NamedSharding(mesh, spec))
    np.testing.assert_array_equal(found, LAYERS)
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3), spec
"""


@pytest.mark.slow
def test_over_devices():
    subprocess.run([sys.executable, "-c", OVER_DEVICES], env=os.environ | simulated.devices(4), check=True)


SHARD, SHARDS = 64 * 2**20, 6  # bytes, files
BIG = f"""
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from safetensors.numpy import save_file
from rmjax.hub.hugging_face import open_folder
from rmjax.models.stored import placed
from rmjax.models.transformer import TransformerConfig
from rmjax.hub.config_json import written_config
from rmjax.hub.families import KINDS
from rmjax.hub.tensors import layout

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

folder = Path(sys.argv[1])
config = TransformerConfig(8192, width=1024, depth=12, heads=8, kv_heads=8, head_width=128, mlp_width=4096)
wanted = layout(config, KINDS["llama"].names).wanted
parts, size = [[]], 0
for name, shape in wanted.items():
    own = 2 * int(np.prod(shape))
    if size + own > {SHARD}:
        parts, size = [*parts, []], 0
    parts[-1].append(name)
    size += own
for n, names in enumerate(parts):
    value = jnp.bfloat16(1 + n)
    save_file({{name: np.full(wanted[name], value) for name in names}}, folder / f"{{n}}.safetensors", {{"format": "pt"}})
index = {{name: f"{{n}}.safetensors" for n, names in enumerate(parts) for name in names}}
(folder / "model.safetensors.index.json").write_text(json.dumps({{"weight_map": index}}))
(folder / "config.json").write_text(json.dumps(written_config(config, "llama")))

model = open_folder(folder)
device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shapes = sorted({{(x.shape, str(x.dtype)) for x in jax.tree.leaves(model.params)}})
Path("/proc/self/clear_refs").write_text("5")  # from here on, and not while files were written
before = peak()
params = jax.block_until_ready(jax.tree.map(lambda x: placed(x, device), model.params))
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({{"above": peak() - before - held, "held": held, "files": len(parts),
                  "largest": max(path.stat().st_size for path in folder.glob("*.safetensors"))}}))
"""


@pytest.mark.slow
def test_memory_beside_the_parameters_is_that_of_a_file(tmp_path):
    """A model larger than the memory that it may take beside its arrays: on a CPU these are host memory themselves."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["files"] >= SHARDS and found["held"] > 2 * found["above"]
    assert found["above"] <= 1.2 * found["largest"], found
