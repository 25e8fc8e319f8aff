"""Adapters of the real preference sets: rules on made-up rows, counts on the real files."""

import collections
import json
import logging
from pathlib import Path

import pytest
import zstandard

from rmjax.data.preferences import (
    PREFERENCE_SETS,
    _is_usable,
    fine_grained_qa,
    fine_grained_triples,
    hh_harmless,
    llmfao_crowd,
    load_preferences,
    pandalm_human,
    rmb_bon_dev,
    rmb_pairwise_dev,
)
from rmjax.data.record import Comparison, RecordError, require_order, require_reference

ROOT = Path(__file__).parents[3] / "shared" / "data"
PROMPT = [{"role": "user", "content": "q"}]
PAIR = {"id": "i", "prompt": PROMPT, "response_a": "A", "response_b": "B"}


def qa_row(preference: list[int]) -> dict:
    return {
        "id": "qa",
        "question": "Q?",
        "passages": [["title", "first", "second"], ["other", "third"]],
        "gold": "human answer",
        "answers": ["w", "x", "y", "z"],
        "preference": preference,
    }


def kept(record: Comparison | None) -> Comparison:
    assert record is not None
    return record


@pytest.fixture
def dropped():
    return collections.Counter()


def test_hh(dropped):
    row = {"id": "hh0", "prompt": PROMPT, "chosen": "A", "rejected": "B"}
    record = kept(hh_harmless(row, "f:1", dropped))
    assert (record.outputs, record.ranks, record.id) == (("A", "B"), (0.0, 1.0), "hh0")
    assert record.source == "hh_harmless"
    assert hh_harmless({**row, "rejected": " "}, "f:2", dropped) is None
    assert dropped == {"empty output": 1}
    with pytest.raises(RecordError, match="^f:3: field `chosen`: missing"):
        hh_harmless({"prompt": PROMPT}, "f:3", dropped)


@pytest.mark.parametrize(
    ("votes", "ranks", "reason"),
    [
        ("aab", (0.0, 1.0), None),
        ("bb", (1.0, 0.0), None),
        (["a", "a", "tie", "b"], (0.0, 1.0), None),
        (["a", "tie", "tie"], None, "tie"),
        ("ab", None, "no most frequent vote"),
        (["a", "tie"], None, "no most frequent vote"),
    ],
)
def test_votes_are_counted_and_kept(dropped, votes, ranks, reason):
    row = {**PAIR, "votes": list(votes), "models": "bloom-7b_opt-7b"}
    record = pandalm_human(row, "f:1", dropped)
    assert record is not None and record.ranks == ranks
    assert [_is_usable(record, split_votes, dropped) for split_votes in (True, False)] == [True, ranks is not None]
    assert dropped == ({reason: 1} if reason else {})
    values = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}
    assert record.votes == tuple(values[vote] for vote in votes)
    assert record.policies == ("bloom-7b", "opt-7b")


def test_llmfao_takes_the_winners_of_its_voters(dropped):
    votes = [{"worker": "1", "winner": "b"}, {"worker": "2", "winner": "b"}]
    row = {**PAIR, "votes": votes, "model_a": "m", "model_b": "n", "type": "knowledge"}
    record = kept(llmfao_crowd(row, "f:1", dropped))
    assert (record.ranks, record.votes) == ((1.0, 0.0), ((0.0, 1.0), (0.0, 1.0)))
    assert (record.policies, record.category, record.type) == (("m", "n"), "knowledge", None)


def test_qa_ranks_by_wins(dropped):
    # Pairs 12, 13, 14, 23, 24, 34: the third answer wins all, the second loses all.
    record = kept(fine_grained_qa(qa_row([1, 2, 0, 2, 2, 1]), "f:1", dropped))
    assert (record.ranks, record.references) == ((1.0, 2.0, 0.0, 1.0), ("human answer",))
    assert record.prompt == "title\nfirst\nsecond\n\nother\nthird\n\nQ?"
    assert record.policies == ("fine_grained_qa",) * 4


@pytest.mark.parametrize(
    ("preference", "reason"),
    [
        ([1, 2, 1, 1, 1, 1], "preferences not transitive"),  # 1 > 2 > 3 > 1
        ([1, 0, 1, 0, 1, 1], "preferences not transitive"),  # 1 = 3 = 2 but 1 > 2
        ([0] * 6, "all answers tied"),
    ],
)
def test_qa_rows_without_a_ranking_are_dropped(dropped, preference, reason):
    assert fine_grained_qa(qa_row(preference), "f:1", dropped) is None
    assert dropped == {reason: 1}


