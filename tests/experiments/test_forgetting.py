"""The forgetting experiment: its data, its measures, its summary, and a tiny grid from end to end."""

import json

import numpy as np
import pytest

from configs import forgetting as grids
from experiments import forgetting, skills
from experiments.skills import KNOWLEDGE, TASKS, Skills
from rmjax.data.formats import Encoder, Format
from rmjax.data.rows import iterate_rows
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.language import says
from rmjax.locks import InUseError, locked
from tests.experiments.starting import save_start

CHATML = Format(kind="chat", template="chatml")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_start(tmp_path_factory.mktemp("forgetting") / "start")


@pytest.fixture(scope="module")
def tokenizer(start):
    return Tokenizer.load(start / "tokenizer.json")


def tiny(start, **changes):
    config = grids.get_config()
    values = {"init": str(start), "frozen_layers": 1, "sizes": (4, 8), "seeds": (0, 1), "tested_tasks": 6, "tested_texts": 3,
              "answer_tokens": 2}  # fmt: skip
    config.update(values | changes)
    for name in set(config.arms) - {"balanced", "lora"}:
        del config.arms[name]
    config.arms.lora.swept = True
    config.compared = (("balanced", "lora"),)
    return config.lock()


def test_no_prompt_is_both_learned_and_tested(tokenizer):
    found = skills.load_skills("shipped", "", Encoder(tokenizer, CHATML, 256))
    learned = {text.prompt for text in (*found.tasks, *found.knowledge)}
    asked = {row["prompt"] for row in skills.facts_rows(for_training=False)}
    assert not learned & ({text.prompt for text in found.tested} | asked)
    assert len(found.tasks) > 2000 and len(found.tested) > 500 and min(len(found.knowledge), len(asked)) > 100
    assert {text.type for text in found.tasks} == {TASKS} and {t.type for t in found.knowledge} == {KNOWLEDGE}


def test_questions_do_not_give_their_answers_away():
    rows = [*skills.facts_rows(True), *skills.facts_rows(False)]
    assert len({row["prompt"] for row in rows}) == len(rows) > 200
    assert not [row for row in rows if says(row["prompt"], row["answers"])]


def test_general_texts_are_of_people_and_of_the_model():
    found = skills.general_texts(40)
    assert {kind: len(texts) for kind, texts in found.items()} == {"written": 40, "own": 40}
    assert all(text.prompt == "" for text in found["written"]) and all(t.outputs[0] for t in found["own"])
    assert not [text for text in found["written"] if "Lowest" in text.outputs[0] or text.id.startswith("lcm")]
    assert found == skills.general_texts(40)


def test_a_mixture_grows_and_keeps_its_share():
    tasks = [{"id": f"t{i}"} for i in range(50)]
    found = Skills(tasks, [{"id": "k0"}, {"id": "k1"}], [])
    small, large = (found.mixture(n, 0.2, seed=1) for n in (8, 40))
    assert [t["id"][0] for t in small].count("k") == 2 and [t["id"][0] for t in large].count("k") == 10
    assert {t["id"] for t in small} <= {t["id"] for t in large}
    assert {t["id"] for t in found.mixture(8, 0.2, seed=2)} != {t["id"] for t in small}
    with pytest.raises(ValueError, match="config.sizes has 51; there are 50 tasks"):
        found.mixture(51, 0.2, 0)
    with pytest.raises(ValueError, match="config.knowledge_share is 1"):
        found.mixture(5, 1, 0)


def test_real_sets_are_read_where_they_are(tmp_path, tokenizer, caplog):
    rows = [
        {"instruction": f"Say {i}", "input": "x" * (i == 3) * 300, "output": "A", "task_type": i % 2} for i in range(40)
    ]
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "loramoe_tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        FileNotFoundError, match="loramoe_tiny.jsonl.zst is not there; set config.root, or tasks=shipped"
    ):
        skills.load_skills("loramoe_tiny", str(tmp_path), Encoder(tokenizer, CHATML, 128))
    import zstandard

    packed = zstandard.ZstdCompressor().compress((tmp_path / "papers" / "loramoe_tiny.jsonl").read_bytes())
    (tmp_path / "papers" / "loramoe_tiny.jsonl.zst").write_bytes(packed)
    found = skills.load_skills("loramoe_tiny", str(tmp_path), Encoder(tokenizer, CHATML, 128))
    assert len(found.tasks) + len(found.tested) == 20 and len(found.knowledge) == 19 and found.tested
    assert "1 of 20 texts are longer than a row and left out" in caplog.text


def test_arms_change_the_same_layers():
    config = grids.get_config()
    runs = {name: grids.training(config, name, 2, "texts.jsonl") for name in config.arms}
    assert {run.trainable for run in runs.values()} == {"/layers/"}
    assert {(run.model.frozen_layers, run.run.seed, run.data.path) for run in runs.values()} == {(24, 2, "texts.jsonl")}
    assert (
        runs["full"].adapter.kind == "" and runs["balanced"].adapter.beta == 0.1 and runs["loramoe"].adapter.beta == 0.0
    )
    assert runs["delta_none"].adapter.delta == 0.0 and runs["beta_strong"].adapter.beta == 1.0


