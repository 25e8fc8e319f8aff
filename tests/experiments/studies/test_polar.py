"""POLAR's studies: cells, triples, answers of public models, and a tiny `make demo` from end to end."""

import json

import pytest
import zstandard

from experiments.studies import shared
from experiments.studies.polar import alpaca, config, measure, runs
from rmjax.data.samplerows import Sample
from rmjax.data.sources import pool_rows, records
from rmjax.evaluate.report import write_report
from rmjax.evaluate.rows import Row
from rmjax.files import write_lines
from rmjax.parallel.mesh import make_mesh
from rmjax.study import engines
from rmjax.study.run import Options, run
from rmjax.study.study import Result, run_cell
from tests.experiments.starting import save_start

ROWS = [{"prompt": f"Is {i} even?", "reference": f"Yes, {i}.", "chosen": f"Yes {i}.", "rejected": f"No {i}.",
         "category": "noise" if i % 2 else "gcd", "id": f"{i}/{j}"} for i in range(6) for j in range(2)]  # fmt: skip
SHORT = """
from configs import demo

def get_config(run):
    config = demo.get_config(run)
    config.model.init, config.model.layers, config.model.frozen_layers = "START", 2, 1
    config.run.steps, config.data.row_tokens, config.format.max_length = 2, 256, 96
    return config
"""


@pytest.fixture
def tiny(tmp_path):
    """A grid of one seed and four triples, on few samples of the shipped pool."""
    write_lines(tmp_path / "triples.jsonl", ROWS)
    everything = pool_rows("shipped:policy_pool", "all", "all")
    chosen = {row.prompt_id for row in everything if row.prompt_split == "unseen"}
    few = {*sorted(chosen)[:5], *sorted({row.prompt_id for row in everything} - chosen)[:5]}
    write_lines(tmp_path / "pool.jsonl", [as_row(row) for row in everything if row.prompt_id in few])
    (tmp_path / "short.py").write_text(SHORT.replace("START", str(save_start(tmp_path / "start"))))
    grid = config.get_config("demo")
    grid.update(
        runs=str(tmp_path / "short.py"), pool=str(tmp_path / "pool.jsonl"), train=str(tmp_path / "triples.jsonl"),
        test=str(tmp_path / "triples.jsonl"), triples=(4,), steps=(1,), without_reference=(4,), longer=(4,), longer_steps=2,
    )  # fmt: skip
    return grid


def as_row(row: Sample):
    names = ("prompt_id", "prompt", "policy", "output", "kind", "policy_split", "prompt_split", "category")
    return {name: getattr(row, name) for name in names}


def test_cells_of_the_regimes():
    grid = config.get_config()
    grid.longer = (512,)
    found = {cell.name: cell.config for cell in measure.get_claim(grid).study.cells}
    assert len(found) == 3 * (1 + 2 * 4 + 2)
    assert found["pretrained-8-seed1"].training.model.init == "cell:pretrain-seed1"
    assert found["scratch-8-seed1"].training.model.init == "smollm2"
    assert found["no_reference-512-seed0"].training.data.reference == "optional"
    assert [found[f"scratch-{n}-seed0"].training.run.steps for n in (8, 512)] == [6, 48]
    assert found["scratch_longer-512-seed2"].training.run.steps == 150


def test_small_sets_lie_within_large_ones_and_take_each_prompt_once_first(tiny, tmp_path):
    tiny.update(triples=(3, 6, 0), steps=(1, 1, 1), without_reference=(6,))
    runs.make_data(tiny, tmp_path)
    few, more, every = (
        [c.id for c in records(str(tmp_path / "data" / f"triples-{n}-seed0.jsonl"))] for n in (3, 6, "all")
    )
    assert more[:3] == few and every[:6] == more and len(every) == len(ROWS)
    assert len({name.split("/")[0] for name in more}) == 6
    bare = list(records(str(tmp_path / "data" / "bare-6-seed0.jsonl")))
    assert [c.id for c in bare] == more and not any(c.references for c in bare)


def test_lines_and_parts_of_known_credits():
    grid = config.get_config()
    results = {}
    for cell in measure.cells(grid):
        arm, _count = cell.values["arm"], cell.values["triples"]
        right = {"pretrained": 0.75, "scratch": 0.5, "no_reference": 0.25, "scratch_longer": 0.5}.get(arm, 0.75)
        rows = []
        for number in range(40):
            groups = (
                {"split": "seen" if number % 2 else "unseen"}
                if arm == "pretrain"
                else {"category": ROWS[number % 4]["category"]}
            )
            for metric in ("credit", *measure.BASELINES):
                value = float(number < 40 * (right if metric == "credit" else 0.5))
                rows.append(Row(str(number), f"p{number}", metric, value, groups))
        results[cell.name] = Result("done", tuple(rows))
    claim = measure.get_claim(grid)
    parts = claim.parts(claim.summarize(results))
    assert (
        "| POLAR | 0.750 (" in parts["columns"] and "| without pre-training and reference | 0.250" in parts["columns"]
    )
    assert "| POLAR − without pre-training | +0.250 (" in parts["differences"]
    assert parts["triples"].count("0.750") >= 4 and "| word overlap | 0.500" in parts["columns"]
    assert set(claim.figures(claim.summarize(results))) == {"regimes"}


