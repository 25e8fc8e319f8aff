"""The interference experiment: domains, data, summary, and a tiny grid from end to end."""

import argparse
import json

import numpy as np
import pytest

from configs import interference as grids
from experiments import interference
from rmjax.data.record import Comparison
from rmjax.data.sources import records
from rmjax.locks import InUseError, locked
from tests.experiments.starting import save_start


def tiny(init="", **changes):
    config = grids.get_config()
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
    interference.make_data(config, tmp_path)
    both = list(records(str(tmp_path / "data" / "both-seed0.jsonl")))
    assert [c.type for c in both].count(0) == [c.type for c in both].count(1) == 30
    assert all((c.category == "ladder") == (c.type == 1) for c in both)
    alone = {name: list(records(str(tmp_path / "data" / f"{name}-seed0.jsonl"))) for name in config.domains}
    assert [c.id for c in both] == [c.id for name in config.domains for c in alone[name]]
    other = list(records(str(tmp_path / "data" / "both-seed1.jsonl")))
    assert {c.id for c in both} != {c.id for c in other}
    for name, rows in alone.items():
        tested = interference.load_domain(config, name, test=True)
        assert len(tested) > 20 and not {c.prompt for c in tested} & {c.prompt for c in rows}


def test_interference_is_what_the_joint_model_loses():
    config = tiny()
    rows = {name: [Comparison("p", ("a", "b"), ranks=(0.0, 1.0)), Comparison("q", ("a", "b"), ranks=(0.0, 1.0))]
            for name in config.domains}  # fmt: skip
    joint = {name: [{"correct": [1.0, 0.0], "ladder": [1.0, 1.0]}] * 2 for name in config.arms}
    separate = {"correct": [[1.0, 1.0], [1.0, 0.0]], "ladder": [[1.0, 1.0]] * 2}
    longer = {"correct": [[1.0, 0.0]] * 2, "ladder": [[0.0, 0.0]] * 2}
    alone = {name: {"separate": separate, "separate_longer": longer} for name in ("full", "lora")}
    table = interference.results_of(config, rows, joint, alone)
    found = table["balanced"]["correct"]
    assert found["joint"]["mean"]["value"] == 0.5 and found["separate"]["seeds"] == [1.0, 0.5]
    lost = found["interference"]
    assert lost["mean"]["value"] == 0.25 and table["full"]["ladder"]["interference"]["mean"]["value"] == 0.0
    assert (lost["mean"]["low"], lost["mean"]["high"]) == (0.0, 0.5)  # prompts are resampled
    assert lost["seeds"] == [0.5, 0.0]
    as_long = table["balanced"]["ladder"]
    assert as_long["separate_longer"]["mean"]["value"] == 0.0 and as_long["interference_longer"]["seeds"] == [-1.0] * 2
    joint["lora"] = [{"correct": [0.0, 0.0], "ladder": [1.0, 1.0]}] * 2
    between = interference.compared(config, rows, joint)
    assert list(between) == ["loramoe - lora", "balanced - loramoe", "balanced - lora"]
    assert between["loramoe - lora"]["correct"]["mean"]["value"] == 0.5
    assert between["balanced - loramoe"]["correct"]["seeds"] == [0.0, 0.0]
    written = {"arms": table, "baselines": interference.baselines_of(rows), "routing": {}, "compared": between}
    page = interference.tables(written)
    assert "| loramoe - lora | +0.500" in page
    assert (
        page.splitlines()[0]
        == "| arm | domain | separate | separate_longer | joint | interference | interference_longer |"
    )
    assert "| +0.250 (+0.000 to +0.500); +0.500 +0.000 | +0.000" in page and "| word_overlap | 0.5" in page


def test_grids_that_cannot_be_run(tmp_path):
    config = tiny()
    config.arms.balanced.alone = "dora"
    with pytest.raises(ValueError, match="config.arms.\\*.alone names dora; the arms are balanced, beta_strong"):
        interference.run(config, tmp_path)
    with pytest.raises(ValueError, match="config.compared names dora; the arms are balanced"):
        interference.run(tiny(compared=(("lora", "dora"),)), tmp_path)
    with pytest.raises(ValueError, match="config.seeds is empty"):
        interference.run(tiny(seeds=()), tmp_path)
    with pytest.raises(ValueError, match="config.chosen is 'dora' and matches no arm; they are balanced, beta_strong"):
        interference.run(tiny(chosen="dora"), tmp_path)
    config = tiny()
    config.domains.ladder.category = "stairs"
    with pytest.raises(
        ValueError, match="config.domains.ladder: shipped:ranked_test has no comparison with a category"
    ):
        interference.run(config, tmp_path)
    with pytest.raises(ValueError, match="configs/interference.py:law is unknown; choose ladder or harmless"):
        grids.get_config("law")
    assert list(grids.get_config("harmless").domains) == ["correct", "harmless"]


