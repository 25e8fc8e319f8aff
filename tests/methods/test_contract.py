"""What every registered method has to keep: the same seed gives the same bits, padding and microbatches change nothing, weight 0
teaches nothing, a stopped run ends in the same bits, bf16 stays finite, devices divide the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from rmjax import config as base
from rmjax import methods
from rmjax.data.packing import ForestShape
from rmjax.models.parameters import flat
from rmjax.trainer import Trainer
from tests import simulated
from tests.experiments.running import pool_rows, text_rows
from tests.experiments.starting import save_start
from tests.train.conftest import quick_compilation

STEPS = 4


def ranked_rows():
    return [
        {
            "prompt": f"Say {i}.",
            "reference": f"{i}",
            "chosen": f"It is {i}.",
            "rejected": "No.",
            "id": f"r{i}",
            "type": i % 2,
        }
        for i in range(8)
    ]


def sample_rows():
    return [{"prompt": f"Name {i}.", "reference": f"{i}", "outputs": [f"one {i}", "two"]} for i in range(6)]


FILES = {"pool": pool_rows, "comparisons": ranked_rows, "texts": text_rows, "samples": sample_rows}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("contract")
    save_start(home / "start", head=0.2)
    for name, rows in FILES.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    with quick_compilation():
        yield home


def configured(home: Path, method: methods.Method, **changes) -> ConfigDict:
    """A small run of the method; `changes` has "__" for "."."""
    kind = {"polar": "pool", "language_model": "texts"}.get(method.name, "comparisons")
    values = {
        "model.init": str(home / "start"), "data.kind": kind, "data.path": str(home / f"{kind}.jsonl"), "data.rows": 2,
        "data.row_tokens": 256, "data.groups": 4, "data.prefetch": 0, "meta_data.path": str(home / "samples.jsonl"),
        "meta_data.rows": 2, "meta_data.row_tokens": 128, "optimizer.learning_rate": 1e-2, "optimizer.warmup": 0.0,
        "run.steps": STEPS, "run.save_every": 2, "run.log_every": 1,
    }  # fmt: skip
    config = base.get_config()
    values |= dict(method.example) | {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(values)
    return config


def every(*left_out: str):
    names = [name for name in methods.METHODS if name not in left_out]
    return pytest.mark.parametrize("method", [methods.METHODS[name] for name in names], ids=names)


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flat(trainer.state.trainable).items()}


def gradient(trainer: Trainer, batch) -> dict[str, np.ndarray]:
    """Of one step on the batch, without the optimizer."""
    state = trainer._started()
    form = trainer.chosen.gradient(trainer.program.model, trainer.program.rate, None)
    key = jax.random.key(0)
    with jax.set_mesh(trainer.mesh):
        found, _ = jax.jit(lambda s, b: form(s.trainable, s.frozen, b, key, s))(state, batch)
    return {path: np.asarray(leaf, np.float64) for path, leaf in flat(found).items()}


def close(found, wanted, tolerance=1e-5):
    size = max(float(np.max(np.abs(leaf))) for leaf in wanted.values())
    assert size > 0
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=tolerance * size, err_msg=path)


def test_the_registry_refuses_a_name_that_is_taken():
    with pytest.raises(ValueError, match="method 'dpo': its name or its sections"):
        methods.register(methods.METHODS["dpo"])


@every()
def test_a_step_learns_and_the_same_seed_gives_the_same_bits(home, method):
    trainer, again = (Trainer(configured(home, method)) for _ in range(2))
    assert method in trainer.chosen.all
    before = bits_of_start(trainer)
    for run in (trainer, again):
        metrics = run.step()
        assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    assert bits(trainer) == bits(again) and bits(trainer) != before
    other = Trainer(configured(home, method, run__seed=1))
    other.step()
    assert bits(other) != bits(trainer)


def bits_of_start(trainer: Trainer) -> dict[str, bytes]:
    trainer._started()
    return bits(trainer)


@every()
def test_padding_changes_no_gradient(home, method):
    trainer = Trainer(configured(home, method))
    batch = trainer.source.next(None, 1)
    rows = (
        {name: with_empty_rows(f) for name, f in batch.items()} if isinstance(batch, dict) else with_empty_rows(batch)
    )
    close(gradient(trainer, rows), gradient(trainer, batch))


def with_empty_rows(forest):
    """As many again."""
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), forest, ForestShape(*forest.shape).empty())


@every()
def test_microbatches_give_the_whole_batch_s_gradient_or_are_refused(home, method):
    config = configured(home, method, optimizer__microbatches=2)
    whole = Trainer(configured(home, method))
    if whole.chosen.in_parts == "other":
        with pytest.raises(
            ValueError, match="config.optimizer.microbatches is 2, and the loss of .* is no sum over parts"
        ):
            Trainer(config)
        return
    batch = whole.source.next(None, 1)
    close(gradient(Trainer(config), batch), gradient(whole, batch))


@every()
def test_groups_of_weight_0_teach_nothing(home, method):
    if method.name == "language_model":
        pytest.skip("texts have no weight")
    trainer = Trainer(configured(home, method))
    batch = trainer.source.next(None, 1)

    def without(forest):
        return forest.replace(weight_RG=np.zeros_like(forest.weight_RG))

    light = {**batch, methods.MAIN: without(batch[methods.MAIN])} if isinstance(batch, dict) else without(batch)
    assert all(not np.any(leaf) for leaf in gradient(trainer, light).values())


@every()
def test_in_bf16_a_step_stays_finite_and_the_head_fp32(home, method):
    trainer = Trainer(configured(home, method, model__dtype="bfloat16"))
    metrics = trainer.step()
    assert all(np.isfinite(value) for value in metrics.values())
    assert trainer.params["head"]["kernel"].dtype == np.float32


@pytest.mark.slow
@every()
def test_a_stopped_run_ends_in_the_same_bits(home, method, tmp_path):
    config = configured(home, method)
    whole = Trainer(config, tmp_path / "whole")
    whole.run()
    stopped = Trainer(config, tmp_path / "stopped")
    draw = stopped.source.next
    stopped.source.next = lambda state, step: draw(state, step) if step < STEPS else 1 / 0
    with pytest.raises(ZeroDivisionError):
        stopped.run()
    resumed = Trainer(config, tmp_path / "stopped")
    resumed.run()
    assert bits(resumed) == bits(whole)


@pytest.mark.slow
@every()
def test_eight_devices_take_the_same_step(home, method, tmp_path):
    """In a process of its own: rows over two, parameters over two, heads over two devices."""
    changes = {"data__rows": 4, "meta_data__rows": 4, "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    script = (
        "import sys; from pathlib import Path; from rmjax import methods; from rmjax.trainer import Trainer\n"
        "from tests.methods.test_contract import configured\n"
        f"t = Trainer(configured(Path({str(home)!r}), methods.METHODS[{method.name!r}], **eval(sys.argv[1])))\n"
        "print(repr([t.step()['loss'] for _ in range(2)]))"
    )

    def losses(devices, changes):
        run = subprocess.run(
            [sys.executable, "-c", script, repr(changes)], env=os.environ | simulated.devices(devices), text=True,
            capture_output=True, cwd=Path(__file__).parents[2], check=True,
        )  # fmt: skip
        return json.loads(run.stdout.splitlines()[-1])

    one = losses(1, {"data__rows": 4, "meta_data__rows": 4})
    assert losses(8, changes) == pytest.approx(one, rel=2e-4)