def test_numbers_that_do_not_fit():
    grid = config.get_config()
    grid.steps = (1, 2)
    with pytest.raises(ValueError, match="give one for each"):
        measure.get_claim(grid)
    with pytest.raises(ValueError, match="polar:huge is unknown; choose demo, regimes, real"):
        config.get_config("huge")
    with pytest.raises(FileNotFoundError, match="config.runs=absent.py: no such file"):
        shared.load_runs("absent.py")


def test_answers_of_public_models(tmp_path):
    """A sibling is the positive, no negative is near either, held-out prompts are in no training group."""
    models = [f"m{i}" for i in range(20)]
    seen = [name for name in models if not alpaca._unseen(name)]
    prompts = [
        {"prompt_id": f"p{i}", "dataset": "koala" if i % 3 else "selfinstruct", "prompt": f"Ask {i}"} for i in range(12)
    ]
    outputs = [{"prompt_id": p["prompt_id"], "model": m, "output": f"{m} says {p['prompt']}"}
               for p in prompts for m in (*models, alpaca.REFERENCE)]  # fmt: skip
    near = [
        {"model_a": seen[0], "model_b": seen[1], "jaccard": 0.5},
        {"model_a": seen[0], "model_b": seen[2], "jaccard": 0.4},
    ]
    judged = [{"prompt_id": p["prompt_id"], "annotator": alpaca.ANNOTATOR, "baseline": alpaca.BASELINE, "model": m,
               "p_model": float(i < 5)} for p in prompts for i, m in enumerate(models[:10])]  # fmt: skip
    for name, rows in (("policies/alpaca_eval_prompts", prompts), ("policies/alpaca_eval_outputs", outputs),
                       ("policies/alpaca_eval_siblings", near), ("preferences/alpaca_eval_judged", judged)):  # fmt: skip
        path = tmp_path / f"{name}.jsonl.zst"
        path.parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    triples = alpaca.write(tmp_path, tmp_path)
    groups = [c for name in ("train", "seen") for c in records(str(tmp_path / f"groups_{name}.jsonl"))]
    tested = list(records(str(tmp_path / "test.jsonl")))
    assert groups and tested and triples
    for c in groups:
        assert (
            c.policies[0] in seen[:3]
            and not set(c.policies[1:]) & set(seen[:3])
            and set(c.policies) <= {*seen, alpaca.REFERENCE}
        )
    assert {c.prompt for c in tested} >= {p["prompt"] for p in prompts if p["dataset"] == "selfinstruct"}
    assert not {c.prompt for c in triples} & {c.prompt for c in tested}
    assert all(models.index(c.policies[0]) < 5 <= models.index(c.policies[1]) for c in tested)
    with pytest.raises(FileNotFoundError, match="set config.root to the folder of the real sets"):
        alpaca.write(tmp_path / "absent", tmp_path)


@pytest.mark.slow
def test_the_demo_from_end_to_end(tiny, tmp_path):
    claim = measure.get_claim(tiny)
    found = run(claim.study, tmp_path / "study", engines.InProcess(lambda name: run_cell(claim.study, name, tmp_path / "study")),
                Options(lambda name: [], 0, None))  # fmt: skip
    lines = claim.summarize(found)
    assert {line["metric"] for line in lines} == {"policies", "over", "accuracy", "baseline", "difference"}
    assert set(claim.parts(lines)) == {"columns", "policies", "differences", "summary"}
    report = claim.report(found)
    write_report(report, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for leaf in (
        report["policy_accuracy"]["unseen"], report["preference_accuracy"]["no_reference"],
        report["baselines"]["length"]["seen"], report["baselines"]["longer"]["preference_accuracy"],
    ):  # fmt: skip
        assert 0 <= leaf["low"] <= leaf["value"] <= leaf["high"] <= 1 and leaf["n"] > 0
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("path", ["configs/demo.py", "configs/polar/larger.py"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_mesh_takes_any_number_of_devices(path, devices, monkeypatch):
    """A batch of one row cannot be shared out by rows."""
    monkeypatch.setattr("jax.device_count", lambda: devices)
    monkeypatch.setattr("jax.make_mesh", lambda shape, axes, **_: dict(zip(axes, shape, strict=True)))
    for training in shared.load_runs(path):
        mesh = make_mesh(training.mesh.to_dict())
        assert training.data.rows % (mesh["data"] * mesh["fsdp"]) == 0
        assert training.data.row_tokens % mesh["context"] == 0
