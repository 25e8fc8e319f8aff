"""`python -m tests.parallel.arrangements KIND [[data, fsdp, tensor, context], …]`: trains on one of eight simulated devices,
then on all of them in each arrangement, and prints what differs as JSON."""

import collections
import dataclasses
import functools
import json
import sys

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType

from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.pipeline import WHOLE
from rmjax.data.placement import forest_shardings, place
from rmjax.losses.balance import Balance
from rmjax.methods.adapters import balanced
from rmjax.methods.preference import preference
from rmjax.models import transformer
from rmjax.models.attention import pallas_attention
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import flat
from rmjax.models.reward import RewardTransformer
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.hlo import parse
from rmjax.parallel.mesh import AXES, make_mesh
from rmjax.parallel.operations import operations
from rmjax.train import gradient
from rmjax.train.optimizer import adamw
from rmjax.train.state import compile_step, initial_params, make_state, make_step, state_shardings

STEPS = 5

kind = sys.argv[1]
adapter = AdapterConfig("loramoe", experts=4, dropout=0.2) if kind == "loramoe" else None
remat, parts, frozen_layers = ("full", 2, 1) if kind == "everything" else ("none", 1, 0)
architecture = TransformerConfig(
    64, 32, 2 + frozen_layers, 8, 4, 8, 64, remat=remat, frozen_layers=frozen_layers, adapter=adapter
)
if kind == "pallas":
    transformer._TILED["pallas"] = functools.partial(pallas_attention, interpret=True)
if kind in ("pallas", "blockwise"):
    block = 512 if kind == "pallas" else 8  # several blocks a row; the kernels take none so small
    architecture = dataclasses.replace(architecture, attention=kind, attention_block=block, remat="attention")
if kind in ("blockwise", "windows"):
    layers = {"window": 3, "windowed": (True, False), "local_rope": Rope(100.0)}
    architecture = dataclasses.replace(architecture, **layers, attention_softcap=2.0)
model = RewardTransformer(architecture)
trainable = "lora_|head" if adapter else "/layers/|final_norm|head"
update = adamw(lambda step: 1e-3, weight_decay=0.1)
boxed = jax.jit(lambda: initial_params(model, 0))()
boxed["head"]["kernel"] = boxed["head"]["kernel"].replace_boxed(0.1 * jax.random.normal(jax.random.key(1), (32, 1)))
start = jax.device_get(make_state(nn.meta.unbox(boxed), trainable, update, 0))
random = np.random.default_rng(0)


def ids(most):
    return random.integers(1, 64, random.integers(1, most)).astype(np.int32)


def forest():
    """Rows of no, one or two groups: parts of the batch differ in what counts."""
    counts = [2, 1, 0, 2, 1, 1, 2, 0] * 2
    rows = [[Tree(ids(6), (ids(5), ids(5)), np.array([0.0, 1.0]), type=n % 2) for _ in range(n)] for n in counts]
    return fill(ForestShape(len(counts), 32, 2, 2), rows)


forests = [forest() for _ in range(STEPS)]
constrained = adapter and balanced(preference, model, Balance((0, 0, 1, 1), beta=1.0))
form = gradient.plain(constrained or preference(model), parts)


def train(mesh):
    """(state, its Adam moments after the first step, terms of every step, the compiled step)."""
    shardings, of_batch = state_shardings(start, boxed, trainable, mesh), forest_shardings(mesh)
    state, terms, placed = jax.device_put(start, shardings), [], [place(batch, of_batch, WHOLE) for batch in forests]
    with jax.set_mesh(mesh):
        step = compile_step(make_step(form, update, shardings, mesh), shardings, mesh).lower(state, placed[0]).compile()
        for number, batch in enumerate(placed):
            state, found = step(state, batch)
            terms.append({name: a / b for name, (a, b) in jax.device_get(found).items()})
            if number == 0:
                first = jax.device_get(adam(state).mu)
    return state, first, terms, step


def collectives(step):
    """What a step's chips send each other: kind, bytes and number of chips → times, loops multiplied out."""
    found = collections.Counter()
    for operation in operations(parse(step.as_text())):
        for c in operation.collectives:
            found[f"{c.kind} of {c.bytes} bytes over {len(c.groups[0]) if c.groups else 8}"] += operation.times
    return dict(sorted(found.items()))


def adam(state):
    return state.optimizer[1][0]


def difference(one, other):
    leaves = zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in leaves)


def shards(tree):
    return {p: [list(x.sharding.shard_shape(x.shape)), list(x.shape)] for p, x in flat(tree).items()}


alone = jax.make_mesh((1, 1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 4)
wanted, wanted_first, wanted_terms, _ = train(alone)
report = {"devices": jax.device_count(), "moved": difference(wanted.trainable, start.trainable)}
for sizes in json.loads(sys.argv[2]):
    state, first, terms, step = train(make_mesh(dict(zip(AXES, sizes, strict=True))))
    report["x".join(map(str, sizes))] = {
        "parameters": difference(state.trainable, wanted.trainable),
        "gradient": 10 * difference(first, wanted_first),  # the moment after one step is a tenth of it
        "moments": difference(adam(state).mu, adam(wanted).mu),
        "frozen": difference(state.frozen, start.frozen) if state.frozen else 0,
        "terms": difference(terms, wanted_terms),
        "shards": shards(state.trainable),
        "mu": shards(adam(state).mu),
        "nu": shards(adam(state).nu),
        "collectives": collectives(step),
    }
print("REPORT", json.dumps(report))
