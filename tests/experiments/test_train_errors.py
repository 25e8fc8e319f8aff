"""`python -m experiments.train`: what bad input says."""

import errno
import json
import os
import shutil

import pytest

from rmjax.locks import locked
from rmjax.reward_model import CHECKPOINTS
from rmjax.train import checkpoint
from rmjax.train.checkpoint import Checkpoints
from tests.experiments import running
from tests.experiments.running import (
    configured,
    execute,
    finished,
    launch,
    newest,
    only_error,
    pool_rows,
)

# --- bad input ---------------------------------------------------------------------------------------------------------


def refused(home, workdir, capsys, **changes) -> str:
    return running.refused(configured(home, **changes), workdir, capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "preferences"},
            "config.objective is 'preferences'; choose preference, language_model, dpo or policy_gradient",
        ),
        ({"loss__name": "bradley"}, "config.loss.name is 'bradley'; choose bradley_terry, focal, listwise, k_way, "),
        ({"loss__penalty": "log"}, "config.loss.penalty is 'log'; choose '', log_barrier, squared or centering"),
        ({"data__kind": "pools"}, "config.data.kind is 'pools'; choose comparisons, pool, texts, samples or rollouts"),
        ({"data__policies": "sen"}, "config.data.policies is 'sen'; choose seen, unseen or all"),
        ({"data__candidates": 2}, "config.data.candidates is 2; 3 negatives need 4"),
        ({"data__rows": 0}, "config.data.rows is 0; it must be 1 or more"),
        ({"run__save_every": 0}, "config.run.save_every is 0"),
        ({"optimizer__microbatches": 3}, "config.data.rows is 4; make it a multiple of"),
        ({"mesh__tensor": 3}, "devices; there are"),
        ({"model__dtype": "float33"}, "config.model.dtype is 'float33'; choose float32 or bfloat16"),
        ({"model__remat": "all"}, "config.model.remat is 'all'; choose none, dots, attention or full"),
        ({"model__width": 64}, "config.model.width is set, but loaded weights have their own"),
        ({"model__layers": 3}, "config.model.layers is 3; the loaded model has 2"),
        ({"model__frozen_layers": 2}, "config.model.frozen_layers is 2; it must leave one of the 2 layers"),
        ({"model__frozen_layers": 1, "trainable": "layers"}, "'layers' and matches frozen layers too"),
        ({"trainable": "lora"}, "trainable is 'lora' and matches no parameter; paths: backbone/embedding/embedding, "),
        ({"format__reward_token": "<|reward|>"}, "<|reward|>"),
        ({"data__path": ""}, "is a directory"),
        ({"data__path": "shipped:nothing"}, "shipped:nothing: no such part of the shipped corpus"),
        (
            {"evals__seen__kind": "pol"},
            "config.evals.seen.kind is 'pol'; choose pool, comparisons, samples, suite or answers",
        ),
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
        (
            "pool",
            POOL_LINE + POOL_LINE.replace('"policy"', '"polcy"'),
            ":2: field `policy`: missing; did you mean `policy`",
        ),
        ("comparisons", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', ":1: field `reference`"),
        ("comparisons", '{"prompt": "a", "reference": "r", "output": "b"}\n', ":1: "),
        ("comparisons", '{"prompt": "a", "reference": "r", "chosen": "b", "rejected": "b"}\n', ":1: "),
        ("texts", '{"prompt": "a", "output": "b"}\n{"prompt": "a"}\n', ":2: field `outputs`: missing; add"),
        ("texts", '{"prompt": "a", "output": "b\xff"}\n', ":1: not UTF-8"),
    ],
)
def test_bad_data_names_file_and_line(home, tmp_path, capsys, kind, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode("latin-1"))
    texts = {"objective": "language_model", "format__kind": "plain"} if kind == "texts" else {}
    found = refused(home, tmp_path / "run", capsys, data__kind=kind, data__path=str(path), **texts)
    assert message in found
    if "no triple" not in message:
        assert found.startswith(f"error: {path}{message if message.startswith(':') else ''}")


def test_data_that_ends_before_the_last_step(home, tmp_path, capsys):
    changes = {"data__kind": "comparisons", "data__path": str(home / "ranked.jsonl"), "data__epochs": 1}
    assert execute(configured(home, **changes), tmp_path) == 1
    assert "the data ended after step 1 of 30; raise data.epochs or lower run.steps" in only_error(capsys)


def test_a_workdir_that_cannot_be_written(home, tmp_path, capsys):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        assert execute(configured(home), workdir) == 1
        assert f"--workdir={workdir} cannot be written (" in only_error(capsys)


def test_a_workdir_that_another_run_holds(home, tmp_path, capsys):
    with locked(tmp_path):
        assert execute(configured(home), tmp_path) == 1
    error = only_error(capsys)
    assert not list(tmp_path.iterdir())
    assert f"{tmp_path} is in use by another run (pid {os.getpid()} on " in error and "use another workdir" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(home, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert execute(configured(home), tmp_path / "run") == 1
    assert f"--workdir={tmp_path}/run cannot be written (Permission denied)" in only_error(capsys)


@pytest.mark.slow
def test_a_full_disk(home, tmp_path, capsys, monkeypatch):
    def full(*_):
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
        (
            "--config.objective=rank",
            "error: config.objective is 'rank'; choose preference, language_model, dpo or policy_gradient",
        ),
        (
            "--config.model.attention=pallas",
            "is 'pallas', kernels for TPUs and GPUs, and this run is on cpu; use 'blockwise'",
        ),
    ],
)
def test_bad_flags_are_one_clear_line(home, tmp_path, flag, message):
    code, error = finished(launch(home, tmp_path / "run", flag))
    assert code == 1
    assert message in error and "Traceback" not in error
    assert flag.split("=")[0].removeprefix("--") in error
