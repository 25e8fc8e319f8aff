"""`python -m experiments.train`: what it writes, and that a killed run ends in the same bits."""

import dataclasses
import functools
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from rmjax import config as base
from rmjax.models import parameters
from rmjax.models.parameters import flat
from rmjax.parallel.mesh import RULES, make_mesh
from rmjax.program import first_state, make_program
from rmjax.reward_model import CHECKPOINTS, RewardModel, load_params
from rmjax.start import start_of
from rmjax.train.metrics import read_metrics
from rmjax.train.state import initial_params
from tests.experiments.running import (
    SPEEDS,
    STEPS,
    configured,
    execute,
    final,
    finished,
    launch,
    lines_written,
    newest,
    only_error,
    saving,
    stop_when,
    told,
)

NUMBERS = ("loss", "accuracy", "ties", "margin", "reward_mean", "reward_std", "pad_fraction", "sharing_factor")


# --- a whole run -------------------------------------------------------------------------------------------------------


def assert_same(workdir, whole):
    (step, leaves, data), (whole_step, whole_leaves, whole_data) = final(workdir), final(whole)
    assert step == whole_step == STEPS
    assert leaves.keys() == whole_leaves.keys()
    assert [name for name in leaves if leaves[name] != whole_leaves[name]] == []
    assert data == whole_data
    assert told(workdir) == told(whole)


def test_metrics(whole):
    lines = read_metrics(whole / "metrics.jsonl")
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(f"train/{name}" in line for line in steps for name in NUMBERS)
    assert all(line[f"train/{name}"] >= 0 for line in steps[1:] for name in SPEEDS)
    assert steps[0]["train/loss"] == pytest.approx(np.log(2), rel=2e-7)
    assert (steps[0]["train/accuracy"], steps[0]["train/ties"], steps[0]["train/reward_std"]) == (0.5, 1.0, 0.0)
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    assert steps[-1]["train/retraces"] == 1
    assert steps[-1]["train/sharing_factor"] > 2 and 0 < steps[-1]["train/pad_fraction"] < 1
    evaluations = [line for line in lines if "eval/seen/accuracy" in line]
    assert [line["step"] for line in evaluations] == [0, 8, 16, 24, STEPS]
    assert evaluations[0]["eval/seen/accuracy"] == 0.5 and evaluations[0]["eval/seen/ties"] > 0
    assert all(line[f"eval/seen/{name}"] >= 0 for line in evaluations for name in ("low", "high", "ties"))


def test_what_a_run_leaves(whole):
    step, leaves, data = final(whole)
    assert {name.split("[")[0] for name in leaves} == {"step", "trainable", "frozen", "optimizer", "rng"}
    assert data["iterator"]
    assert json.loads((whole / "config.json").read_text())["run"]["steps"] == STEPS
    scores = RewardModel.load(whole).score([{"prompt": "What is 3 times 6?", "reference": "no 3", "output": "no no"}])
    assert isinstance(scores[0], float) and scores[0] != 0.0


def test_run_again_a_finished_run_changes_nothing(home, whole):
    before = told(whole), final(whole)
    assert execute(configured(home), whole) == 0
    assert (told(whole), final(whole)) == before


# --- a stopped run -----------------------------------------------------------------------------------------------------


