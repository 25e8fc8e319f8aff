"""MetaRM by `experiments.train`: what a run writes, that a stopped one ends in the same bits, and what bad input says."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import pytest
from ml_collections import ConfigDict
from tokenizers import pre_tokenizers

from configs import metarm
from rmjax import config as base
from rmjax import trainer
from rmjax.data import sources
from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.suites import suite_of
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, save_description
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.metrics import read_metrics
from rmjax.train.state import initial_params
from tests.compiling import AS_USERS
from tests.experiments import running
from tests.experiments.running import execute, final, only_error

pytestmark = pytest.mark.slow  # whole runs

SPECIAL = ["<file_sep>", "<empty_output>", "<|im_end|>"]
STEPS = 6
DEFAULT_FORMAT = Format(**base.get_config().format.to_dict())


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ranked(i):
    return {"prompt": f"Say {i}.", "reference": f"{i}", "chosen": f"It is {i}.", "rejected": "No.", "id": f"r{i}"}


def samples(i):
    return {"prompt": f"Name {i}.", "reference": f"{i}", "outputs": [f"one {i}", "two", "six", "ten"], "id": f"s{i}"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tiny reward models to start from, with a head and with one of zeros, ranked answers and samples."""
    home = tmp_path_factory.mktemp("metarm")
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    config = TransformerConfig(tokenizer.vocab_size, width=16, depth=1, heads=2, kv_heads=1, head_width=8, mlp_width=32)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 0))())
    head = {"kernel": 0.1 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)}
    for name, start in {"zero": params, "start": params | {"head": head}}.items():
        save_description(home / name, config, DEFAULT_FORMAT, tokenizer)
        with Checkpoints(home / name / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, {"trainable": start}, {}, wait=True)
    write(home / "ranked.jsonl", map(ranked, range(40)))
    write(home / "samples.jsonl", map(samples, range(12)))
    return home


