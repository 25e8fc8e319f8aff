"""Names in a config → data: pools, files, splits of the real sets, and the configs that ask for them."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.polar import finetune
from rmjax import config as base
from rmjax.data import sources
from rmjax.data.errors import RecordError
from rmjax.data.preferences import PREFERENCE_SETS
from rmjax.evaluate.suites import suite_of

ROOT = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_real_sets = pytest.mark.skipif(not ROOT.is_dir(), reason=f"the real preference sets are not in {ROOT}")


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pool_file(tmp_path: Path) -> str:
    facts = {"prompt_id": "p", "prompt": "Say p."}
    rows = [{**facts, "policy": name, "sample": s, "output": f"{name}{s}"} for name in "ab" for s in (0, 1)]
    return write(tmp_path / "pool.jsonl", rows)


@pytest.fixture
def fake_set(tmp_path, monkeypatch):
    """200 pairs on 100 prompts, as a real set named `fake`."""
    rows = [{"prompt": f"p{i % 100}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(200)]
    (tmp_path / "preferences").mkdir()
    write(tmp_path / "preferences" / "fake.jsonl", rows)
    entry = dataclasses.replace(PREFERENCE_SETS["hh_harmless"], file="preferences/fake.jsonl")
    monkeypatch.setitem(PREFERENCE_SETS, "fake", entry)
    return functools.partial(sources.records, "fake", str(tmp_path))


# --- splits of the real sets -----------------------------------------------------------------------------------------


def test_splits_part_the_prompts(fake_set):
    every, train, test = (list(fake_set(split)) for split in ("all", "train", "test"))
    assert sorted([*train, *test], key=lambda c: c.place) == sorted(every, key=lambda c: c.place)
    assert len(every) == 200 and every == list(fake_set())
    prompts = {c.prompt for c in train}, {c.prompt for c in test}
    assert not prompts[0] & prompts[1]
    assert 10 <= len(prompts[1]) <= 30  # 20 expected


def test_a_split_that_does_not_exist_is_an_error(fake_set, tmp_path):
    with pytest.raises(ValueError, match="data.split is 'dev'; choose all, train or test"):
        fake_set("dev")
    path = write(tmp_path / "mine.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    assert len(sources.records(path)) == 1
    with pytest.raises(ValueError, match=r"split 'test' of .*mine\.jsonl: only the real sets have it"):
        sources.records(path, split="test")


def test_the_split_of_the_config_is_passed(fake_set, tmp_path):
    entry = base.comparisons_eval("fake", root=str(tmp_path), split="test")
    assert suite_of(entry).load(entry).records == list(fake_set("test"))
    config = base.get_config()
    config.data.update(kind="comparisons", path="fake", root=str(tmp_path), split="train", reference="optional")
    comparisons = sources.comparisons(config.data).source
    assert comparisons == list(fake_set("train"))


@needs_real_sets
@pytest.mark.parametrize("name", finetune.REFERENCE)
def test_a_real_set_has_both_splits_and_what_its_config_says(name):
    config = finetune.get_config(name)
    config.data.root = str(ROOT)
    comparisons = sources.comparisons(config.data).source  # reads, and checks order and references
    assert all(c.references for c in comparisons) == (config.data.reference == "required")
    assert max(len(c.outputs) for c in comparisons) <= config.data.candidates
    config.evals.preferences.root = str(ROOT)
    test = suite_of(config.evals.preferences).load(config.evals.preferences).records
    assert 0.1 < len(test) / (len(test) + len(comparisons)) < 0.3
    assert not {c.prompt for c in test} & {c.prompt for c in comparisons}


# --- records that cannot be used -------------------------------------------------------------------------------------

GOOD = {"prompt": "p", "reference": "r", "outputs": ["a", "b"], "ranks": [0, 1]}
TIED, ONE = {**GOOD, "ranks": [0, 0]}, {"prompt": "p", "reference": "r", "output": "a"}


def ranked(path: str, **changes):
    config = base.get_config()
    config.data.update(kind="comparisons", path=path, **changes)
    return sources.comparisons(config.data)


def test_an_error_says_how_many_records_are_unusable_and_how_to_go_on(tmp_path):
    path = write(tmp_path / "f.jsonl", [GOOD, TIED, ONE, {**GOOD, "reference": ""}, TIED])
    with pytest.raises(RecordError) as caught:
        ranked(path)
    assert str(caught.value).startswith(f"{path}:2: field `ranks`: all candidates are tied; drop the record")
    assert str(caught.value).endswith(
        "or set config.data.on_error=skip (1 × outputs: only one candidate, 2 × ranks: all candidates are tied, "
        "1 × reference: missing, and the input format needs it, of 5 records)"
    )
    with pytest.raises(RecordError, match=r"\(1 × ranks: all candidates are tied, of 2 records\)"):
        ranked(write(tmp_path / "g.jsonl", [GOOD, TIED]))


def test_unusable_and_unreadable_records_are_left_out_by_choice_and_counted(tmp_path, caplog):
    path = write(tmp_path / "f.jsonl", [GOOD, TIED, {**GOOD, "outputs": "a"}, {**GOOD, "reference": ""}, GOOD])
    found = ranked(path, on_error="skip")
    assert [c.place for c in found.source] == [f"{path}:1", f"{path}:5"]
    assert found.skipped == {
        "outputs: not a list of texts": 1,
        "ranks: all candidates are tied": 1,
        "reference: missing, and the input format needs it": 1,
    }
    assert "left out 1 × ranks: all candidates are tied, 1 × reference: missing" in caplog.text
    assert not ranked(write(tmp_path / "g.jsonl", [GOOD]), on_error="skip").skipped
    with pytest.raises(RecordError, match=r"tied; drop the record or rank its candidates \(1 × "):
        ranked(write(tmp_path / "g.jsonl", [TIED]), on_error="skip")


def test_bad_rows_of_pools_and_texts_are_left_out_by_choice_and_counted(tmp_path):
    path = pool_file(tmp_path)
    with open(path, "a") as file:
        file.write('{"prompt_id": "p"}\n')
    config = pool_config(path, "sft")
    with pytest.raises(RecordError, match="pool.jsonl:5: field `prompt`: missing"):
        sources.pool_groups(config.data)
    config.data.on_error = "skip"
    assert sources.pool_groups(config.data).skipped == {"prompt: missing": 1}
    config.data.path = write(tmp_path / "texts.jsonl", [{"output": "a"}, {"output": ""}])
    assert sources.texts(config.data).skipped == {"output: empty text": 1}


def test_weight_zero_and_large_groups_are_said_before_training(tmp_path, caplog):
    large = {**GOOD, "outputs": list("abcd"), "ranks": [0, 0, 1, 1]}
    ranked(write(tmp_path / "f.jsonl", [GOOD, {**GOOD, "weight": 0}, large]))
    assert "1 of 3 records have weight 0" in caplog.text
    assert (
        "1 of 3 records have more candidates than config.data.candidates=2 and will be left out; 4 takes all"
        in caplog.text
    )
    with pytest.raises(ValueError, match="has more candidates, 4 at most; set it to that"):
        ranked(write(tmp_path / "g.jsonl", [large]))
    with pytest.raises(ValueError, match="has weight 0, so nothing would be learned"):
        ranked(write(tmp_path / "g.jsonl", [{**GOOD, "weight": 0}]))


# --- configs/polar/finetune.py:NAME ----------------------------------------------------------------------------------


def test_fine_tuning_is_on_the_shipped_triples_unless_a_set_is_named():
    config = finetune.get_config()
    assert config.to_dict() == finetune.get_config("").to_dict()
    assert (config.data.path, config.data.split, config.data.reference) == ("shipped:ranked_train", "all", "required")
    assert config.evals.preferences.path == "shipped:ranked_test"


def test_a_named_set_is_trained_on_its_train_split_and_judged_on_its_test_split():
    config = finetune.get_config("hh_harmless")
    assert (config.data.path, config.data.split, config.data.reference) == ("hh_harmless", "train", "optional")
    assert (config.evals.preferences.path, config.evals.preferences.split) == ("hh_harmless", "test")
    assert finetune.get_config("fine_grained_qa").data.candidates == 4


@pytest.mark.parametrize("name", ["rmb_bon_dev", "hh", "mine.jsonl"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"finetune.py:{name} is not a set to train on; there are hh_harmless, "):
        finetune.get_config(name)


# --- pools -----------------------------------------------------------------------------------------------------------


def pool_config(path: str, wrapper: str) -> ConfigDict:
    config = base.get_config()
    config.data.path, config.data.wrapper = path, wrapper
    return config


@pytest.mark.parametrize("wrapper", ["sft", "pretrain"])
def test_the_wrapper_of_the_config_is_that_of_the_draws(tmp_path, wrapper):
    found = sources.pool_groups(pool_config(pool_file(tmp_path), wrapper).data)
    assert found.draw(found.source[0], np.random.default_rng(0)).wrapper == wrapper
    entry = base.pool_eval("seen", path=pool_file(tmp_path), wrapper=wrapper)
    entry.prompts = "seen"
    assert {c.wrapper for c in suite_of(entry).load(entry).records} == {wrapper}


def test_an_unknown_wrapper_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="config.data.wrapper is 'chat'; choose sft or pretrain"):
        base.settle(pool_config(pool_file(tmp_path), "chat"))


def test_a_pool_is_what_its_file_says_now(tmp_path):
    """Draws depend on the order of the policies and on their kinds, so the digest does; and a file may be written again."""
    path, config = tmp_path / "pool.jsonl", base.get_config()
    rows = [
        {"prompt_id": "q", "prompt": "Q", "policy": policy, "sample": i, "output": f"{policy}{i}", "kind": policy}
        for policy in "abc"
        for i in range(2)
    ]
    config.data.path = str(path)

    def digest(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sources.pool_groups(config.data).digest()

    found = [digest(rows), digest(rows[::-1]), digest([row | {"kind": "one"} for row in rows]), digest(rows[:5])]
    assert len(set(found)) == 4 and digest(rows) == found[0]
