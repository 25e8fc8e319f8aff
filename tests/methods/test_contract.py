"""What every registered method has to keep: the same seed gives the same bits, padding and microbatches change no gradient,
weight 0 teaches nothing, a stopped run ends in the same bits, bf16 stays finite, devices divide the work."""

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
from rmjax.data.readers import open_records
from rmjax.models.parameters import flat
from rmjax.reward_model import RewardModel
from rmjax.trainer import Trainer
from tests import simulated
from tests.experiments.running import pool_rows, ranked_rows, text_rows
from tests.experiments.starting import save_start

STEPS = 4
KEY = jax.random.key(0)


def typed_rows():
    return [row | {"type": i % 2} for i, row in enumerate(ranked_rows())]


def sample_rows():
    return [
        {"prompt": f"Name {i}.", "reference": f"{i}", "outputs": [f"one {i}", "two"], "rewards": [1.0, i / 6]}
        for i in range(6)
    ]


FILES = {"pool": pool_rows, "comparisons": typed_rows, "texts": text_rows, "samples": sample_rows}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("contract")
    save_start(home / "start", head=0.2)
    for name, rows in FILES.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return home


def configured(home: Path, method: methods.Method, **changes) -> ConfigDict:
    """A small run of the method; `changes` has "__" for "."."""
    kinds = {"polar": "pool", "language_model": "texts", "policy_gradient": "samples"}
    kind = kinds.get(method.name, "comparisons")
    values = {
        "model.init": str(home / "start"), "data.kind": kind, "data.path": str(home / f"{kind}.jsonl"), "data.rows": 4,
        "data.row_tokens": 128, "data.groups": 4, "data.prefetch": 0, "meta_data.path": str(home / "samples.jsonl"),
        "meta_data.rows": 4, "meta_data.row_tokens": 128, "optimizer.learning_rate": 1e-2, "optimizer.warmup": 0.0,
        "run.steps": STEPS, "run.save_every": 2, "run.log_every": 1,
    }  # fmt: skip
    config = base.get_config()
    values |= dict(method.example) | {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(values)
    return config


class Case:
    """One trainer of a method, what its first batch is, and the compiled gradient that tests share."""

    def __init__(self, home: Path, method: methods.Method, **changes):
        self.home, self.method = home, method
        self.trainer = Trainer(configured(home, method, **changes))
        self.trainer._started()
        self.batch = self.trainer.source.next(self.trainer.state, 1)
        chosen, program = self.trainer.chosen, self.trainer.program
        form = chosen.gradient(program.model, program.rate, None)
        self._gradient = jax.jit(lambda s, b: form(s.trainable, s.frozen, b, KEY, s)[0])

    def gradient(self, batch) -> dict[str, np.ndarray]:
        with jax.set_mesh(self.trainer.mesh):
            return {
                path: np.asarray(x, np.float64) for path, x in flat(self._gradient(self.trainer.state, batch)).items()
            }


@pytest.fixture(scope="module", params=list(methods.METHODS))
def case(request, home):
    return Case(home, methods.METHODS[request.param])


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flat(trainer.state.trainable).items()}


def close(found, wanted):
    size = max(float(np.max(np.abs(leaf))) for leaf in wanted.values())
    assert size > 0
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-5 * size, err_msg=path)


def of_main(batch, change):
    """The batch with its main forest changed."""
    return {**batch, methods.MAIN: change(batch[methods.MAIN])} if isinstance(batch, dict) else change(batch)


def test_what_is_in_the_padding_changes_no_gradient(case):
    def scribbled(forest):
        padding = np.asarray(forest.group_RT) == 0
        assert padding.any()
        return forest.replace(tokens_RT=np.where(padding, 7, forest.tokens_RT).astype(np.int32))

    close(case.gradient(of_main(case.batch, scribbled)), case.gradient(case.batch))


def test_microbatches_give_the_whole_batch_s_gradient_or_are_refused(case):
    if case.trainer.chosen.in_parts == "other":
        with pytest.raises(
            ValueError, match="config.optimizer.microbatches is 2, and the loss of .* is no sum over parts"
        ):
            Trainer(configured(case.home, case.method, optimizer__microbatches=2))
        return
    parts = Case(case.home, case.method, optimizer__microbatches=2)
    close(parts.gradient(case.batch), case.gradient(case.batch))