def test_a_workdir_that_another_grid_holds(tmp_path):
    with locked(tmp_path), pytest.raises(InUseError, match="is in use by another run"):
        interference.run(tiny(), tmp_path)


def test_separate_models_are_made_once_and_for_one_domain(tmp_path, monkeypatch):
    made = []

    def run_one(grid, name, data, seed, workdir, tests, tokenizer, longer=False):
        made.append(f"{name}/{data}-{seed}{' longer' if longer else ''}")
        return {"credits": {d: [float(data != "both")] * len(rows) for d, rows in tests.items() if data in ("both", d)}}

    monkeypatch.setattr(interference, "run_one", run_one)
    monkeypatch.setattr(interference, "load_start", lambda model: argparse.Namespace(tokenizer=None))
    interference.run(tiny(), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(made) == len(set(made)) == 2 * (4 + 8)  # two seeds; four arms, and full and lora on a domain each, twice
    assert found["arms"]["loramoe"]["ladder"]["interference"]["mean"] == {
        "value": 1.0, "low": 1.0, "high": 1.0, "n": 12
    }  # fmt: skip
    assert "| loramoe | ladder |" in (tmp_path / "results.md").read_text()
    assert found["baselines"]["correct"]["length"]["n"] == 6
    made.clear()
    interference.run(tiny(chosen="balanced|top_2", seeds=(0,)), tmp_path)
    separate = ["lora/correct-0", "lora/ladder-0", "lora/correct-0 longer", "lora/ladder-0 longer"]
    assert made == [*separate, "balanced/both-0", "top_2/both-0"]


def test_arms_differ_from_the_balanced_one_in_one_thing():
    config = tiny()
    balanced = grids.training(config, "balanced", 0, "").adapter.to_dict()
    for name, changes in grids.VARIED.items():
        assert grids.training(config, name, 0, "").adapter.to_dict() == balanced | changes
        assert len(changes) == 1 and set(changes) <= set(balanced)


@pytest.mark.slow
def test_a_tiny_grid(tmp_path, monkeypatch):
    config = tiny(save_start(tmp_path / "start"), seeds=(0,))
    for name in ("full", "loramoe"):
        del config.arms[name]
    config.compared = (("balanced", "lora"),)
    interference.run(config, tmp_path / "grid")
    found = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert set(found["arms"]) == {"lora", "balanced"} and set(found["arms"]["lora"]) == {"correct", "ladder"}
    assert found["arms"]["balanced"]["ladder"]["joint"]["mean"]["n"] == 6
    assert list(found["compared"]) == ["balanced - lora"]
    assert set(found["baselines"]["correct"]) == {"length", "longer", "shorter", "word_overlap"}
    made = {str(path.parent.relative_to(tmp_path / "grid")) for path in (tmp_path / "grid").glob("*/*/result.json")}
    assert set(found["routing"]) == {"balanced"} and set(found["routing"]["balanced"]["served"]) == {
        "correct",
        "ladder",
    }
    result = json.loads((tmp_path / "grid" / "balanced" / "both-seed0" / "result.json").read_text())
    share = result["routing"]["shares"]["mlp/up"]
    assert np.shape(share) == (2, 1, 6)
    np.testing.assert_allclose(np.sum(share, axis=-1), 1, atol=1e-4)
    assert "balanced, mlp/up: coefficient of variation" in (tmp_path / "grid" / "report.html").read_text()
    separate = {f"lora/{domain}{kind}-seed0" for domain in config.domains for kind in ("", "-longer")}
    assert made == {"lora/both-seed0", "balanced/both-seed0"} | separate
    steps = {run: json.loads((tmp_path / "grid" / run / "config.json").read_text())["run"]["steps"] for run in made}
    assert (
        {steps[run] for run in made if "longer" in run} == {steps["lora/both-seed0"]} != {steps["lora/correct-seed0"]}
    )
    monkeypatch.setattr(interference.train, "run", lambda *_: pytest.fail("a finished run was run again"))
    interference.run(config, tmp_path / "grid")
    config.domains.ladder.test = "shipped:ranked_train"
    with pytest.raises(ValueError, match="result.json was judged with .*use a new workdir"):
        interference.run(config, tmp_path / "grid")
