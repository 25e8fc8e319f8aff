"""Every claim's page says what its committed results say."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from experiments import engines, study
from rmjax.recipe import read_config
from rmjax.study.claim import check_figures, check_parts
from rmjax.study.study import Result
from rmjax.study.summary import read_summary

ROOT = Path(__file__).parents[3]
PUBLISHED = (
    "adapter_cost", "drift", "drift:steps", "drift:depth", "drift:temperature", "drift:best_of_n", "drift:distilled",
    "forgetting", "forgetting:loramoe_tiny", "forgetting:gsm8k_train", "growth", "interference", "interference:harmless",
    "metarm_cost", "pods", "polar:real", "polar:regimes", "sampling:epyc-2-cores", "scaling", "scoring_memory",
    "serving", "time_to_accuracy", "trainers:epyc-2-cores", "trainers:epyc-zen5-2-cores",
)  # fmt: skip


NOT_MEASURED = {"noise"}  # as its page says


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_results_say(name):
    folder = name.partition(":")[0]
    config = read_config(study._config_file(name))
    claim = study.claim_of(folder, config)
    about, lines = read_summary(ROOT / claim.results, claim.study.name)
    assert check_parts(claim, ROOT) == [] and lines
    assert about["command"].startswith(f"python -m experiments.study {name}") and not re.search(
        "/root|/work|/tmp", str(about)
    )


AS_DRAWN = pytest.mark.skipif(
    f"matplotlib=={version('matplotlib')}\n" not in (ROOT / "constraints.txt").read_text(), reason="another matplotlib"
)


@AS_DRAWN
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_figures_show_what_the_results_say(name):
    claim = study.claim_of(name.partition(":")[0], read_config(study._config_file(name)))
    assert check_figures(claim, ROOT) == []


@AS_DRAWN
def test_a_figure_that_shows_other_numbers_is_named(tmp_path):
    claim = study.claim_of("scaling", read_config(study._config_file("scaling")))
    folder = (tmp_path / claim.results).parent
    folder.mkdir(parents=True)
    for path in (ROOT / claim.results).parent.glob("scaling*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for page in (claim.page, claim.details):
        (tmp_path / page).write_bytes((ROOT / page).read_bytes())
    assert check_figures(claim, tmp_path) == []
    results = tmp_path / claim.results
    text = results.read_text()
    assert '"value": 0.693292' in text  # a loss on seen policies
    results.write_text(text.replace('"value": 0.693292', '"value": 0.673292', 1))
    assert check_figures(claim, tmp_path) == ["scaling_seen.svg"]
    (folder / "scaling_seen.svg").unlink()
    assert "scaling_seen.svg" in check_figures(claim, tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("interference", {"seeds": (0,), "peer": "python3", "trained": 7}, "config.trained, config.seeds changed"),
        ("trainers:mine", {"training.model.layers": 2}, "config.training.model.layers changed"),
        ("trainers:mine", {"machine": "another"}, "config.machine changed"),
        ("trainers:epyc-2-cores", {"peer": "/opt/python"}, ""),
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


def test_the_index_of_papers_names_studies_that_there_are():
    rows = [
        line.split(" | ") for line in (ROOT / "docs/papers.md").read_text(encoding="utf-8").splitlines() if "](" in line
    ]
    named = {name for row in rows if len(row) == 5 for name in re.findall("`([^`]+)`", row[3])}
    assert len(named) > 8 and named <= {*PUBLISHED, *NOT_MEASURED}


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_needs_no_study(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        study._named(["study", flag])
    said = capsys.readouterr().out
    assert (
        ended.value.code == 0
        and "python -m experiments.study NAME" in said
        and "There are adapter_cost, drift," in said
    )


def test_a_study_that_is_none():
    with pytest.raises(
        ValueError,
        match="nothing: there is no such study; there are adapter_cost, drift, forgetting, growth, .*, or give a folder",
    ):
        study.folder_of("nothing")


def test_a_page_that_was_edited_by_hand_is_refused_and_written_again(tmp_path, monkeypatch, capsys):
    claim = study.claim_of("interference", read_config(study._config_file("interference")))
    for path in (claim.page, claim.details, claim.results):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    study.check(claim)
    text = claim.details.read_text()
    claim.details.write_text(
        text.replace("<!-- made: interference/joint -->", "").replace("<!-- end: interference/joint -->", "")
    )
    with pytest.raises(ValueError, match="loramoe.md has no place for .*interference/joint"):
        study.check(claim)
    claim.details.write_text(text.replace("| full | correct | 0.831", "| full | correct | 0.931"))
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