def test_groups_of_weight_0_teach_nothing(case):
    light = of_main(case.batch, lambda forest: forest.replace(weight_RG=np.zeros_like(forest.weight_RG)))
    assert all(not np.any(leaf) for leaf in case.gradient(light).values())


def test_a_step_learns_and_the_same_seed_gives_the_same_bits(case):
    """The last test of a case: it moves the case's parameters."""
    assert case.method in case.trainer.chosen.all
    again, before = Trainer(configured(case.home, case.method)), bits(case.trainer)
    for metrics in (case.trainer.step(case.batch), again.step()):
        assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    assert bits(case.trainer) == bits(again) != before


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="method 'dpo': its name or its sections"):
        methods.register(methods.METHODS["dpo"])


every = pytest.mark.parametrize("method", list(methods.METHODS.values()), ids=list(methods.METHODS))


@pytest.mark.slow
@every
def test_in_bf16_a_step_stays_finite_and_the_head_fp32(home, method):
    trainer = Trainer(configured(home, method, model__dtype="bfloat16"))
    assert all(np.isfinite(value) for value in trainer.step().values())
    assert trainer.params["head"]["kernel"].dtype == np.float32


@pytest.mark.slow
@every
def test_a_stopped_run_ends_in_the_same_bits(home, method, tmp_path):
    config = configured(home, method)
    whole, stopped = Trainer(config, tmp_path / "whole"), Trainer(config, tmp_path / "stopped")
    whole.run()
    draw = stopped.source.next
    stopped.source.next = lambda state, step: draw(state, step) if step < STEPS else 1 / 0
    with pytest.raises(ZeroDivisionError):
        stopped.run()
    resumed = Trainer(config, tmp_path / "stopped")
    resumed.run()
    assert bits(resumed) == bits(whole)


ON_EIGHT_DEVICES = """
import json, sys
from pathlib import Path
from rmjax import methods
from tests.methods.test_contract import configured, losses

for name, method in methods.METHODS.items():
    found = losses(configured(Path(sys.argv[1]), method, mesh__data=2, mesh__fsdp=2, mesh__tensor=2))
    print(json.dumps([name, found]), flush=True)
"""


def losses(config: ConfigDict) -> list[float]:
    """Of two steps."""
    trainer = Trainer(config)
    return [trainer.step()["loss"] for _ in range(2)]


@pytest.fixture(scope="module")
def losses_of_eight(home):
    """Method → losses of two steps; rows over two, parameters over two, heads over two devices."""
    run = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(home)], text=True, capture_output=True,
        env=os.environ | simulated.devices(8), cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(json.loads(line) for line in run.stdout.splitlines() if line.startswith("["))


@pytest.mark.slow
@every
def test_eight_devices_take_the_same_step(losses_of_eight, home, method):
    assert losses_of_eight[method.name] == pytest.approx(losses(configured(home, method)), rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preference", "dpo", "ensemble", "crm"])
def test_a_saved_model_scores_as_the_trainer_does_and_starts_another_run(home, name, tmp_path):
    method = methods.METHODS[name]
    config = configured(home, method)
    config.evals.ranked = base.comparisons_eval(str(home / "comparisons.jsonl"))
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    found = trainer.evaluate()
    assert {"ranked/accuracy", "ranked/low"} <= set(found)
    assert ("ranked/disagreement" in found) == (name in ("ensemble", "crm"))
    model, records = RewardModel.load(tmp_path / "run"), list(open_records(home / "comparisons.jsonl"))
    scores = model.score_groups(records)
    assert np.mean([a > b for a, b in scores]) == found["ranked/accuracy"]
    assert len({round(a - b, 6) for a, b in scores}) > 1
    again = Trainer(configured(home, method, model__init=str(tmp_path / "run")))
    for path, leaf in flat(again.params).items():
        if name != "ensemble" or not path.startswith("head/"):
            assert np.array_equal(leaf, flat(trainer.params)[path]), path