def flip_a_bit(workdir) -> Path:
    """Damages the newest checkpoint."""
    directory = workdir / CHECKPOINTS / str(newest(workdir))
    file = max((p for p in (directory / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return directory


@pytest.mark.slow
def test_killed_terminated_and_damaged_it_ends_in_the_same_bits(home, whole):
    workdir = home / "stopped"
    process = launch(home, workdir)
    stop_when(process, lambda: saving(workdir, after=3), signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL
    killed_at = newest(workdir)
    assert 3 <= killed_at < STEPS - 3

    process = launch(home, workdir)
    # The lines after the checkpoint are cut off first, then written again.
    stop_when(process, lambda: newest(workdir) > killed_at, signal.SIGTERM)
    code, told_user = finished(process)
    assert code == 0
    stopped_at = newest(workdir)
    assert f"asked to stop: saved step {stopped_at} of {STEPS}; run the same command to go on" in told_user
    assert killed_at < stopped_at < STEPS

    damaged = flip_a_bit(workdir)
    code, told_user = finished(launch(home, workdir))
    assert code == 0
    assert f"checkpoint of step {stopped_at} is damaged" in told_user and "SHA-256 differs" in told_user
    assert damaged.with_name(f"{stopped_at}.damaged").is_dir()
    assert_same(workdir, whole)


def test_a_damaged_last_checkpoint_is_made_again(home, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    flip_a_bit(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=f"checkpoint of step {STEPS} is damaged"):
        assert execute(configured(home), tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_random_moments_and_in_saving_it_ends_in_the_same_bits(home, whole):
    choice, workdir = random.Random(0), home / "killed"
    for number in range(6):
        process = launch(home, workdir)
        if number % 3 == 2:
            at = newest(workdir)
            stop_when(process, lambda at=at: saving(workdir, at), signal.SIGKILL)
        else:
            written = lines_written(workdir)
            stop_when(process, lambda n=written: lines_written(workdir) != n, signal.SIGCONT)
            time.sleep(choice.uniform(0, 1.0))
            process.kill()
        if finished(process)[0] == 0:
            break
    code, told_user = finished(launch(home, workdir))
    assert code == 0, told_user
    assert_same(workdir, whole)


# --- NaN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_diverging_run_stops_with_the_ids_of_its_batch(home, tmp_path, capsys):
    config = configured(home, optimizer__learning_rate=1e30, optimizer__clip=1e30)
    assert execute(config, tmp_path) == 1
    message = only_error(capsys)
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert re.search(rf"is (nan|inf) at step {found['step']};", message) and f"{tmp_path}/diverged.json" in message
    assert found["step"] < STEPS and len(found["records"]) == len(found["ids"]) > 0
    assert set(found["ids"]) <= {f"p{i}" for i in range(12)}
    assert newest(tmp_path) < found["step"]
    assert lines_written(tmp_path) <= found["step"] + 1


@pytest.mark.slow
def test_language_model_training_on_texts(home, tmp_path):
    changes = {"data__kind": "texts", "data__path": str(home / "texts.jsonl"), "objective": "language_model"}
    changes["format__kind"] = "plain"
    config = configured(home, run__steps=3, optimizer__learning_rate=1e-2, **changes)
    assert execute(config, tmp_path) == 0
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow
def test_frozen_layers_stay_and_the_others_move(home, tmp_path):
    assert execute(configured(home, model__frozen_layers=1, run__steps=3), tmp_path / "frozen") == 0
    start, end = load_params(home / "start")["backbone"], load_params(tmp_path / "frozen")["backbone"]
    for path, leaf in flat(end["frozen_layers"]).items():
        np.testing.assert_array_equal(leaf, flat(start["layers"])[path][:1])
    assert np.abs(end["layers"]["mlp"]["up"]["kernel"] - start["layers"]["mlp"]["up"]["kernel"][1:]).max() > 0
    row = {"prompt": "What is 1 times 4?", "reference": "yes yes 1", "output": "yes yes yes 2"}
    assert np.isfinite(RewardModel.load(tmp_path / "frozen").score([row])).all()
    # What was frozen may be trained later.
    config = configured(home, model__init=str(tmp_path / "frozen"), run__steps=3)
    assert execute(config, tmp_path / "thawed") == 0
    assert "frozen_layers" not in load_params(tmp_path / "thawed")["backbone"]


@pytest.mark.slow
def test_a_real_vocabulary_and_random_weights(home, tmp_path, smollm2):
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64, "layers": 2, "frozen_layers": 1}
    flags = ["--config.model.init=random", *(f"--config.model.{name}={size}" for name, size in sizes.items())]
    flags += [f"--config.{name}.path={home}/pool.jsonl" for name in ("data", "evals.seen", "evals.unseen")]
    flags += ["--config.evals.unseen.policies=all", "--config.run.steps=3", "--config.data.row_tokens=128"]
    code, error = finished(launch(home, tmp_path, *flags, config="configs/polar/pretrain.py"))
    assert code == 0, error
    assert [line["train/retraces"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line] == [1]
    model = RewardModel.load(tmp_path)
    assert model.config.vocab_size == smollm2[0].vocab_size and model.config.depth == 2


@pytest.mark.parametrize("seed", [0, 7, 2**33 + 5])
def test_random_weights_are_those_of_the_seed_though_the_program_takes_it_as_an_argument(home, seed):
    config = configured(home, run__seed=seed)
    chosen = base.chosen(config)
    start, mesh = dataclasses.replace(start_of(chosen), params=None), make_mesh({})
    program = make_program(chosen, start.config, mesh, RULES)
    with jax.set_mesh(mesh):
        state = first_state(chosen, program, start)
    wanted = flat(nn.meta.unbox(jax.jit(functools.partial(initial_params, program.model, seed))()))
    found = flat(parameters.merge(state.trainable, state.frozen))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    assert np.array_equal(state.rng, jax.random.key_data(jax.random.key(seed)))


@pytest.mark.slow
def test_a_second_process_compiles_no_step_again(home, tmp_path):
    """Programs are kept in RMJAX_CACHE; another workdir and seed change nothing in them."""
    cache = {"RMJAX_CACHE": str(tmp_path / "cache"), "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}

    def said(workdir, seed):
        flags = "--config.run.steps=2", f"--config.run.seed={seed}"
        code, text = finished(launch(home, tmp_path / workdir, *flags, **cache))
        assert code == 0, text
        return text

    def keys(text, pattern):
        return set(re.findall(rf"{pattern} for 'jit_\w+' with key '(jit_\w+-\w+)'", text))

    first = said("one", 0)
    kept = {path.name.removesuffix("-cache") for path in (tmp_path / "cache").glob("jit_*-cache")}
    if not kept:
        pytest.skip("every program compiled in less than a second; such are not kept")
    second = said("two", 1)
    assert kept <= keys(first, "CACHE MISS") and not kept & keys(first, "cache hit")
    assert kept <= keys(second, "cache hit") and not kept & keys(second, "CACHE MISS")