def test_qa_triples_take_every_strictly_ordered_three(dropped):
    triples = fine_grained_triples(qa_row([1] * 6), "f:1", dropped)  # 1 > 2 > 3 > 4
    found = [(*triple.references, *triple.outputs) for triple in triples]
    assert found == [("w", "x", "y"), ("w", "x", "z"), ("w", "y", "z"), ("x", "y", "z")]
    assert all(triple.ranks == (0.0, 1.0) for triple in triples)
    assert triples[0].id == "qa/012"
    # 1 > 2 = 3 > 4: two answers that are tied are never chosen and rejected.
    tied = fine_grained_triples(qa_row([1, 1, 1, 0, 1, 1]), "f:1", dropped)
    assert [(*t.references, *t.outputs) for t in tied] == [("w", "x", "z"), ("w", "y", "z")]
    # 1 > 2 > 3 > 1, and all above 4: the cycle itself gives no triple.
    cycle = fine_grained_triples(qa_row([1, 2, 1, 1, 1, 1]), "f:1", dropped)
    assert [triple.outputs[1] for triple in cycle] == ["z", "z", "z"]
    assert fine_grained_triples(qa_row([0] * 6), "f:1", dropped) == []
    assert dropped == {"no three answers strictly ordered": 1}


def test_rmb(dropped):
    pair = {"id": "p", "prompt": PROMPT, "chosen": "A", "rejected": "B", "category": "c/d"}
    record = kept(rmb_pairwise_dev({**pair, "chosen_model": "m", "rejected_model": "n"}, "", dropped))
    assert (record.policies, record.category, record.ranks) == (("m", "n"), "c/d", (0.0, 1.0))
    losers = [{"model": "n", "answer": "B"}, {"model": "o", "answer": "C"}]
    best = {"best": "A", "best_model": "m", "losers": losers, "category": "c", "prompt": PROMPT}
    record = kept(rmb_bon_dev(best, "", dropped))
    assert (record.outputs, record.ranks) == (("A", "B", "C"), (0.0, 1.0, 1.0))
    assert record.policies == ("m", "n", "o")


def test_unknown_sets_and_absent_data(tmp_path):
    with pytest.raises(KeyError, match="hh_harmful: unknown preference set; use one of hh_harmless"):
        load_preferences("hh_harmful", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected in \.\./shared/data beside"):
        load_preferences("hh_harmless", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"hh_harmless\.jsonl\.zst: no such file"):
        load_preferences("hh_harmless", tmp_path)


VOTED = {**PAIR, "models": "m_n", "model_a": "m", "model_b": "n"}


@pytest.mark.parametrize(
    ("name", "row", "detail"),
    [
        ("pandalm_human", {**VOTED, "votes": ["c"]}, "KeyError: 'c'"),
        ("pandalm_human", {**VOTED, "votes": []}, "ValueError: not enough values to unpack"),
        ("pandalm_human", {**VOTED, "votes": 3}, "TypeError: "),
        ("llmfao_crowd", {**VOTED, "votes": [{"worker": "1"}]}, "KeyError: 'winner'"),
        ("hh_harmless", {"id": "i", "prompt": PROMPT, "chosen": 3, "rejected": "B"}, "AttributeError: "),
    ],
)
def test_a_row_with_other_values_is_named(tmp_path, name, row, detail):
    good = {**VOTED, "votes": [{"winner": "a"}] if name == "llmfao_crowd" else ["a"], "chosen": "A", "rejected": "B"}
    file = tmp_path / PREFERENCE_SETS[name].file
    file.parent.mkdir()
    file.write_bytes(zstandard.compress("".join(json.dumps(r) + "\n" for r in (good, row)).encode()))
    with pytest.raises(RecordError, match=f":2: not a row of this set \\({detail}.*MANIFEST") as caught:
        load_preferences(name, tmp_path)
    assert caught.value.place == f"{file}:2"


# Rows kept, as counted independently of the adapters, and the rows of the file.
COUNTS = {
    "hh_harmless": (1796, 1798),
    "llmfao_crowd": (974, 2139),
    "pandalm_human": (734, 875),
    "fine_grained_qa": (466, 500),
    "fine_grained_triples": (298 * 4 + 121 * 2 + 15, 500),
    "rmb_pairwise_dev": (1427, 1427),
    "rmb_bon_dev": (361, 361),
}


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"needs the data bundle in {ROOT}")
@pytest.mark.parametrize("name", PREFERENCE_SETS)
def test_real_sets(name, caplog):
    with caplog.at_level(logging.INFO):
        records = load_preferences(name, ROOT)
    count, rows = COUNTS[name]
    assert len(records) == count
    assert f"{name}: {count} comparisons from {rows} rows" in caplog.text
    for record in records:
        require_order(record)
        assert record.source == name and record.id
        if name.startswith("fine_grained"):
            require_reference(record)
    assert len({record.id for record in records}) == count
