"""MetaRM on eight simulated devices: the plain reference's gradient, and every mode's of one device."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import simulated

ROOT = Path(__file__).parents[2]

PROGRAM = textwrap.dedent("""
    import dataclasses, json, sys
    import flax.linen as nn
    import jax
    import numpy as np

    from rmjax.methods.metarm import discrimination
    from rmjax.methods.preference import preference
    from rmjax.data.packing import ForestShape, Tree, fill
    from rmjax.models.reward import RewardTransformer
    from rmjax.models.transformer import TransformerConfig
    from rmjax.parallel.mesh import AXES, RULES, batch_sharding, make_mesh
    from rmjax.methods import metarm as meta
    from rmjax.train import gradient
    from rmjax.train.optimizer import adamw
    from rmjax.train.state import compile_step, initial_params, make_state, make_step, state_shardings
    from tests.methods import metarm_reference as meta_reference

    config = TransformerConfig(64, 32, 2, 4, 2, 8, 64)
    model, trainable, eta = RewardTransformer(config), "layers|final_norm|head", 0.5
    boxed = jax.jit(lambda: initial_params(model, 0))()
    boxed["head"]["kernel"] = boxed["head"]["kernel"].replace_boxed(
        0.1 * jax.random.normal(jax.random.key(1), (32, 1)))
    update = adamw(lambda step: 1e-3)
    start = jax.device_get(make_state(nn.meta.unbox(boxed), trainable, update, 0))
    random = np.random.default_rng(0)

    def ids(most):
        return random.integers(1, 64, random.integers(1, most)).astype(np.int32)

    def rows(counts, leaves, ranks):
        return [[Tree(ids(6), tuple(ids(5) for _ in range(leaves)), np.array(ranks)) for _ in range(n)] for n in counts]

    def sequences(rows):
        return [[np.concatenate([tree.prefix, leaf]) for leaf in tree.branches] for row in rows for tree in row]

    ranked = rows([2, 1, 0, 2, 1, 1, 2, 0], 2, [0.0, 1.0])
    sampled = rows([1, 0, 2, 1, 0, 0, 1, 1], 3, [np.inf] * 3)
    batch = {"preference": fill(ForestShape(8, 32, 2, 2), ranked), "meta": fill(ForestShape(8, 32, 2, 3), sampled)}
    pairs = [s for group in sequences(ranked) for s in group]
    wanted = jax.device_get(jax.jit(lambda theta: meta_reference.step(
        config, theta, start.frozen, pairs, sequences(sampled), eta)[0])(start.trainable))

    def difference(one, other):
        leaves = zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True)
        return max(float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in leaves)

    norm = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(jax.device_get(wanted)))))
    clipped = jax.tree.map(lambda leaf: leaf / max(1.0, norm), wanted)  # as the optimizer's clip of 1 does
    report = {"devices": jax.device_count()}
    for sizes in json.loads(sys.argv[1]):
        mesh = make_mesh(dict(zip(AXES, sizes)))
        shardings = state_shardings(start, boxed, trainable, mesh)
        form = meta.meta(gradient.plain(preference(model)), gradient.plain(discrimination(model)),
                         meta.plain(eta), sharding=shardings.trainable)

        def step(state, batch):
            grads, terms = form(state.trainable, state.frozen, batch, jax.random.key(0), state)
            return jax.lax.with_sharding_constraint(grads, shardings.trainable), terms

        with jax.set_mesh(mesh):
            placed = jax.device_put(start, shardings), jax.device_put(batch, batch_sharding(mesh))
            grads, terms = jax.jit(step)(*placed)
            after, _ = compile_step(make_step(form, update, shardings, mesh), shardings, mesh)(*placed)
        report["x".join(map(str, sizes))] = {
            "gradient": difference(grads, wanted), "groups": float(terms["meta_difference"][1]),
            "moment": difference(jax.tree.map(lambda m: 10 * m, after.optimizer[1][0].mu), clipped),
        }
    # The other modes, second order, against themselves on one device; with moments.
    later, adam = jax.device_get(after), meta.Adam(lambda step: 1e-3, 0.9, 0.95)
    mesh = make_mesh(dict(zip(AXES, (1, 2, 2, 2))))
    shardings = state_shardings(start, boxed, trainable, mesh)
    modes = {"parameter_norm": meta.parameter_norm(0.01), "step_norm": meta.step_norm(0.5, adam),
             "preconditioned": meta.preconditioned(1e-4, adam), "blockwise": meta.plain(eta)}
    tiled = RewardTransformer(dataclasses.replace(config, attention="blockwise", attention_block=4))
    for mode, factors in modes.items():
        def formed(state, batch, sharding=None):
            used = tiled if mode == "blockwise" else model
            form = meta.meta(gradient.plain(preference(used), 2), gradient.plain(discrimination(used)),
                             factors, second_order=True, sharding=sharding)
            with nn.logical_axis_rules(RULES):
                return form(state.trainable, state.frozen, batch, jax.random.key(0), state)

        alone, alone_terms = jax.jit(formed)(later, batch)
        with jax.set_mesh(mesh):
            placed = jax.device_put(later, shardings), jax.device_put(batch, batch_sharding(mesh))
            grads, terms = jax.jit(lambda s, b: formed(s, b, shardings.trainable))(*placed)
        ascents = [float(found["meta_ascent"][0]) for found in (alone_terms, terms)]
        report[mode] = {"gradient": difference(grads, jax.device_get(alone)), "ascents": ascents}
    print("REPORT", json.dumps(report))
""")
ARRANGEMENTS = [(2, 2, 2, 1), (1, 2, 1, 4)]


@pytest.fixture(scope="module")
def report():
    environment = os.environ | simulated.devices(8) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(ARRANGEMENTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("REPORT")).removeprefix("REPORT"))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ARRANGEMENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_eight_devices_agree_with_the_plain_reference(report, sizes):
    assert report["devices"] == 8
    found = report["x".join(map(str, sizes))]
    assert found["groups"] == 6
    assert found["gradient"] < 1e-5
    assert found["moment"] < 1e-4  # after the first step a tenth of the clipped gradient


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["parameter_norm", "step_norm", "preconditioned", "blockwise"])
def test_eight_devices_agree_with_one_in_the_other_modes(report, mode):
    """Norms are over what is cut; second order, microbatches, rows, heads and tokens over the mesh; attention in blocks, which
    every device runs on its own part, is differentiated twice."""
    found = report[mode]
    assert found["gradient"] < 1e-5
    assert found["ascents"][1] == pytest.approx(found["ascents"][0], rel=1e-4) and found["ascents"][0] > 1e-5
