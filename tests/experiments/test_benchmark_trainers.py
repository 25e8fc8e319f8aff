"""The benchmark against TRL: what it writes for the other side, what it refuses, how it goes on. Nothing is timed here."""

import ast
import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import benchmark as benchmark_config
from experiments import benchmark_trainers as benchmark
from experiments.trainers import generated, polar, results, rmjax_side
from rmjax.data.readers import open_records
from rmjax.models.reward import RewardTransformer
from tests.experiments import numpy_llama
from tests.experiments.starting import save_start

REPOSITORY = Path(__file__).parents[2]
BATCHES, STEPS = (2, 4), (1, 1)


def pairs_file(path: Path, count: int = 40) -> str:
    random = np.random.default_rng(0)
    texts = [
        ["".join(random.choice(list("abcdef "), n)) + "x" for n in random.integers(3, 12, 3)] for _ in range(count)
    ]
    rows = [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two layers with byte tokens, and pairs."""
    folder = tmp_path_factory.mktemp("bench")
    save_start(folder / "start")
    pairs_file(folder / "pairs.jsonl")
    return folder


def plan_of(folder: Path, workdir: Path, peer: str = "none", **changes) -> benchmark.Plan:
    config = benchmark_config.get_config()
    config.model.init, config.data.path = str(folder / "start"), str(folder / "pairs.jsonl")
    config.data.row_tokens, config.format.max_length = 64, 64
    plan = benchmark.Plan(
        benchmark.changes(config),
        BATCHES,
        STEPS,
        at_once=2,
        rounds=2,
        groups=2,
        candidates=3,
        peer=peer,
        workdir=workdir,
    )
    return dataclasses.replace(plan, **changes)


# --- what is written for the other side ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(folder):
    """The files for the other side, what `prepare` found, and loss and rewards of our side."""
    plan = plan_of(folder, folder / "prepared")
    job = {"config": plan.config, "model": str(folder / "model"), "pairs": str(folder / "pairs"), "rounds": 2}
    job |= {"batches": BATCHES, "parts": [1, 2], "steps": [2, 2], "batch": 2}
    return rmjax_side.prepare(job), rmjax_side.agree(job)


def other_side(folder: Path, model: Path) -> list[list[float]]:
    """A Llama written in numpy, on the files."""
    rows = [json.loads(line) for line in (folder / "pairs" / "2.0.jsonl").read_text().splitlines()][:2]
    return [[numpy_llama.reward(model, row[name]) for name in ("chosen_ids", "rejected_ids")] for row in rows]


def test_a_llama_on_the_written_files_gives_our_rewards(folder, prepared):
    _, ours = prepared
    rewards = other_side(folder, folder / "model")
    loss = np.mean([math.log1p(math.exp(b - a)) for a, b in rewards])
    found = benchmark.check_agreement(ours, {"loss": loss, "rewards": rewards})
    assert max(found["loss"], found["rewards"]) < 1e-5 and found["spread_of_rewards"] > 0.1


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "score.weight"])
def test_other_weights_are_noticed(folder, prepared, tmp_path, name):
    _, ours = prepared
    tensors = load_file(folder / "model" / "model.safetensors")
    tensors[name] = tensors[name] * 1.1
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "model" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"differ on the same batch, .* more than 0.001: .* nothing is timed"):
        benchmark.check_agreement(ours, {"loss": ours["loss"], "rewards": other_side(folder, tmp_path)})


def test_rewards_that_are_not_numbers_do_not_agree():
    with pytest.raises(ValueError, match="nothing is timed"):
        benchmark.check_agreement({"loss": 1.0, "rewards": [[0.0, 1.0]]}, {"loss": math.nan, "rewards": [[0.0, 1.0]]})


def test_every_round_has_pairs_of_its_own_in_the_order_of_training(folder, prepared):
    found, _ = prepared
    files = {path.name: path.read_text() for path in (folder / "pairs").iterdir()}
    assert sorted(files) == ["2.0.jsonl", "2.1.jsonl", "4.0.jsonl", "4.1.jsonl"]
    assert [len(text.splitlines()) for _, text in sorted(files.items())] == [4, 4, 8, 8]
    assert files["2.0.jsonl"] != files["2.1.jsonl"] and files["4.0.jsonl"].startswith(files["2.0.jsonl"])
    for row in map(json.loads, files["4.0.jsonl"].splitlines()):
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        shared = next(i for i in range(len(chosen)) if chosen[i] != rejected[i])
        assert row["tokens"] == len(chosen) + len(rejected) - shared  # a common beginning counts once
        assert chosen[-1] == rejected[-1] == 1  # the read-out
    assert found["rows"]["4"] % 2 == 0 and found["data"]["counted_pairs"] == 64


def test_our_batches_hold_no_more_pairs_than_theirs(folder):
    config = rmjax_side.config_of({"config": plan_of(folder, folder).config})
    tree = rmjax_side.Tree.from_sequences([[5] * 16 + [6] * 8, [5] * 16 + [7] * 8], [0.0, 1.0])
    trees = [dataclasses.replace(tree, record=i) for i in range(120)]
    assert [rmjax_side.rows_for(config, trees, batch, 1) for batch in (1, 4, 5, 12)] == [1, 2, 2, 6]  # two a row
    assert rmjax_side.rows_for(config, trees, 12, 4) == 4


def test_generated_pairs_are_as_long_as_real_ones(tmp_path):
    generated.write_generated(tmp_path / "a.jsonl", 400)
    generated.write_generated(tmp_path / "b.jsonl", 400)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    found = open_records(tmp_path / "a.jsonl")
    lengths = np.log([len(found[i].prompt.split()) for i in range(400)])
    assert abs(lengths.mean() - generated.SHARED[0]) < 0.2 and abs(lengths.std() - generated.SHARED[1]) < 0.15


def test_generated_pairs_stand_in_only_where_the_real_ones_are_absent(tmp_path):
    plan = plan_of(tmp_path, tmp_path / "work")
    assert benchmark.with_data(plan) == (plan, plan.config["data.path"])
    real = dataclasses.replace(plan, config={"data.path": "hh_harmless", "data.root": str(tmp_path)})
    made, name = benchmark.with_data(real)
    assert name == "generated" and Path(made.config["data.path"]).is_file()
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "hh_harmless.jsonl.zst").touch()
    assert benchmark.with_data(real) == (real, "hh_harmless")


# --- the steps of our side -------------------------------------------------------------------------------------------


def test_the_padded_objective_is_the_packed_one(folder, prepared):
    _, ours = prepared
    config = rmjax_side.config_of({"config": plan_of(folder, folder).config})
    start = rmjax_side.start_of(config)
    rows = rmjax_side.read_pairs(folder / "pairs" / "2.0.jsonl")[:2]
    forest = rmjax_side.padded([row[name] for name in ("chosen_ids", "rejected_ids") for row in rows])
    terms = rmjax_side.dense_objective(RewardTransformer(start.config))(start.params, forest, None)
    assert float(terms["loss"][0] / terms["loss"][1]) == pytest.approx(ours["loss"], abs=1e-5)


@pytest.mark.slow
def test_the_whole_benchmark_with_another_interpreter_in_place_of_torchs(folder, tmp_path):
    peer = tmp_path / "peer"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY / "tests/experiments/numpy_llama.py"} "$3"\n')
    peer.chmod(0o755)
    found = benchmark.benchmark(plan_of(folder, tmp_path / "work", str(peer), rounds=1))
    arms = found["batches"]["2"]["arms"]
    assert set(arms) == {"rmjax", "trl", "dense"} and set(found["batches"]["4"]["arms"]) == {"rmjax", "trl"}
    assert arms["rmjax"]["pairs_a_step"]["median"] > 0 and arms["dense"]["pairs_a_step"]["median"] == 2
    assert found["agreement"]["rewards"] < 1e-4
    losses = [step["loss"] for run in found["runs"].values() for step in run.get("steps", []) if "loss" in step]
    assert len(losses) == 3 and all(0.1 < loss < 3 for loss in losses)
    assert "start-up" in results.table(found) and found["score"]["groups"] == 2


# --- processes, and going on -----------------------------------------------------------------------------------------


class Processes:
    """In place of `launch`: canned results, ours at twice the pairs per second of the other side."""

    def __init__(self, fail: str = "", change=lambda job, found: found):
        self.commands: list[list[str]] = []
        self.fail, self.change = fail, change

    def __call__(self, command, log, environment):
        self.commands.append(list(command))
        job = json.loads(Path(command[-1]).read_text())
        log.write_text("one\nthe last line\n")
        if self.fail and self.fail in command[-1]:
            return 3
        Path(job["out"]).write_text(json.dumps(self.change(job, self.found(job, "-P" in command))))
        return 0

    def found(self, job, theirs):
        if job["kind"] == "prepare":
            data = {"mean_tokens_of_a_pair": 9.0, "counted_pairs": 10, "cut_pairs": 0}
            return {"rows": {"2": 1, "4": 2}, "platform": "cpu", "data": data, "device": "1 x cpu (cpu)"}
        if job["kind"] == "agree":
            return {"loss": 0.5, "rewards": [[1.0, 0.0]]}
        if job["kind"] == "pack":
            return {"batch_seconds": 1.0, "step_seconds": 60.0, "ratio": 60.0}
        if job["kind"] == "score":
            seconds = {"forest": [1.0, 10.0], "padded": [4.0, 50.0], "sorted": [3.0, 30.0]}
            return {"seconds": seconds, "groups": 2, "candidates": 3}
        seconds = (2.0 if theirs else 1.0) * (1 + job["seed"]) * (0.5 if job["kind"] == "dense" else 1.0)
        step = {"seconds": seconds, "pairs": job["batch"], "tokens": 10 * job["batch"], "shape": [2 * job["batch"], 7]}
        memory = {"peak_bytes": 3 * 10**9 if theirs else 10**9, "device_peak_bytes": None}
        compiled = {} if theirs else {"compiled": int(job["seed"] == 0)}
        return {"first_step_ended": 1e10, "steps": [step], "versions": {"jax": "1", "trl": "2"}} | memory | compiled


def test_the_sides_take_turns_and_ratios_are_formed_within_a_round(folder, tmp_path, monkeypatch):
    launched = Processes()
    monkeypatch.setattr(benchmark, "launch", launched)
    found = benchmark.benchmark(plan_of(folder, tmp_path, "PEER"))
    names = [Path(command[-1]).stem for command in launched.commands]
    rounds = ["rmjax.2.{}", "trl.2.{}", "dense.2.{}", "rmjax.4.{}", "trl.4.{}"]
    expected = [name.format(n) for n in (0, 1) for name in rounds]
    assert names == ["prepare.2", "agree.rmjax", "agree.trl", *expected, "pack", "score"]
    theirs = [command for command in launched.commands if "trl" in Path(command[-1]).stem]
    assert all(command[0] == "PEER" and command[2].endswith("trl_side.py") for command in theirs) and len(theirs) == 5
    entry = found["batches"]["2"]
    assert entry["arms"]["rmjax"]["pairs_per_second"] == {"median": 1.5, "low": 1.0, "high": 2.0, "runs": [2.0, 1.0]}
    assert entry["ratio"]["pairs_per_second"]["runs"] == [2.0, 2.0] and entry["dense_ratio"]["runs"] == [4.0, 4.0]
    assert entry["together"] == 2.0
    assert entry["ratio"]["peak_bytes"]["median"] == pytest.approx(1 / 3)
    assert len(entry["arms"]["rmjax"]["cold_startup_seconds"]["runs"]) == 1  # the first filled the cache
    assert len(entry["arms"]["trl"]["startup_seconds"]["runs"]) == 2
    assert found["score"]["ratio"]["padded"]["runs"] == [4.0, 5.0] and found["pack"]["ratio"] == 60.0


def test_a_benchmark_that_was_stopped_goes_on_with_what_is_missing(folder, tmp_path, monkeypatch):
    stopped = Processes(fail="trl.4.0")
    monkeypatch.setattr(benchmark, "launch", stopped)
    with pytest.raises(
        RuntimeError, match=r"trl.4.0.json failed \(3\): one | the last line; all of it is in .*trl.4.0.log"
    ):
        benchmark.benchmark(plan_of(folder, tmp_path))
    again = Processes()
    monkeypatch.setattr(benchmark, "launch", again)
    benchmark.benchmark(plan_of(folder, tmp_path))
    names = [Path(command[-1]).stem for command in again.commands]
    assert names[:2] == ["trl.4.0", "rmjax.2.1"] and len(names) == 8
    whole = Processes()
    monkeypatch.setattr(benchmark, "launch", whole)
    benchmark.benchmark(plan_of(folder, tmp_path))
    assert whole.commands == []


def test_a_folder_with_another_benchmark_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "launch", Processes())
    benchmark.benchmark(plan_of(folder, tmp_path))
    with pytest.raises(ValueError, match="holds a benchmark with other steps, candidates; use a new --workdir"):
        benchmark.benchmark(plan_of(folder, tmp_path, steps=(3, 3), candidates=4))
    more = Processes()
    monkeypatch.setattr(benchmark, "launch", more)
    benchmark.benchmark(plan_of(folder, tmp_path, rounds=3))  # further rounds are no other benchmark
    assert [Path(c[-1]).stem for c in more.commands] == [
        "prepare.3", "rmjax.2.2", "trl.2.2", "dense.2.2", "rmjax.4.2", "trl.4.2",
    ]  # fmt: skip


def test_sides_that_differ_are_not_timed(folder, tmp_path, monkeypatch):
    def change(job, found):
        return found | ({"loss": 0.6} if "agree.trl" in job["out"] else {})

    launched = Processes(change=change)
    monkeypatch.setattr(benchmark, "launch", launched)
    with pytest.raises(ValueError, match=r"in the loss by 0.1 and in a reward by 0, more than 0.001"):
        benchmark.benchmark(plan_of(folder, tmp_path))
    assert len(launched.commands) == 3


def test_a_gpu_runs_bf16_but_agreement_is_shown_in_fp32(folder, tmp_path, monkeypatch):
    jobs = {}

    def change(job, found):
        jobs[Path(job["out"]).stem] = job
        return found | ({"platform": "gpu"} if job["kind"] == "prepare" else {})

    monkeypatch.setattr(benchmark, "launch", Processes(change=change))
    benchmark.benchmark(plan_of(folder, tmp_path))
    assert jobs["agree.trl"]["dtype"] == "float32" and jobs["trl.2.0"]["dtype"] == "bfloat16"
    assert jobs["rmjax.2.0"]["config"]["model.dtype"] == "bfloat16" and jobs["trl.2.0"]["device"] == "gpu"


def test_batches_that_do_not_divide_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="--batches has 5; make it a multiple of --at_once=2"):
        benchmark.benchmark(plan_of(folder, tmp_path, batches=(5, 6)))


def test_dense_batches_of_another_shape_are_refused():
    def runs(shape):
        return [{"steps": [{"seconds": 1.0, "shape": shape}]}]

    with pytest.raises(ValueError, match="shapes differ"):
        results.dense_against(runs([4, 8]), runs([4, 9]))


def test_scores_do_not_depend_on_the_order_of_padded_rows(folder):
    lengths = iter(range(1, 100))

    class Whole:
        def scoring_trees(self, c):
            sizes = [next(lengths) for _ in c]
            return [(range(len(c)), rmjax_side.Tree.from_sequences([[5] * n + [6] for n in sizes], [0.0] * len(c)))]

    def rewards(params, forest):
        return forest.readout_RGN + 1.0  # a row's length

    for key in (None, len, lambda ids: -len(ids)):
        lengths = iter(range(1, 100))
        found, cells = polar.alone(rewards, None, Whole(), [[0] * 5, [0] * 5], key)
        assert found == [[2.0, 3.0, 4.0, 5.0, 6.0], [7.0, 8.0, 9.0, 10.0, 11.0]] and cells == 2 * 8 * 32


# --- nothing else knows torch ----------------------------------------------------------------------------------------


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {n.split(".")[0] for n in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}}


def test_only_the_other_side_imports_torch_and_it_imports_nothing_of_ours():
    others = {"torch", "transformers", "trl", "datasets", "accelerate"}
    ours = {"rmjax", "experiments", "configs", "jax"}
    files = [path for folder in ("rmjax", "experiments", "configs") for path in (REPOSITORY / folder).rglob("*.py")]
    assert [path.name for path in files if imports(path) & others] == [benchmark.TRL_SIDE.name]
    assert not imports(benchmark.TRL_SIDE) & ours
