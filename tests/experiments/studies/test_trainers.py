"""The study against TRL: what it writes for the other side, what it refuses, what it makes of the runs. Nothing is timed here."""

import ast
import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.studies.trainers import config as grids
from experiments.studies.trainers import measure
from experiments.trainers import generated, polar, processes, results, rmjax_side, start
from rmjax.data.readers import open_records
from rmjax.models.reward import RewardTransformer
from rmjax.study import engines
from rmjax.study.run import Options, run
from rmjax.study.study import run_cell
from tests.experiments import numpy_llama
from tests.experiments.starting import save_start

REPOSITORY = Path(__file__).parents[3]
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


def grid_of(folder: Path, peer: str = "none", **changes):
    config = grids.get_config()
    config.update(
        {
            "batches": BATCHES,
            "steps": STEPS,
            "at_once": 2,
            "rounds": 2,
            "groups": 2,
            "candidates": 3,
            "peer": peer,
            **changes,
        }
    )
    config.training.model.init, config.training.data.path = str(folder / "start"), str(folder / "pairs.jsonl")
    config.training.data.row_tokens = config.training.format.max_length = 64
    return config


def changes_of(folder: Path):
    return start.changes(grid_of(folder).training)


# --- what is written for the other side ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(folder):
    """The files for the other side, what `prepare` found, and loss and rewards of our side."""
    job = {"config": changes_of(folder), "model": str(folder / "model"), "pairs": str(folder / "pairs"), "rounds": 2}
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
    found = measure.check_agreement(ours, {"loss": loss, "rewards": rewards})
    assert max(found["loss"], found["rewards"]) < 1e-5 and np.ptp(rewards) > 0.1


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "score.weight"])
def test_other_weights_are_noticed(folder, prepared, tmp_path, name):
    _, ours = prepared
    tensors = load_file(folder / "model" / "model.safetensors")
    tensors[name] = tensors[name] * 1.1
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "model" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"differ on the same batch, .* more than 0.001: .* nothing is timed"):
        measure.check_agreement(ours, {"loss": ours["loss"], "rewards": other_side(folder, tmp_path)})


def test_rewards_that_are_not_numbers_do_not_agree():
    with pytest.raises(ValueError, match="nothing is timed"):
        measure.check_agreement({"loss": 1.0, "rewards": [[0.0, 1.0]]}, {"loss": math.nan, "rewards": [[0.0, 1.0]]})


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
    config = rmjax_side.config_of({"config": changes_of(folder)})
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
    assert generated.stand_in("own.jsonl", str(tmp_path), tmp_path) == ("own.jsonl", "own.jsonl")
    path, name = generated.stand_in("hh_harmless", str(tmp_path), tmp_path)
    assert name == "generated" and Path(path).is_file()
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "hh_harmless.jsonl.zst").touch()
    assert generated.stand_in("hh_harmless", str(tmp_path), tmp_path) == ("hh_harmless", "hh_harmless")


# --- the steps of our side -------------------------------------------------------------------------------------------


def test_the_padded_objective_is_the_packed_one(folder, prepared):
    _, ours = prepared
    config = rmjax_side.config_of({"config": changes_of(folder)})
    start = rmjax_side.start_of(config)
    rows = rmjax_side.read_pairs(folder / "pairs" / "2.0.jsonl")[:2]
    forest = rmjax_side.padded([row[name] for name in ("chosen_ids", "rejected_ids") for row in rows])
    terms = rmjax_side.dense_objective(RewardTransformer(start.config))(start.params, forest, None)
    assert float(terms["loss"][0] / terms["loss"][1]) == pytest.approx(ours["loss"], abs=1e-5)


def summarized(config, workdir: Path):
    """Runs the study in this process; the lines, as a table."""
    claim = measure.get_claim(config)
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, workdir))
    found = run(claim.study, workdir, engine, Options(lambda name: [], retries=0, every=0.01))
    engines_left = {name: result.why for name, result in found.items() if result.status != "done"}
    if engines_left:
        raise RuntimeError(str(engines_left))
    lines = claim.summarize(found)
    return results.Table(lines), claim.parts(lines)


@pytest.mark.slow
def test_the_whole_study_with_another_interpreter_in_place_of_torchs(folder, tmp_path):
    peer = tmp_path / "peer"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY / "tests/experiments/numpy_llama.py"} "$3"\n')
    peer.chmod(0o755)
    table, parts = summarized(grid_of(folder, str(peer), rounds=1), tmp_path / "work")
    assert table.sides("2") == ["rmjax", "trl", "dense"] and table.sides("4") == ["rmjax", "trl"]
    assert (
        table.get("rmjax", "pairs_a_step", "2")["value"] > 0 and table.get("dense", "pairs_a_step", "2")["value"] == 2
    )
    assert table.facts["agreement"]["rewards"] < 1e-4 and table.facts["scored"]["groups"] == 2
    assert "start-up" in parts["results"]