def configured(home, **changes) -> ConfigDict:
    """`changes` has "__" for "."."""
    config = base.get_config()
    config.evals.gaps = base.samples_eval(str(home / "samples.jsonl"), kind="comparisons")
    values = {
        "model.init": str(home / "start"), "data.kind": "comparisons", "data.path": str(home / "ranked.jsonl"),
        "data.rows": 2, "data.row_tokens": 64, "gradient.name": "meta", "gradient.inner_learning_rate": 0.1,
        "meta_data.kind": "comparisons", "meta_data.path": str(home / "samples.jsonl"), "meta_data.samples": 3,
        "meta_data.rows": 2, "meta_data.row_tokens": 96, "optimizer.learning_rate": 1e-2, "optimizer.warmup": 0.0,
        "run.steps": STEPS, "run.save_every": 2, "run.log_every": 1,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config.lock()


@pytest.fixture(scope="module")
def whole(home):
    assert execute(configured(home), home / "whole") == 0
    return home / "whole"


def test_metrics(whole):
    lines = [line for line in read_metrics(whole / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["train/meta_lower"] == pytest.approx(1 / 3) and line["train/meta_upper"] == pytest.approx(2 / 3)
        assert 1 / 3 < line["train/meta_difference"] < 2 / 3 and 0 < line["train/meta_rescaled"] < 1
        assert line["train/meta_ascent"] == pytest.approx(0.1 * line["train/meta_gradient_norm"], rel=1e-3)
        assert -1 <= line["train/meta_cosine"] <= 1 and line["train/meta_cosine"] != 0
        assert line["train/meta_gap"] > 0 and line["train/meta_tied"] == 0
        wanted = line["train/meta_ascent"] / line["train/update_norm"] if line["train/update_norm"] else None
        assert line.get("train/meta_ascent_share") == (wanted and pytest.approx(wanted))
    assert lines[-1]["train/retraces"] == 1
    gaps = [line for line in read_metrics(whole / "metrics.jsonl") if "eval/gaps/gap_mean" in line]
    assert [line["step"] for line in gaps] == [0, STEPS]
    assert gaps[0]["eval/gaps/gap_mean"] != gaps[1]["eval/gaps/gap_mean"] > 0


@pytest.mark.parametrize("at", [2, 3])
def test_stopped_it_ends_in_the_same_bits(home, whole, tmp_path, monkeypatch, at):
    """Step 2 is saved, step 3 is not. Both streams go on where they were."""
    writer = trainer.MetricWriter

    class Killed(writer):
        def write(self, step, scalars):
            super().write(step, scalars)
            if step == at and "train/loss" in scalars:
                raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "MetricWriter", Killed)
    with pytest.raises(KeyboardInterrupt):
        execute(configured(home), tmp_path)
    monkeypatch.undo()
    assert execute(configured(home), tmp_path) == 0
    (_, leaves, data), (_, whole_leaves, whole_data) = final(tmp_path), final(whole)
    assert [name for name in whole_leaves if leaves[name] != whole_leaves[name]] == []
    assert data == whole_data and len(data["iterator"]) > 0


def test_eta_0_is_a_plain_run_bit_for_bit(home, tmp_path):
    options = tuple(f"{name}={value}" for name, value in AS_USERS.items())
    for name, changes in {"zero": {"gradient__inner_learning_rate": 0.0}, "plain": {"gradient__name": "plain"}}.items():
        assert execute(configured(home, run__steps=4, run__compiler_options=options, **changes), tmp_path / name) == 0
    assert final(tmp_path / "zero")[1] == final(tmp_path / "plain")[1]


@pytest.mark.parametrize("mode", ["parameter_norm", "step_norm", "preconditioned"])
def test_every_mode_runs(home, whole, tmp_path, mode):
    changes = {"gradient__mode": mode, "gradient__order": 2, "optimizer__microbatches": 2, "run__steps": 3}
    assert execute(configured(home, **changes), tmp_path) == 0
    last = read_metrics(tmp_path / "metrics.jsonl")[-2]
    assert last["train/meta_ascent"] > 0


def refused(home, workdir, capsys, **changes) -> str:
    return running.refused(configured(home, **changes), workdir, capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient__name": "metarm"}, "config.gradient.name is 'metarm'; choose plain or meta"),
        (
            {"gradient__mode": "sgd"},
            "config.gradient.mode is 'sgd'; choose plain, parameter_norm, step_norm or precond",
        ),
        ({"gradient__order": 3}, "config.gradient.order is 3; it must be 1 or 2"),
        ({"gradient__inner_learning_rate": -1.0}, "inner_learning_rate is -1.0; it must be 0 or more"),
        ({"meta_data__samples": 1}, "config.meta_data.samples is 1; a difference needs 2 or more"),
        ({"meta_data__kind": "texts"}, "config.meta_data.kind is 'texts'; choose pool or comparisons"),
        ({"meta_data__rows": 3, "optimizer__microbatches": 2}, "config.meta_data.rows is 3; make it a multiple of"),
        ({"meta_data__references": 1}, "references is 1, but"),
        ({"objective": "language_model", "data__kind": "texts"}, "gradient.name=meta needs preference"),
        ({"data__kind": "texts"}, "config.data.kind is 'texts', but objective=preference learns from pool or"),
        ({"meta_data__path": ""}, "config.meta_data.path is empty; name a file"),
        ({"meta_data__references": -1}, "config.meta_data.references is -1; it must be 0 or more"),
        (
            {"meta_data__kind": "pool", "meta_data__policies": "best"},
            "config.meta_data.policies is 'best'; choose seen",
        ),
        ({"gradient__warmup_steps": 6}, "config.gradient.warmup_steps is 6 of 6 steps; give fewer than run.steps"),
        ({"evals__gaps__source": "texts"}, "config.evals.gaps.source is 'texts'; choose pool or comparisons"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_values_that_no_run_can_have(home, tmp_path, capsys, changes, message):
    assert message in refused(home, tmp_path / "run", capsys, **changes)


def test_a_zero_head_is_an_error_unless_warm_up_moves_it(home, tmp_path, capsys):
    zero = {"model__init": str(home / "zero"), "run__steps": 4, "optimizer__warmup": 0.25}
    message = "the reward head is zero, so all rewards are equal and the difference loss has no gradient"
    assert message in refused(home, tmp_path / "a", capsys, **zero)
    # At the first step the learning rate is 0 still: one step of warm-up leaves the head where it is.
    assert message in refused(home, tmp_path / "b", capsys, gradient__warmup_steps=1, **zero)
    # A head that is not trained stays where it is, however long the warm-up.
    assert message in refused(home, tmp_path / "d", capsys, gradient__warmup_steps=2, trainable="/layers/", **zero)
    assert execute(configured(home, gradient__warmup_steps=2, **zero), tmp_path / "c") == 0
    lines = [line for line in read_metrics(tmp_path / "c" / "metrics.jsonl") if "train/loss" in line]
    assert [line["train/meta_ascent"] > 0 for line in lines] == [False, False, True, True]
    assert [line["train/meta_tied"] for line in lines] == [1, 1, 0, 0]
    assert ["train/meta_cosine" in line for line in lines] == [
        False,
        False,
        True,
        True,
    ]  # without an ascent there is none


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"outputs": ["a"], "reference": "r"}, "field `outputs`: only one answer; give two or more"),
        (
            {"outputs": ["a", "b"]},
            "a meta record without a reference, wrapper sft beside preference records with a ref",
        ),
        ({"outputs": ["a", "b"], "reference": "r", "wrapper": "pretrain"}, "with a reference, wrapper pretrain beside"),
    ],
)
def test_bad_meta_records_name_file_and_line(home, tmp_path, capsys, row, message):
    path = write(tmp_path / "meta.jsonl", [samples(0), {"prompt": "p", **row}])
    found = refused(home, tmp_path / "run", capsys, meta_data__path=path)
    assert found.startswith(f"error: {path}:2: ") and message in found


