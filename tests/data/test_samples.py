"""Groups of samples: from pools and from records, without order, and what tells nothing apart."""

import logging

import numpy as np
import pytest

from rmjax.data.pool import PoolError
from rmjax.data.record import Comparison, RecordError
from rmjax.data.samplerows import Sample, parse_sample
from rmjax.data.samples import from_pool, require_form, require_several, take, telling_apart


def rows(prompts=2, policies="ab", samples=3):
    for p in range(prompts):
        for name in policies:
            for s in range(samples):
                row = {"prompt_id": f"p{p}", "prompt": f"Say {p}.", "policy": name, "output": f"{name}{s}"}
                yield parse_sample(row, f"pool.jsonl:{p}")


def record(*outputs, **facts) -> Comparison:
    return Comparison("p", outputs, place="f.jsonl:3", **facts)


def test_a_group_per_prompt_and_policy():
    groups = from_pool(rows())
    assert [(c.id, c.prompt, c.outputs) for c in groups][:2] == [
        ("p0/a", "Say 0.", ("a0", "a1", "a2")), ("p0/b", "Say 0.", ("b0", "b1", "b2")),
    ]  # fmt: skip
    assert len(groups) == 4 and all(c.ranks is None and not c.references for c in groups)


def test_mixed_groups_and_names():
    mixed = from_pool(rows(policies=["a", "b", "ab"]), "a|ab", mixed=True, wrapper="pretrain")
    assert [(c.id, len(c.outputs), c.wrapper) for c in mixed] == [("p0", 6, "pretrain"), ("p1", 6, "pretrain")]
    assert mixed[0].policies == ("a",) * 3 + ("ab",) * 3  # the whole name must match
    with pytest.raises(PoolError, match="no policy's name matches 'c'; there are a, b"):
        from_pool(rows(), "c")


def test_empty_answers_are_left_out():
    (found,) = from_pool([Sample("p", "P", "a", " "), Sample("p", "P", "a", "yes")])
    assert found.outputs == ("yes",)


def test_take_is_a_random_part_without_order():
    c = record(*"abcdef", ranks=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0), scores=(1.0,) * 6, policies=tuple("uvwxyz"), weight=3.0)
    drawn = [take(c, np.random.default_rng(seed), samples=3) for seed in range(40)]
    assert all(len(set(d.outputs)) == 3 and d.ranks is d.scores is None and d.weight == 1.0 for d in drawn)
    assert {output for d in drawn for output in d.outputs} == set("abcdef")
    assert all(
        dict(zip("abcdef", "uvwxyz", strict=True))[o] == p
        for d in drawn
        for o, p in zip(d.outputs, d.policies, strict=True)
    )
    assert take(c, np.random.default_rng(1), samples=3) == drawn[1]
    assert len(take(c, np.random.default_rng(0), samples=9).outputs) == 6


def test_references_are_apart_from_the_answers():
    c = record(*"abcd")
    for seed in range(10):
        drawn = take(c, np.random.default_rng(seed), samples=5, references=1)
        assert sorted(drawn.outputs + drawn.references) == list("abcd") and len(drawn.references) == 1
    own = record("a", "b", references=("r",))
    assert take(own, np.random.default_rng(0), samples=2).references == ("r",)


def test_answers_that_are_drawn_are_not_all_alike_where_there_is_a_choice():
    c = record("a", "b", "b")
    drawn = [take(c, np.random.default_rng(seed), samples=5, references=1) for seed in range(20)]
    assert {d.references for d in drawn} == {("b",)} and {tuple(sorted(d.outputs)) for d in drawn} == {("a", "b")}
    assert take(record("a", "a"), np.random.default_rng(0), samples=2).outputs == ("a", "a")
    assert len(take(c, np.random.default_rng(0), samples=1).outputs) == 1


def test_a_pool_without_what_is_asked_for():
    row = Sample("p", "P", "a", " ")
    with pytest.raises(PoolError, match="there is no row of these policies and prompts"):
        from_pool([])
    with pytest.raises(PoolError, match="no policy's name matches 'b'; there are a"):
        from_pool([row], "b")
    with pytest.raises(PoolError, match="all answers of the policies that match 'a' are empty"):
        from_pool([row], "a")
    with pytest.raises(PoolError, match=r"policies is '\[', not a regular expression"):
        from_pool([row], "[")


def test_groups_that_tell_nothing_apart_are_counted(caplog):
    groups = [record("a", "a", "a"), record("a"), record("a", "b"), record("a", "a", "b")]
    with caplog.at_level(logging.WARNING):
        assert telling_apart(groups) == groups[2:]
    assert "left out {'all answers identical': 1, 'fewer than two answers': 1} of 4" in caplog.text
    assert telling_apart(groups, references=1) == groups[3:]
    with pytest.raises(
        ValueError, match=r"tells anything apart \(\{'all answers identical': 1, 'fewer .*at least 2 answers"
    ):
        telling_apart(groups[:2])


def test_a_record_of_one_answer_is_an_error():
    assert require_several(record("a", "b")) == record("a", "b")
    with pytest.raises(RecordError, match="f.jsonl:3: field `outputs`: only one answer; give two or more"):
        require_several(record("a"))


def test_another_form_is_an_error():
    require_form(record("a", "b", references=("r",)), {(True, "sft")})
    require_form(record("a", "b"), {(True, "sft"), (False, "sft")})
    with pytest.raises(RecordError, match="f.jsonl:3: a meta record without a reference, wrapper sft beside preference "
                       "records with a reference, wrapper sft; give both the same form"):  # fmt: skip
        require_form(record("a", "b"), {(True, "sft")})
    with pytest.raises(RecordError, match="wrapper pretrain beside"):
        require_form(record("a", "b", wrapper="pretrain"), {(False, "sft")})