# --- processes ---------------------------------------------------------------------------------------------------------


class Processes:
    """In place of `launch`: canned results, ours at twice the pairs per second of the other side."""

    def __init__(self, change=lambda job, found: found):
        self.commands: list[list[str]] = []
        self.change = change

    def __call__(self, command, log, environment):
        self.commands.append(list(command))
        job = json.loads(Path(command[-1]).read_text())
        log.write_text("one\nthe last line\n")
        Path(job["out"]).write_text(json.dumps(self.change(job, self.found(job, "-P" in command))))
        return 0

    def found(self, job, theirs):
        if job["kind"] == "prepare":
            for path in (
                job["model"],
                *(f"{job['pairs']}/{b}.{n}.jsonl" for b in job["batches"] for n in range(job["rounds"])),
            ):
                Path(path).mkdir(parents=True, exist_ok=True)  # whatever it is
            data = {"mean_tokens_of_a_pair": 9.0, "counted_pairs": 10, "cut_pairs": 0}
            return {"rows": {"2": 1, "4": 2}, "platform": "cpu", "data": data}
        if job["kind"] == "agree":
            return {"loss": 0.5, "rewards": [[1.0, 0.0]], "product_rate": 2e11 if theirs else 4.2e11}
        if job["kind"] == "pack":
            return {"batch_seconds": 1.0, "step_seconds": 60.0, "ratio": 60.0}
        if job["kind"] == "score":
            seconds = {"forest": [1.0, 10.0], "padded": [4.0, 50.0], "sorted": [3.0, 30.0]}
            tokens = {"shared": 100, "separate": 250, "forest": 120, "padded": 480, "sorted": 300}
            return {"seconds": seconds, "tokens": tokens}
        seconds = (2.0 if theirs else 1.0) * (1 + job["seed"]) * (0.5 if job["kind"] == "dense" else 1.0)
        step = {"seconds": seconds, "pairs": job["batch"], "tokens": 10 * job["batch"], "shape": [2 * job["batch"], 7]}
        memory = {"peak_bytes": 3 * 10**9 if theirs else 10**9, "device_peak_bytes": None}
        compiled = {} if theirs else {"compiled": int(job["seed"] == 0)}
        return (
            {"first_step_ended": 1e10, "steps": [step], "versions": {"trl": "2"} if theirs else {"jax": "1"}}
            | memory
            | compiled
            | {"device": "1 x cpu (cpu)"}
        )


def test_the_sides_take_turns_and_ratios_are_formed_within_a_round(folder, tmp_path, monkeypatch):
    launched = Processes()
    monkeypatch.setattr(processes, "launch", launched)
    table, parts = summarized(grid_of(folder, "PEER"), tmp_path)
    names = [Path(command[-1]).parent.name for command in launched.commands]
    rounds = ["rmjax-2-{}", "trl-2-{}", "dense-2-{}", "rmjax-4-{}", "trl-4-{}"]
    expected = [name.format(n) for n in (0, 1) for name in rounds]
    assert names == ["data", "agree-rmjax", "agree-trl", *expected, "pack", "score"]
    theirs = [command for command in launched.commands if "trl" in Path(command[-1]).parent.name]
    assert all(command[0] == "PEER" and command[2].endswith("trl_side.py") for command in theirs) and len(theirs) == 5
    speed = table.get("rmjax", "pairs_per_second", "2")
    assert [speed[name] for name in ("value", "low", "high", "seeds")] == [1.5, 1.0, 2.0, [2.0, 1.0]]
    assert table.get("ratio", "pairs_per_second", "2")["seeds"] == [2.0, 2.0]
    assert (
        table.get("ratio", "dense", "2")["seeds"] == [4.0, 4.0] and table.get("ratio", "together", "2")["value"] == 2.0
    )
    assert table.get("ratio", "peak_bytes", "2")["value"] == pytest.approx(1 / 3)
    assert len(table.get("rmjax", "cold_startup_seconds", "2")["seeds"]) == 1  # the first filled the cache
    assert len(table.get("trl", "startup_seconds", "2")["seeds"]) == 2
    assert table.get("score", "padded")["seeds"] == [4.0, 5.0] and table.get("pack", "ratio")["value"] == 60.0
    check_tables(parts)