def test_groups_of_identical_answers_are_left_out(home, tmp_path, capsys, caplog):
    same = {"prompt": "p", "reference": "r", "outputs": ["a", "a", "a"], "id": "same"}
    path = write(tmp_path / "all.jsonl", [same, same])
    assert "no group of samples tells anything apart ({'all answers identical': 2})" in refused(
        home, tmp_path / "run", capsys, meta_data__path=path
    )
    path = write(tmp_path / "some.jsonl", [same, samples(0), same])
    assert execute(configured(home, meta_data__path=path, run__steps=2), tmp_path / "run") == 0
    assert "left out {'all answers identical': 2} of 3" in caplog.text


def test_groups_smaller_than_asked_for_are_said(home, tmp_path, caplog):
    path = write(tmp_path / "small.jsonl", [samples(0), samples(1) | {"outputs": ["a", "b"]}])
    assert execute(configured(home, meta_data__path=path, meta_data__samples=3, run__steps=1), tmp_path / "run") == 0
    assert "meta set: 1 of 2 groups have fewer than 3 answers (config.meta_data.samples)" in caplog.text


def test_an_eta_that_makes_nan_stops_with_the_ids_of_both_batches(home, tmp_path, capsys):
    message = refused_late(home, tmp_path, capsys, gradient__inner_learning_rate=1e38)
    assert "at step 1;" in message and "lower optimizer.learning_rate (and any other rate of the method)" in message
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert set(found["preference"]["ids"]) <= {f"r{i}" for i in range(40)} and found["preference"]["ids"]
    assert set(found["meta"]["ids"]) <= {f"s{i}" for i in range(12)} and found["meta"]["ids"]


def refused_late(home, workdir, capsys, **changes) -> str:
    assert execute(configured(home, **changes), workdir) == 1
    return only_error(capsys)


# --- the shipped config ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", metarm.INNER_LEARNING_RATE)
def test_the_shipped_config_has_groups_of_the_form_of_its_preferences(mode):
    config = metarm.get_config(mode)
    assert (config.gradient.name, config.gradient.mode) == ("meta", mode)
    groups = sources.sample_groups(config.meta_data, config.meta_data.kind, "meta_data")
    assert min(len(c.outputs) for c in groups) >= config.meta_data.samples + config.meta_data.references
    assert all(c.references and len(c.outputs) > 1 for c in suite_of(config.evals.gaps).load(config.evals.gaps).records)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="metarm.py:sgd is no mode; choose one of plain, parameter_norm, step_norm"):
        metarm.get_config("sgd")
