"""The shipped corpus: what the documentation promises of it."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from rmjax.data.rows import iterate_rows
from rmjax.data.sources import pool, records, shipped

PARTS = (
    "policy_pool", "ranked_train", "ranked_test", "triples_train", "triples_test", "skills_train", "skills_test", "facts",
)  # fmt: skip
LADDERS = {"noise", "depth", "temperature", "topic"}


@pytest.fixture(scope="module")
def rows():
    return [dict(row) for _, row in iterate_rows(str(shipped("policy_pool")))]


def test_it_is_compact():
    assert sum(shipped(part).stat().st_size for part in PARTS) < 10_000_000


def test_there_are_enough_policies_of_every_kind(rows):
    kinds = {row["policy"]: row["kind"] for row in rows}
    assert len(kinds) >= 32
    assert set(kinds.values()) == {"base", "decoding", "persona", "depth", "noise", "tuned"}


def test_every_policy_gives_two_samples_a_prompt(rows):
    samples = Counter((row["prompt_id"], row["policy"]) for row in rows)
    assert min(samples.values()) >= 2


def test_splits_are_by_prompt_and_by_policy(rows):
    of_prompt, of_policy = defaultdict(set), defaultdict(set)
    for row in rows:
        of_prompt[row["prompt_id"]].add(row["prompt_split"])
        of_policy[row["policy"]].add(row["policy_split"])
    assert all(len(splits) == 1 for splits in [*of_prompt.values(), *of_policy.values()])
    trained_on = [row for row in rows if row["prompt_split"] == "seen"]
    assert {row["policy_split"] for row in trained_on} == {"seen"}
    texts = {row["prompt"] for row in trained_on}
    assert not texts & {row["prompt"] for row in rows if row["prompt_split"] == "unseen"}


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_held_out_prompts_give_triples(split):
    triples = pool("shipped:policy_pool", split, "unseen").triples(seed=0, per_prompt=2)
    assert len(triples) > 100
    assert all(t.policies[0] != t.policies[1] and len(t.references) == 1 for t in triples)


@pytest.mark.parametrize(("name", "least"), [("ranked", (100, 30)), ("triples", (512, 400))])
def test_ranked_triples_share_no_prompt_between_train_and_test(name, least):
    train, test = ([*records(f"shipped:{name}_{split}")] for split in ("train", "test"))
    assert len(train) > least[0] and len({c.prompt for c in test}) > least[1]
    assert not {c.prompt for c in train} & {c.prompt for c in test}
    assert all(c.references and c.ranks == (0.0, 1.0) for c in (*train, *test))


def _prompts(name: str) -> list[str]:
    """Of every row of a shipped file, named as in docs/data.md: `policy_pool, seen`."""
    file, _, split = name.partition(", ")
    rows = (row for _, row in iterate_rows(str(shipped(file))))
    return [row["prompt"] for row in rows if not split or row["prompt_split"] == split]


def test_the_docs_say_which_files_share_prompts():
    found = re.findall(
        r"^\| `(\w+)`(, \w+)?[^|]*\| `(\w+)`(, \w+)? \| (\d+) \| (\d+) of (\d+) \|$",
        (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(found) == 13
    of = {name: _prompts(name) for row in found for name in (row[0] + row[1], row[2] + row[3])}
    for trained, part, judged, other, *counts in found:
        train, test = set(of[trained + part]), of[judged + other]
        shared = [prompt for prompt in test if prompt in train]
        assert [len(set(shared)), len(shared), len(test)] == list(map(int, counts)), (trained, judged)


def test_solver_triples_are_verified_by_the_tasks_own_scorer():
    pytest.importorskip("reasoning_gym", reason="comes with the extra `corpus`")
    from experiments.corpus.tasks import is_correct, solver_rows

    tasks = {row["prompt"]: row for row in solver_rows(per_task=30, seed=7)}
    checked = 0
    for _, row in iterate_rows(str(shipped("ranked_test"))):
        if row["category"] != "ladder":
            task = tasks[row["prompt"]]
            verdicts = [
                is_correct(task["category"], task["answer"], row[part]) for part in ("reference", "chosen", "rejected")
            ]
            assert verdicts == [True, True, False], json.dumps(row)
            checked += 1
    assert checked


def test_larger_triples_are_verified_and_kept_apart_from_the_pool(rows):
    """No test prompt is one that pre-training saw; chosen and rejected of a task are right and wrong."""
    trained_on = {row["prompt"] for row in rows if row["prompt_split"] == "seen"}
    test = [dict(row) for _, row in iterate_rows(str(shipped("triples_test")))]
    assert not trained_on & {row["prompt"] for row in test}
    assert LADDERS | {"fact"} < {row["category"] for row in test}
    pytest.importorskip("reasoning_gym", reason="comes with the extra `corpus`")
    from experiments.corpus.tasks import is_correct, triple_rows

    tasks = {row["prompt"]: row for row in triple_rows(per_task=150, seed=17)}
    for row in test:
        if row["category"] not in LADDERS | {"fact"}:
            task = tasks[row["prompt"]]
            answers = [row[part] for part in ("reference", "chosen", "rejected")]
            verdicts = [is_correct(task["category"], task["answer"], answer) for answer in answers]
            assert verdicts == [True, True, False], json.dumps(row)


def test_skills_share_no_prompt_and_are_what_the_tasks_say():
    train, test = (
        [dict(row) for _, row in iterate_rows(str(shipped(f"skills_{split}")))] for split in ("train", "test")
    )
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert {row["category"] for row in train} == {row["category"] for row in test} and len(train) > 2000
    pytest.importorskip("reasoning_gym", reason="comes with the extra `corpus`")
    from experiments.corpus.tasks import skill_rows

    assert sorted(row["id"] for row in train + test) == sorted(row["id"] for row in skill_rows(per_task=600, seed=31))
