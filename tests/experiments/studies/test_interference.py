"""The interference study: domains, cells, summary, and a tiny grid from end to end."""

import json

import numpy as np
import pytest

from experiments.studies import shared
from experiments.studies.interference import config as grids
from experiments.studies.interference import measure
from rmjax.data.sources import records
from rmjax.evaluate.comparisons import CREDIT
from rmjax.evaluate.rows import Row
from rmjax.study import engines
from rmjax.study.run import Options, run
from rmjax.study.study import RESULT, Result, run_cell
from tests.experiments.starting import save_start


def tiny(init="", second="ladder", **changes):
    config = grids.get_config(second)
    values = {
        "init": str(init),
        "layers": 2,
        "frozen_layers": 1,
        "trained": 4,
        "tested": 6,
        "seeds": (0, 1),
        "row_tokens": 256,
    }
    config.update(values | changes)
    return config


def test_domains_are_types_and_keep_their_tests_apart(tmp_path):
    config = tiny(trained=30)
    measure.make_data(config, tmp_path)
    both = list(records(str(tmp_path / "data" / "both-seed0.jsonl")))
    assert [c.type for c in both].count(0) == [c.type for c in both].count(1) == 30
    assert all((c.category == "ladder") == (c.type == 1) for c in both)
    alone = {name: list(records(str(tmp_path / "data" / f"{name}-seed0.jsonl"))) for name in config.domains}
    assert [c.id for c in both] == [c.id for name in config.domains for c in alone[name]]
    other = list(records(str(tmp_path / "data" / "both-seed1.jsonl")))
    assert {c.id for c in both} != {c.id for c in other}
    for name, rows in alone.items():
        tested = measure.load_domain(config, name, test=True)
        assert len(tested) > 20 and not {c.prompt for c in tested} & {c.prompt for c in rows}


def test_separate_models_are_trained_once_and_for_one_domain():
    found = {cell.name: cell.config for cell in measure.get_claim(tiny()).study.cells}
    assert len(found) == 2 * (4 + 8)  # two seeds; four arms, and full and lora on a domain each, twice
    longer, joint = found["lora-correct-longer-seed1"], found["balanced-both-seed1"]
    assert (
        longer.training.data.path == "work:data/correct-seed1.jsonl"
        and longer.as_long_as == "work:data/both-seed1.jsonl"
    )
    assert (longer.training.adapter.kind, joint.training.adapter.beta) == ("lora", 0.1)
    few = [cell.name for cell in measure.get_claim(tiny(chosen="balanced|top_2", seeds=(0,))).study.cells]
    separate = ["lora-correct-seed0", "lora-ladder-seed0", "lora-correct-longer-seed0", "lora-ladder-longer-seed0"]
    assert few == [*separate, "balanced-both-seed0", "top_2-both-seed0"]


def results(grid, value):
    """Of two comparisons a domain; `value`: cell's values, domain, number → credit."""

    def rows(values):
        domains = grid.domains if values["data"] == measure.JOINT else [values["data"]]
        return tuple(
            Row(f"{domain}{i}", f"prompt{i}", CREDIT, float(value(values, domain, i)), {"domain": domain})
            for domain in domains
            for i in range(2)
        )

    return {cell.name: Result("done", rows(cell.values)) for cell in measure.cells(grid)}


def test_interference_is_what_the_joint_model_loses():
    grid = tiny()

    def value(values, domain, i):
        if values["data"] == measure.JOINT:
            return domain == "ladder" or i == 0 if values["arm"] != "lora" else domain == "ladder"
        if values["kind"] == "separate":
            return domain == "ladder" or i == 0 or values["seed"] == 0
        return domain == "correct" and i == 0

    lines = measure.summarize(grid, results(grid, value))
    found = {(line["arm"], line.get("domain"), line["metric"]): line for line in lines}
    assert found["balanced", "correct", "joint"]["value"] == 0.5 and found["lora", "correct", "separate"]["seeds"] == [
        1,
        0.5,
    ]
    lost = found["balanced", "correct", "interference"]
    assert (lost["value"], lost["low"], lost["high"], lost["seeds"]) == (
        0.25,
        0.0,
        0.5,
        [0.5, 0.0],
    )  # prompts are resampled
    assert found["balanced", "ladder", "interference_longer"]["seeds"] == [-1.0] * 2
    assert found["loramoe − lora", "correct", "difference"]["value"] == 0.5
    assert found["balanced − loramoe", "correct", "difference"]["seeds"] == [0.0, 0.0]
    parts = measure.get_claim(grid).parts(lines)
    assert (
        parts["joint"].splitlines()[0].startswith("| arm | domain | accuracy | interference, as many passes | interfer")
    )
    assert "| +0.250 (+0.000 to +0.500); +0.500 +0.000 | +0.000" in parts["joint"]
    assert "| loramoe − lora | +0.500" in parts["between"] and "| word_overlap | 0." in parts["baselines"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compared": (("lora", "dora"),)}, "config.compared names dora; the arms are balanced, beta_strong"),
        ({"seeds": ()}, "config.seeds is empty"),
        ({"chosen": "dora"}, "config.chosen is 'dora' and matches no arm; they are balanced, beta_strong"),
    ],
)
def test_grids_that_cannot_be_run(changes, message):
    with pytest.raises(ValueError, match=message):
        measure.get_claim(tiny(**changes))


