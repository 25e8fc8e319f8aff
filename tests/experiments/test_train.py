"""`python -m experiments.train`: what it writes, that a killed run ends in the same bits, and what bad input says."""

import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from tokenizers import pre_tokenizers

from configs import base
from configs.polar import pretrain
from experiments import train as command
from rmjax.data.formats import Format
from rmjax.hub.tokenizer import Tokenizer
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, RewardModel, load_params, save_description
from rmjax.train import checkpoint
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.manifest import MANIFEST
from rmjax.train.metrics import read_metrics
from rmjax.train.parameters import flat
from rmjax.train.state import initial_params

ROOT = Path(__file__).parents[2]
SPECIAL = ["<file_sep>", "<empty_output>", "<|im_end|>"]
STEPS = 30
DEFAULT_FORMAT = Format(**base.get_config().format.to_dict())
SPEEDS = ("tokens_per_second", "pairs_per_second", "step_seconds", "data_wait_fraction", "mfu")
NUMBERS = ("loss", "accuracy", "ties", "margin", "reward_mean", "reward_std", "pad_fraction", "sharing_factor")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny reward model to start from, a pool, ranked answers, texts, and a cache of compiled programs for all runs."""
    home = tmp_path_factory.mktemp("train")
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    config = TransformerConfig(tokenizer.vocab_size, width=32, depth=2, heads=4, kv_heads=2, head_width=8, mlp_width=64)
    save_description(home / "start", config, DEFAULT_FORMAT, tokenizer)
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 0))())
    with Checkpoints(home / "start" / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": params}, {}, wait=True)
    for name, rows in {"pool": pool_rows(), "ranked": ranked_rows(), "texts": text_rows()}.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(home / "cache"))
    yield home
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


def pool_rows():
    words = ["yes", "no", "maybe", "never"]
    return [
        {"prompt_id": f"p{p}", "prompt": f"What is {p} times {p + 3}?", "policy": f"q{policy}", "sample": sample,
         "output": " ".join([words[policy]] * (2 + sample) + [str(p + sample)]), "kind": f"k{policy % 2}",
         "policy_split": "seen", "prompt_split": "unseen" if p > 11 else "seen"}
        for p in range(16) for policy in range(4) for sample in range(2)
    ]  # fmt: skip


def ranked_rows():
    return [
        {"prompt": f"Say {i}.", "reference": f"{i}", "chosen": f"It is {i}.", "rejected": "No.", "id": f"r{i}"}
        for i in range(8)
    ]


def text_rows():
    return [{"prompt": f"Q{i}:", "output": f"A{i}"} for i in range(8)]


def configured(home, **changes) -> ConfigDict:
    """The config of POLAR pre-training, tiny; `changes` has "__" for "."."""
    config = pretrain.get_config()
    del config.evals["unseen"]
    values = {
        "model.init": str(home / "start"), "model.layers": 0, "model.frozen_layers": 0,
        "data.path": str(home / "pool.jsonl"), "data.rows": 4,
        "data.row_tokens": 256, "data.leaves": 4, "run.steps": STEPS, "run.save_every": 3, "run.log_every": 1,
        "run.keep": 2, "evals.seen.path": str(home / "pool.jsonl"), "evals.seen.per_prompt": 1, "evals.seen.every": 8,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config.lock()


def execute(config, workdir) -> int:
    """The exit code of the command, run in this process."""
    return command.guarded(functools.partial(command.run, config, Path(workdir)))


def launch(home, workdir, *flags, config=None, **environment):
    """The command as a user runs it."""
    if config is None:
        config = home / "config.py"
        values = json.loads(configured(home).to_json())
        config.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n")
    arguments = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}", *flags]
    environment = os.environ | {"RMJAX_CACHE": str(home / "cache"), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process) -> tuple[int, str]:
    return process.wait(timeout=600), process.stderr.read()


# --- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(home):
    """An uninterrupted run."""
    assert execute(configured(home), home / "whole") == 0
    return home / "whole"


def final(workdir):
    """All leaves of the last checkpoint as bytes, and the state of the data."""
    leaves = {}
    with Checkpoints(workdir / CHECKPOINTS) as saved:
        for part in ("step", "trainable", "frozen", "optimizer", "rng"):
            step, tree = saved.restore_subtree(part)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                leaves[part + jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
        return step, leaves, json.loads((saved.directory / str(step) / "data_0.json").read_text())


def told(workdir):
    """The metric lines without what depends on time."""
    hidden = {"time", *(f"train/{name}" for name in SPEEDS)}
    return [{k: v for k, v in line.items() if k not in hidden} for line in read_metrics(workdir / "metrics.jsonl")]


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


def newest(workdir) -> int:
    return max((int(p.parent.name) for p in (workdir / CHECKPOINTS).glob(f"*/{MANIFEST}")), default=0)


def saving(workdir, after) -> bool:
    """A checkpoint of a later step than `after` is being written."""
    directories = [p for p in (workdir / CHECKPOINTS).glob("*") if p.name.isdigit() and int(p.name) > after]
    return any((p / "state").exists() or list(p.glob("state*")) for p in directories if not (p / MANIFEST).exists())


def lines_written(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_when(process, condition, stop) -> None:
    """Waits, then sends the signal, unless the process ended before."""
    while process.poll() is None and not condition():
        time.sleep(0.001)
    process.send_signal(stop)


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
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_ends_in_the_same_bits(home, whole, seed):
    choice, workdir = random.Random(seed), home / f"killed{seed}"
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


# --- bad input ---------------------------------------------------------------------------------------------------------


def only_error(capsys) -> str:
    """The one line of the error, without a traceback."""
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("WARNING", "run "))]
    errors = [line for line in errors if line.startswith("error: ") or "Traceback" in line]
    assert len(errors) == 1, errors
    return errors[0]


def refused(home, workdir, capsys, **changes) -> str:
    assert execute(configured(home, **changes), workdir) == 1
    assert not list(Path(workdir).glob(f"{CHECKPOINTS}/*"))
    return only_error(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "preferences"}, "config.objective is 'preferences'; choose preference or language_model"),
        ({"loss__name": "bradley"}, "loss 'bradley' is unknown; choose one of bradley_terry, focal, listwise"),
        ({"loss__penalty": "log"}, "penalty 'log' is unknown; choose one of log_barrier, squared"),
        ({"data__kind": "pools"}, "config.data.kind is 'pools'; choose pool, comparisons or texts"),
        ({"data__policies": "sen"}, "config.data.policies is 'sen'; choose seen, unseen or all"),
        ({"data__leaves": 2}, "config.data.leaves is 2; 3 negatives need 4"),
        ({"data__rows": 0}, "config.data.rows is 0; it must be 1 or more"),
        ({"run__save_every": 0}, "config.run.save_every is 0"),
        ({"optimizer__microbatches": 3}, "config.data.rows is 4; make it a multiple of"),
        ({"mesh__tensor": 3}, "devices; there are"),
        ({"model__dtype": "float33"}, "config.model.dtype is 'float33'; choose float32 or bfloat16"),
        ({"model__remat": "all"}, "remat is 'all'; choose one of"),
        ({"model__width": 64}, "config.model.width is set, but loaded weights have their own"),
        ({"model__layers": 3}, "config.model.layers is 3; the loaded model has 2"),
        ({"model__frozen_layers": 2}, "config.model.frozen_layers is 2; it must leave one of the 2 layers"),
        ({"model__frozen_layers": 1, "trainable": "layers"}, "'layers' and matches frozen layers too"),
        ({"trainable": "lora"}, "trainable is 'lora' and matches no parameter; paths: backbone/embedding/embedding, "),
        ({"format__reward_token": "<|reward|>"}, "<|reward|>"),
        ({"data__path": ""}, "is a directory"),
        ({"data__path": "shipped:nothing"}, "shipped:nothing: no such part of the shipped corpus"),
        ({"evals__seen__kind": "pol"}, "config.evals.*.kind is 'pol'; choose pool, comparisons or samples"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_values_that_no_run_can_have(home, tmp_path, capsys, changes, message):
    assert message in refused(home, tmp_path / "run", capsys, **changes)


def test_missing_files_are_named(home, tmp_path, capsys):
    (tmp_path / "pool_1.jsonl").touch()
    missing = tmp_path / "pool_2.jsonl"
    assert f"{missing}: no such file; near names in {tmp_path}: pool_1.jsonl" in refused(
        home, tmp_path / "a", capsys, data__path=str(missing)
    )
    assert str(missing) in refused(home, tmp_path / "b", capsys, evals__seen__path=str(missing))
    assert f"config.model.init={tmp_path}/none" in refused(home, tmp_path / "c", capsys, model__init=f"{tmp_path}/none")
    assert f"{tmp_path}/model.json: not there" in refused(home, tmp_path / "d", capsys, model__init=str(tmp_path))


POOL_LINE = json.dumps(pool_rows()[0]) + "\n"


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("pool", "", ": empty data set; give a file with at least one record"),
        ("comparisons", "\n\n", ": empty data set"),
        ("pool", POOL_LINE, "the pool gives no triple"),
        ("pool", POOL_LINE + "{oops\n", ":2: broken JSON (column 2: "),
        ("pool", POOL_LINE + "[1]\n", ":2: not a JSON object"),
        ("pool", POOL_LINE + POOL_LINE.replace('"policy"', '"polcy"'), ":2: field `policy` is missing"),
        ("comparisons", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', ":1: field `reference`"),
        ("comparisons", '{"prompt": "a", "reference": "r", "output": "b"}\n', ":1: "),
        ("comparisons", '{"prompt": "a", "reference": "r", "chosen": "b", "rejected": "b"}\n', ":1: "),
        ("texts", '{"prompt": "a", "output": "b"}\n{"prompt": "a"}\n', ":2: field `output`: missing or not text"),
        ("texts", '{"prompt": "a", "output": "b\xff"}\n', ":1: not UTF-8"),
    ],
)
def test_bad_data_names_file_and_line(home, tmp_path, capsys, kind, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode("latin-1"))
    found = refused(home, tmp_path / "run", capsys, data__kind=kind, data__path=str(path))
    assert message in found
    if "no triple" not in message:
        assert found.startswith(f"error: {path}{message if message.startswith(':') else ''}")


def test_data_that_ends_before_the_last_step(home, tmp_path, capsys):
    changes = {"data__kind": "comparisons", "data__path": str(home / "ranked.jsonl"), "data__epochs": 1}
    assert execute(configured(home, **changes), tmp_path) == 1
    assert "the data ended after step 1 of 30; raise data.epochs or lower run.steps" in only_error(capsys)


def test_language_model_training_on_texts(home, tmp_path):
    changes = {"data__kind": "texts", "data__path": str(home / "texts.jsonl"), "objective": "language_model"}
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


def test_a_workdir_that_cannot_be_written(home, tmp_path, capsys):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        assert execute(configured(home), workdir) == 1
        assert f"--workdir={workdir} cannot be written (" in only_error(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(home, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert execute(configured(home), tmp_path / "run") == 1
    assert f"--workdir={tmp_path}/run cannot be written (Permission denied)" in only_error(capsys)


def test_a_full_disk(home, tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    assert execute(configured(home), tmp_path) == 1
    assert f"cannot save checkpoint {tmp_path}/checkpoints/3: the disk is full: free some space" in only_error(capsys)
    assert newest(tmp_path) == 0
    monkeypatch.undo()
    assert execute(configured(home), tmp_path) == 0


def with_another_width(home, directory):
    """A run directory whose description and checkpoint disagree."""
    shutil.copytree(home / "start", directory)
    described = json.loads((directory / "model.json").read_text())
    described["transformer"]["mlp_width"] = 48
    (directory / "model.json").write_text(json.dumps(described))
    return directory


def test_a_start_of_another_architecture_lists_the_paths(home, tmp_path, capsys):
    start = with_another_width(home, tmp_path / "start")
    found = refused(home, tmp_path / "run", capsys, model__init=str(start))
    assert "another architecture" in found
    assert "backbone/layers/mlp/up/kernel: (2, 32, 64) there, (2, 32, 48) here" in found


def test_a_start_without_head(home, tmp_path, capsys):
    shutil.copytree(home / "start", tmp_path / "start")
    shutil.rmtree(tmp_path / "start" / CHECKPOINTS)
    with Checkpoints(home / "start" / CHECKPOINTS) as saved:
        backbone = saved.restore_subtree("trainable")[1]["backbone"]
    with Checkpoints(tmp_path / "start" / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": {"backbone": backbone}}, {}, wait=True)
    found = refused(home, tmp_path / "run", capsys, model__init=str(tmp_path / "start"))
    assert "head/kernel: missing there" in found


def test_a_workdir_with_another_architecture_is_refused_and_left_as_it_was(home, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert execute(configured(home, model__layers=1), tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "is of another architecture or optimizer" in error and "Traceback" not in error
    assert "layers/attention/query/kernel: (2, 32, 32) in the checkpoint, (1, 32, 32) in this model" in error
    assert execute(configured(home, format__max_length=512), tmp_path / "run") == 1
    assert "format.max_length: 1024 then, 512 now" in only_error(capsys)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optimizer.learing_rate=1", "there is no config key `learing_rate`; did you mean `learning_rate`?"),
        ("--config.optimiser.clip=1", "there is no config key `optimiser`; did you mean `optimizer`?"),
        ("--config.data.rows=many", "invalid literal for int() with base 10: 'many'"),
        ("--config.objective=rank", "error: config.objective is 'rank'; choose preference or language_model"),
    ],
)
def test_bad_flags_are_one_clear_line(home, tmp_path, flag, message):
    code, error = finished(launch(home, tmp_path / "run", flag))
    assert code == 1
    assert message in error and "Traceback" not in error
    assert flag.split("=")[0].removeprefix("--") in error


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
