"""Every claim's page says what its committed results say."""

import re
from pathlib import Path

import pytest

from experiments import engines, study
from rmjax.study.claim import check_page
from rmjax.study.study import Result
from rmjax.study.summary import read_summary
from tools.docs.commands import read_config

ROOT = Path(__file__).parents[3]
PUBLISHED = (
    "adapter_cost", "drift", "drift:steps", "drift:depth", "drift:temperature", "drift:best_of_n", "drift:distilled",
    "forgetting", "forgetting:loramoe_tiny", "forgetting:gsm8k_train", "growth", "interference", "interference:harmless",
    "metarm_cost", "pods", "polar:real", "polar:regimes", "scaling", "time_to_accuracy", "trainers:epyc-2-cores",
    "trainers:epyc-zen5-2-cores",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_results_say(name):
    folder, _, argument = name.partition(":")
    config = read_config(f"experiments/studies/{folder}/config.py{':' + argument if argument else ''}")
    claim = study.claim_of(folder, config)
    about, lines = read_summary(ROOT / claim.results, claim.study.name)
    assert check_page(claim, ROOT) == [] and lines
    assert about["command"].startswith(f"python -m experiments.study {name}") and not re.search(
        "/root|/work|/tmp", str(about)
    )


def test_every_study_is_published():
    assert {path.parent.name for path in study.STUDIES.glob("*/measure.py")} == {
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
    claim = study.claim_of("interference", read_config("experiments/studies/interference/config.py"))
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