def test_other_grids_that_cannot_be_run(tmp_path):
    config = tiny()
    config.arms.balanced.alone = "dora"
    with pytest.raises(ValueError, match="config.arms.\\*.alone names dora; the arms are balanced, beta_strong"):
        measure.get_claim(config)
    config = tiny()
    config.domains.ladder.category = "stairs"
    with pytest.raises(
        ValueError, match="config.domains.ladder: shipped:ranked_train has no comparison with a category"
    ):
        measure.make_data(config, tmp_path)
    with pytest.raises(ValueError, match="interference:law is unknown; choose ladder or harmless"):
        grids.get_config("law")
    assert list(grids.get_config("harmless").domains) == ["correct", "harmless"]


def test_arms_differ_from_the_balanced_one_in_one_thing():
    config = tiny()
    balanced = grids.training(config, "balanced", 0, "").adapter.to_dict()
    for name, changes in grids.VARIED.items():
        assert grids.training(config, name, 0, "").adapter.to_dict() == balanced | changes
        assert len(changes) == 1 and set(changes) <= set(balanced)


def test_routing_in_long_form():
    shares = [[[0.6, 0.1, 0.2, 0.1]], [[0.2, 0.2, 0.3, 0.3]]]  # types x layers x experts
    found = list(shared.routing_rows({"shares": {"mlp": shares}, "variation": 0.5, "types": ["a", "b"]}))
    lines = shared.routing_lines({"lora": [[], []], "balanced": [found, found]})
    assert [(line["arm"], line["on"], round(line["value"], 6)) for line in lines] == [
        ("balanced", "coefficient of variation", 0.5),
        ("balanced", "mass of a on its experts", 0.7),
        ("balanced", "mass of b on its experts", 0.6),
    ]


@pytest.mark.slow
def test_a_tiny_grid(tmp_path):
    config = tiny(save_start(tmp_path / "start"), seeds=(0,), chosen="lora|balanced", compared=(("balanced", "lora"),))
    claim, workdir = measure.get_claim(config), tmp_path / "grid"
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, workdir))
    found = run(claim.study, workdir, engine, Options(lambda name: []))
    assert {result.status for result in found.values()} == {"done"} and len(found) == 6
    lines = claim.summarize(found)
    joint = [line for line in lines if line["metric"] == "joint"]
    assert [(line["arm"], line["domain"], line["n"]) for line in joint] == [
        (arm, domain, 6) for arm in ("balanced", "lora") for domain in ("correct", "ladder")
    ]  # fmt: skip
    assert [line["arm"] for line in lines if "on" in line] == ["balanced"] * 3
    assert {"length", "longer", "shorter", "word_overlap"} == {
        line["arm"] for line in lines if line["metric"] == "baseline"
    }
    steps = {p.parent.name: json.loads(p.read_text())["run"]["steps"] for p in workdir.glob("*/config.json")}
    assert (
        {steps[name] for name in steps if "longer" in name}
        == {steps["lora-both-seed0"]}
        != {steps["lora-correct-seed0"]}
    )
    assert not list(workdir.glob("*/checkpoints")) and all(np.isfinite(line["value"]) for line in lines)
    made = {path: path.stat().st_mtime_ns for path in workdir.glob(f"*/{RESULT}")}
    assert run(claim.study, workdir, engine, Options(lambda name: [])) == found
    assert made == {path: path.stat().st_mtime_ns for path in made}
