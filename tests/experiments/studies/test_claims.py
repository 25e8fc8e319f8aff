"""Every claim's page says what its committed results say."""

import re
from pathlib import Path

import pytest

from experiments import engines, study
from rmjax.recipe import read_config
from rmjax.study.claim import check_page
from rmjax.study.study import Result
from rmjax.study.summary import read_summary

ROOT = Path(__file__).parents[3]
PUBLISHED = (
    "adapter_cost", "drift", "drift:steps", "drift:depth", "drift:temperature", "drift:best_of_n", "drift:distilled",
    "forgetting", "forgetting:loramoe_tiny", "forgetting:gsm8k_train", "growth", "interference", "interference:harmless",
    "metarm_cost", "pods", "polar:regimes", "scaling", "trainers:epyc-2-cores", "trainers:epyc-zen5-2-cores",
)  # fmt: skip


NOT_MEASURED = {"time_to_accuracy"}  # as its page says


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_results_say(name):
    folder = name.partition(":")[0]
    config = read_config(study._config_file(name))
    claim = study.claim_of(folder, config)
    about, lines = read_summary(ROOT / claim.results, claim.study.name)
    assert check_page(claim, ROOT) == [] and lines
    assert about["command"].startswith(f"python -m experiments.study {name}") and not re.search(
        "/root|/work|/tmp", str(about)
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("interference", {"seeds": (0,), "peer": "python3", "trained": 7}, "config.trained, config.seeds changed"),
        ("trainers:mine", {"training.model.layers": 2}, "config.training.model.layers changed"),
        ("trainers:mine", {"machine": "another"}, "config.machine changed"),
        ("trainers:mine", {"peer": "/opt/python"}, ""),
        ("drift:depth", {"keep_checkpoints": True}, ""),
    ],
)  # fmt: skip
def test_a_config_with_changed_keys_is_not_published(tmp_path, monkeypatch, name, changes, said):
    monkeypatch.setattr(engines, "execute", lambda *_: None)  # nothing to summarize
    published, given = (read_config(study._config_file(name)) for _ in range(2))
    with given.unlocked():
        given.update_from_flattened_dict({key: value for key, value in changes.items() if key in given or "." in key})
    claim = study.claim_of(name.split(":")[0], given)
    if not said:
        return study.run(claim, given, tmp_path, "", published)
    with pytest.raises(ValueError, match=rf"--publish with {re.escape(said)}: .*config\.py"):
        study.run(claim, given, tmp_path, "", published)
    study.run(claim, given, tmp_path, "")  # it may be run


def test_every_study_is_published():
    assert {path.parent.name for path in study.STUDIES.glob("*/measure.py")} - NOT_MEASURED == {
        name.split(":")[0] for name in PUBLISHED
    }


def test_a_claim_needs_cells_that_were_stopped_early_too():
    found = {"a": Result("done"), "b": Result("stopped", why="best 0.1 up to step 2")}
    engines.refuse_unfinished(found)
    with pytest.raises(RuntimeError, match=r"1 of 2 cells have no result \(b: best 0.1 up to step 2\)"):
        engines.refuse_unfinished(found, every=True)


def test_a_study_that_is_none():
    with pytest.raises(
        ValueError,
        match="nothing: there is no such study; there are adapter_cost, drift, forgetting, growth, .*, or give a folder",
    ):
        study.folder_of("nothing")


def test_a_page_that_was_edited_by_hand_is_refused_and_written_again(tmp_path, monkeypatch, capsys):
    claim = study.claim_of("interference", read_config(study._config_file("interference")))
    for path in (claim.page, claim.results):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    study.check(claim)
    claim.page.write_text(claim.page.read_text().replace("| full | correct | 0.831", "| full | correct | 0.931"))
    with pytest.raises(
        RuntimeError, match="does not say what .*interference.json says at interference/joint; write it again"
    ):
        study.check(claim)
    capsys.readouterr()
    study.page(claim)
    study.check(claim)
    said = capsys.readouterr().out
    assert (
        "## interference/separate\n\n| arm | domain |" in said and "interference/joint" not in said
    )  # the page has that one