def check_tables(parts):
    said, line = parts["results"], parts["line"]
    assert "float32; jax 1, trl 2." in said and "2 rounds; steps timed in a process: 1 at batch 2, 1 at batch 4" in said
    assert "420 GFLOP/s by the library under rmjax and 200 GFLOP/s by the library under trl" in said
    assert "| pairs/s ≥ 4× TRL's, then 5× (batch 2) | 2 (2–2)×; all rounds together 2× |" in said
    assert "| peak memory ≤ TRL's (batch 2) | 0.333 (0.333–0.333)× |" in said
    assert "| padded step, same shapes, ≥ 1.0× TRL's (batch 2) | 4 (4–4)× |" in said
    assert (
        "| scoring of POLAR groups of 3 ≥ 4× padded | 4.5 (4–5)×; sorted by length 3 (3–3)×; tokens 2.50× fewer" in said
    )
    assert "| making a batch ≥ 50× faster than the step, one core | 60× |" in said
    assert line.startswith("2 (2–2) times at batch 2, 2 (2–2) times at batch 4, in 0.33 and 0.33 of its memory, on ")
    assert line.endswith("float32, where our library multiplies matrices 2.1 times as fast")


def test_numbers_keep_three_digits():
    def text(*values):
        return results.text(results.spread_of({}, "x", values))

    assert text(0.26123, 0.2, 0.3) == "0.261 (0.2–0.3)" and text(1234.5, 99.6, 2e6) == "1,234 (99.6–2,000,000)"


def test_sides_that_differ_are_not_timed(folder, tmp_path, monkeypatch):
    def change(job, found):
        return found | ({"loss": 0.6} if "agree-trl" in job["out"] else {})

    launched = Processes(change=change)
    monkeypatch.setattr(processes, "launch", launched)
    with pytest.raises(RuntimeError, match="in the loss by 0.1 and in a reward by 0, more than 0.001"):
        summarized(grid_of(folder), tmp_path)
    assert len(launched.commands) == 3


def test_a_gpu_runs_bf16_but_agreement_is_shown_in_fp32(folder, tmp_path, monkeypatch):
    jobs = {}

    def change(job, found):
        jobs[Path(job["out"]).parent.name] = job
        return found | ({"platform": "gpu"} if job["kind"] == "prepare" else {})

    monkeypatch.setattr(processes, "launch", Processes(change=change))
    table, _ = summarized(grid_of(folder), tmp_path)
    assert jobs["agree-trl"]["dtype"] == "float32" and jobs["trl-2-0"]["dtype"] == "bfloat16"
    assert jobs["rmjax-2-0"]["config"]["model.dtype"] == "bfloat16" and jobs["trl-2-0"]["device"] == "gpu"
    assert table.facts["dtype"] == "bfloat16" and jobs["trl-4-1"]["rows"] == 2 and jobs["trl-4-1"]["seed"] == 1


def test_a_process_that_fails_is_named_with_its_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(
        processes, "launch", lambda command, log, environment: log.write_text("one\nthe last line\n") and 3
    )
    with pytest.raises(
        RuntimeError, match=r"job.job.json failed \(3\): one | the last line; all of it is in .*job.log"
    ):
        processes.run_job(tmp_path, "job", "trl", "PEER", {"kind": "train"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": (5, 6)}, "config.batches has 5; make it a multiple of config.at_once=2"),
        ({"steps": (1,)}, "config.batches and config.steps need as many numbers"),
    ],
)
def test_sizes_that_cannot_be_run_are_refused(folder, changes, said):
    with pytest.raises(ValueError, match=said):
        measure.get_claim(grid_of(folder, **changes))


def test_dense_batches_of_another_shape_are_refused():
    def runs(shape):
        return [{"steps": [{"seconds": 1.0, "shape": shape}]}]

    with pytest.raises(ValueError, match="shapes differ"):
        results.dense_against({}, runs([4, 8]), runs([4, 9]))


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


def test_only_the_other_sides_import_torch_and_they_import_nothing_of_ours():
    others = {"torch", "transformers", "trl", "datasets", "accelerate"}
    ours = {"rmjax", "experiments", "configs", "jax"}
    files = [path for folder in ("rmjax", "experiments", "configs") for path in (REPOSITORY / folder).rglob("*.py")]
    found = [path for path in files if imports(path) & others]
    assert {path.name for path in found} == {processes.TRL_SIDE.name, "peer.py"}
    assert not any(imports(path) & ours for path in found)
