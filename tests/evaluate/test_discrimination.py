import numpy as np
import pytest

from rmjax.data.record import Comparison, RecordError
from rmjax.evaluate.discrimination import discriminate, discrimination_rows


def triple(policy, *others, prompt="p", **facts):
    fields = {
        "outputs": (f"{policy} says hello", *(f"{o} mumbles something longer" for o in others)),
        "references": (f"{policy} says hi",),
        "ranks": (0.0,) + (1.0,) * len(others),
        "policies": (policy, *others),
        "place": "f:7",
    }
    return Comparison(prompt=prompt, **(fields | facts))


def test_accuracy_overall_by_policy_and_by_pair():
    rows = [triple("a", "b"), triple("a", "c"), triple("b", "a"), triple("c", "b", "a")]
    got = discriminate(rows, [[1, 0], [0, 1], [1, 1], [2, 1, 3]])
    assert got["overall"]["value"] == pytest.approx(2.5 / 5)
    assert (got["overall"]["n"], got["ties"]) == (5, 1)
    assert {name: mean["value"] for name, mean in got["policies"].items()} == {
        "a": 0.5,
        "b": 0.5,
        "c": 0.5,
    }
    assert got["confusion"]["a"] == {"b": {"value": 1.0, "n": 1}, "c": {"value": 0.0, "n": 1}}
    assert got["confusion"]["c"]["a"] == {"value": 0.0, "n": 1}
    assert got["kinds"] == {}


def test_baselines_judge_the_same_triples():
    rows = [triple("a", "b"), triple("b", "a")]
    got = discriminate(rows, [[0, 1], [1, 0]])
    assert got["baselines"]["word_overlap"]["overall"]["value"] == 1
    assert got["baselines"]["length"]["policies"]["b"]["n"] == 1
    assert got["differences"]["word_overlap"]["value"] == -0.5


def test_kinds_group_policies():
    kinds = {"a": "persona", "b": "persona", "c": "depth"}
    rows = [triple("a", "b"), triple("a", "c"), triple("b", "c"), triple("c", "a")]
    got = discriminate(rows, [[1, 0], [1, 0], [0, 1], [0, 1]], kinds)
    assert got["kinds"]["persona"]["depth"]["value"] == 0.5
    assert got["kinds"]["persona"]["persona"]["n"] == 1
    assert got["kinds"]["depth"] == {"persona": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}}
    with pytest.raises(ValueError, match="no kind is given for the policies c"):
        discriminate(rows, [[1, 0]] * 4, {"a": "x", "b": "x"})


def test_triples_of_one_prompt_are_resampled_together():
    scores = [[1, 0] if i < 70 else [0, 1] for i in range(100)]
    together = discriminate([triple("a", "b", prompt=f"p{i // 10}") for i in range(100)], scores)
    apart = discriminate([triple("a", "b", prompt=f"p{i}") for i in range(100)], scores)
    wide, narrow = together["overall"], apart["overall"]
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    wide, narrow = (result["differences"]["word_overlap"] for result in (together, apart))
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_every_reward_is_in_the_histogram():
    rng = np.random.default_rng(0)
    rows = [triple("a", "b", "c") for _ in range(50)]
    scores = rng.normal(size=(50, 3)).tolist()
    got = discriminate(rows, scores)["rewards"]
    assert (sum(got["same"]), sum(got["other"])) == (100, 100)
    assert got["edges"][0] == pytest.approx(np.min(scores))
    assert len(got["edges"]) == len(got["same"]) + 1


def test_equal_rewards_have_a_histogram_and_no_triples_have_none():
    got = discriminate([triple("a", "b")], [[0.0, 0.0]])
    assert sum(got["rewards"]["same"]) == 1
    empty = discriminate([], [])
    assert empty["overall"]["n"] == 0
    assert empty["rewards"]["edges"] == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"references": ()}, "f:7: field `reference`"),
        ({"policies": None}, "f:7: field `policies`: not one name per output"),
        ({"ranks": (0.0, 0.0)}, "f:7: field `ranks`: no single positive"),
        ({"ranks": None}, "f:7: field `ranks`: no single positive"),
        ({"policies": ("a", "a")}, "f:7: field `policies`: a negative by the positive's own"),
    ],
)
def test_records_that_are_not_triples_are_refused(facts, message):
    with pytest.raises(RecordError, match=message):
        discrimination_rows([triple("a", "b", **facts)], [[1.0, 0.0]])