def test_the_summary_is_over_seeds_and_texts_and_against_the_base():
    base = {"loss": [1.0, 3.0], "facts": []}
    runs = [{"loss": [2.0, 4.0], "facts": []}, {"loss": [1.0, 4.0], "facts": []}]
    table = forgetting.summary(base, {"arm": {8: runs}})["arm"]["8"]
    assert table["loss"]["mean"]["value"] == pytest.approx(2.75) and table["loss"]["mean"]["n"] == 4
    assert table["loss"]["over_base"]["mean"]["value"] == pytest.approx(0.75) and table["loss"]["seeds"] == [3.0, 2.5]
    assert table["facts"]["mean"]["value"] is None
    # Texts are resampled, not values: of two texts the interval reaches from the one's mean to the other's.
    assert (table["loss"]["over_base"]["mean"]["low"], table["loss"]["over_base"]["mean"]["high"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ()}, "config.sizes is empty"),
        ({"chosen": "dora"}, "config.chosen is 'dora' and matches no arm; they are"),
        ({"sizes": (8, 4)}, "config.sizes is (8, 4); give growing numbers"),
        pytest.param({"init": "random"}, "config.init=random: a model that knows nothing", marks=pytest.mark.slow),
        ({"tasks": "sums"}, "config.tasks is 'sums'; choose shipped, loramoe_tiny or gsm8k_train"),
    ],
)
def test_grids_that_cannot_be_run(start, tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        forgetting.run(tiny(start, **changes), tmp_path)
    assert message in str(caught.value)


def test_a_workdir_that_another_grid_holds(start, tmp_path):
    with locked(tmp_path), pytest.raises(InUseError, match="is in use by another run"):
        forgetting.run(tiny(start), tmp_path)


def test_what_a_grid_leaves(tmp_path):
    config = grids.get_config()
    config.update({"sizes": (4, 8), "chosen": "lora|balanced|delta_none"})
    base = {"facts": [1.0, 1.0], "written_loss": [2.0], "own_loss": [1.0], "task_exact": [0.0], "task_loss": [3.0]}
    shares = {"mlp/gate": [[[0.4, 0.6]], [[0.6, 0.4]]]}
    routed = {"routing": {"types": ["tasks", "knowledge"], "shares": shares, "variation": 0.0}}

    def finished(lost, **more):
        values = base | {"facts": [1.0, 1.0 - lost], "own_loss": [1.0 + lost], "task_exact": [lost]}
        return {"values": values, "trained": 7, **more}

    runs = {
        "lora": {4: [finished(0.0)] * 2, 8: [finished(1.0)] * 2},
        "balanced": {4: [finished(0.0, **routed)] * 2, 8: [finished(0.0, **routed)] * 2},
        "delta_none": {8: [finished(0.0, **routed)] * 2},
    }
    forgetting.write_results(config, {"values": base, "asked": 5, "answered": 2}, runs, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["asked"], found["answered"], found["trained"]["lora"]) == (5, 2, 7)
    assert found["arms"]["lora"]["8"]["facts"]["over_base"]["mean"]["value"] == -0.5
    assert list(found["compared"]) == ["balanced - lora"]
    assert found["compared"]["balanced - lora"]["8"]["own_loss"]["mean"]["value"] == -1.0
    assert found["compared"]["balanced - lora"]["8"]["own_loss"]["seeds"] == [-1.0, -1.0]
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert any(line.startswith("| balanced | 0.000 0.000 | ") for line in lines[-4:])  # the routing
    (last,) = [line for line in lines if line.startswith("| 8 | ")]
    assert lines[0] == "Of 5 old questions the base answers 2 right." and lines[2].startswith("| 4 tasks | trained")
    assert last.startswith("| 8 | +0.500 (+0.000 to +1.000); +0.500 +0.500 |")
    assert "lora" in (tmp_path / "forgetting.svg").read_text()
    page = (tmp_path / "report.html").read_text()
    assert (
        "balanced, mlp/gate: coefficient of variation" in page and "lora, mlp" not in page and page.count("<svg") == 3
    )

    del runs["lora"], runs["balanced"]
    forgetting.write_results(config, {"values": base, "asked": 5, "answered": 2}, runs, tmp_path / "swept")
    assert not (tmp_path / "swept" / "forgetting.svg").exists()


@pytest.mark.slow
def test_a_tiny_grid(start, tmp_path, monkeypatch):
    config = tiny(start)
    forgetting.run(config, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["arms"]) == {"lora", "balanced"}
    assert set(found["arms"]["balanced"]) == {"4", "8"} and set(found["arms"]["lora"]) == {"8"}
    row = found["arms"]["balanced"]["8"]["task_loss"]
    assert row["mean"]["n"] == 12 and len(row["seeds"]) == 2
    assert row["over_base"]["mean"]["value"] < 0  # it learned something of the tasks
    assert found["compared"]["balanced - lora"]["8"]["written_loss"]["mean"]["n"] == 6
    assert set(found["compared"]["balanced - lora"]) == {"8"}
    assert "<svg" in (tmp_path / "forgetting.svg").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "balanced, mlp/gate: coefficient of variation" in page and "lora, mlp" not in page
    result = json.loads((tmp_path / "balanced" / "size8-seed0" / "result.json").read_text())
    for share in result["routing"]["shares"].values():
        np.testing.assert_allclose(np.sum(share[TASKS], axis=-1), 1, atol=1e-4)
    assert not list(tmp_path.glob("*/*/checkpoints"))
    texts = [row for _, row in iterate_rows(str(tmp_path / "data" / "size8-seed1.jsonl"))]
    assert [text["type"] for text in texts].count(KNOWLEDGE) == 2

    monkeypatch.setattr(forgetting.train, "run", lambda *_: pytest.fail("a finished run was run again"))
    forgetting.run(config, tmp_path)
    with pytest.raises(ValueError, match="was judged with .* use a new workdir"):
        forgetting.run(tiny(start, tested_tasks=5), tmp_path)
