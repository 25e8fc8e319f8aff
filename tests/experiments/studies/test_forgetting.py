"""The forgetting study: its data, its summary, and a tiny grid from end to end."""

import json

import pytest
import zstandard

from experiments.studies.forgetting import config as grids
from experiments.studies.forgetting import measure, skills
from experiments.studies.forgetting.skills import KNOWLEDGE, TASKS, Skills
from rmjax.data.formats import Encoder, Format
from rmjax.data.rows import iterate_rows
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.language import says
from rmjax.evaluate.rows import Row
from rmjax.study import engines
from rmjax.study.run import Options, run
from rmjax.study.study import RESULT, Result, run_cell
from tests.experiments.starting import save_start

CHATML = Format(kind="chat", template="chatml")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_start(tmp_path_factory.mktemp("forgetting") / "start")


@pytest.fixture(scope="module")
def tokenizer(start):
    return Tokenizer.load(start / "tokenizer.json")


def tiny(start="", **changes):
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
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows) > 200
    assert not [row for row in rows if says(row["prompt"], row["answers"])]


def test_general_texts_are_of_people_and_of_the_model():
    found = skills.general_texts(40)
    assert {kind: len(texts) for kind, texts in found.items()} == {"written": 40, "own": 40}
    assert all(text.prompt == "" for text in found["written"]) and all(t.outputs[0] for t in found["own"])
    assert not [text for text in found["written"] if "Lowest" in text.outputs[0] or text.id.startswith("lcm")]
    assert found == skills.general_texts(40)


def test_a_mixture_grows_and_keeps_its_fraction():
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
    with pytest.raises(
        FileNotFoundError, match="loramoe_tiny.jsonl.zst is not there; set config.root, or tasks=shipped"
    ):
        skills.load_skills("loramoe_tiny", str(tmp_path), Encoder(tokenizer, CHATML, 128))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "papers" / "loramoe_tiny.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
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


def test_cells_need_the_base_and_swept_arms_are_run_at_the_largest_size():
    found = measure.get_claim(tiny()).study.cells
    assert [cell.name for cell in found if cell.values.get("seed", 0) == 0] == [
        "base", "balanced-size4-seed0", "balanced-size8-seed0", "lora-size8-seed0",
    ]  # fmt: skip
    assert {cell.needs for cell in found[1:]} == {("base",)}
    other = tiny(chosen="lora", seeds=(1,))
    assert [c.config for c in measure.cells(other)][1] == next(c.config for c in found if c.name == "lora-size8-seed1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ()}, "config.sizes is empty"),
        ({"chosen": "dora"}, "config.chosen is 'dora' and matches no arm; they are"),
        ({"sizes": (8, 4)}, "config.sizes is (8, 4); give growing numbers"),
    ],
)
def test_grids_that_cannot_be_run(changes, message):
    with pytest.raises(ValueError) as caught:
        measure.get_claim(tiny(**changes))
    assert message in str(caught.value)


def test_data_that_cannot_be_made(start, tmp_path):
    with pytest.raises(ValueError, match="config.init=random: a model that knows nothing cannot forget"):
        measure.make_data(tiny("random"), tmp_path)
    with pytest.raises(ValueError, match="config.tasks is 'sums'; choose shipped, loramoe_tiny or gsm8k_train"):
        measure.make_data(tiny(start, tasks="sums"), tmp_path)


def test_the_summary_is_over_seeds_and_texts_and_against_the_base():
    grid = tiny()

    def rows(loss, facts, *more):
        losses = [Row(f"t{i}", f"t{i}", "written_loss", value) for i, value in enumerate(loss)]
        return (*losses, *(Row(f"q{i}", f"q{i}", "facts", float(value)) for i, value in facts.items()), *more)

    trained = Row("run", "run", "trained", 7.0)
    results = {cell.name: Result("done", rows([2.0, 4.0], {1: 1}, trained)) for cell in measure.cells(grid)}
    results["balanced-size8-seed1"] = Result("done", rows([1.0, 4.0], {1: 0}, trained))
    results["base"] = Result("done", rows([1.0, 3.0], {0: 0, 1: 1}))
    lines = measure.summarize(grid, results)
    found = {(line["arm"], line["size"], line["metric"]): line for line in lines}
    own = found["balanced", 8, "written_loss"]
    assert (own["value"], own["n"], own["seeds"]) == (2.75, 4, [3.0, 2.5])
    over = found["balanced", 8, "written_loss_over_base"]
    # Texts are resampled, not values: of two texts the interval reaches from the one's mean to the other's.
    assert (over["value"], over["low"], over["high"]) == (0.75, 0.5, 1.0)
    assert found["base", 0, "asked"]["value"] == 0.5 and found["base", 0, "facts"]["value"] == 1.0
    assert found["balanced", 8, "facts_over_base"]["value"] == -0.5
    assert found["balanced − lora", 8, "written_loss"]["seeds"] == [0.0, -0.5]
    claim = measure.get_claim(grid)
    parts = claim.parts(lines)
    assert (
        parts["size8"].splitlines()[2].startswith("| base | – | ")
        and "| balanced | 7 | – | – | 0.500 | 2.750 |" in parts["size8"]
    )
    assert "| balanced − lora | 8 | – | – | -0.500" in parts["between"] and set(claim.figures(lines)) == {"forgetting"}


@pytest.mark.slow
def test_a_tiny_grid(start, tmp_path):
    claim = measure.get_claim(tiny(start))
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, tmp_path))
    found = run(claim.study, tmp_path, engine, Options(lambda name: []))
    assert {result.status for result in found.values()} == {"done"}
    lines = {(line["arm"], line.get("size"), line["metric"]): line for line in claim.summarize(found)}
    loss = lines["balanced", 8, "task_loss"]
    assert loss["n"] == 12 and len(loss["seeds"]) == 2 and ("lora", 4, "task_loss") not in lines
    assert lines["balanced", 8, "task_loss_over_base"]["value"] < 0  # it learned something of the tasks
    assert lines["balanced − lora", 8, "written_loss"]["n"] == 6
    assert lines["lora", 8, "trained"]["value"] > 0 and ("balanced", None, "routing_served") in lines
    assert not list(tmp_path.glob("*/checkpoints"))
    texts = [row for _, row in iterate_rows(str(tmp_path / "data" / "size8-seed1.jsonl"))]
    assert [text["type"] for text in texts].count(KNOWLEDGE) == 2
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{RESULT}")}
    assert run(claim.study, tmp_path, engine, Options(lambda name: [])) == found
    assert made == {path: path.stat().st_mtime_ns for path in made}
