"""Answers, their rewards, what is recorded of their tokens, and what is dropped."""

import math
from collections import Counter

import numpy as np
import pytest

from rmjax.data.packing import ForestShape, Tree
from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated
from rmjax.rewards.reward import Failure, Verified
from rmjax.rounds.draw import Drawing, measures_of, over_tokens, places_of, with_rewards

ASKED = [Comparison(f"p{i}", (), ("r",), id=f"q{i}") for i in range(4)]


def answered(c, outputs):
    ids = tuple(tuple(range(1, 2 + len(output))) for output in outputs)
    columns = {
        "token_ids": ids, "log_probs": tuple((-0.5,) * len(each) for each in ids), "truncated": (0.0,) * len(ids),
    }  # fmt: skip
    return Comparison(c.prompt, tuple(outputs), c.references, id=c.id, columns=columns)


def verify(prompt, output, references):
    return {"bad": Failure("hangs"), "nan": math.nan}.get(output, float(len(output)))


REWARD = Verified("length", verify)


def test_what_has_no_reward_is_dropped_with_its_reason_and_found_again():
    found = Generated(
        [answered(ASKED[0], ["a", "bad", "ccc"]), answered(ASKED[2], ["bad", "nan"]), answered(ASKED[3], ["", "nan"])],
        Counter({"prompt too long": 3}),
    )
    kept = with_rewards(ASKED, found, REWARD)
    assert [c.outputs for c in kept.records] == [("a", "ccc"), ("",)] and kept.places == [0, 3]
    assert [c.columns["rewards"] for c in kept.records] == [(1.0, 3.0), (0.0,)]
    assert [len(c.columns["token_ids"]) for c in kept.records] == [2, 1]
    assert kept.failed[0] == [{"output": "bad", "reason": "hangs"}] and list(kept.failed) == [0, 2, 3]
    assert [each["reason"] for each in kept.failed[2]] == ["hangs", "not finite"]  # of a prompt that is left out
    assert kept.dropped == Counter({"prompt too long": 3, "hangs": 2, "not finite": 2, "records without a reward": 1})


def test_places_of_answers():
    twins = [Comparison("p", (), id="x"), Comparison("p", (), id="x"), Comparison("p", (), id="y")]
    assert places_of(ASKED, [ASKED[1], ASKED[3]]) == [1, 3] and places_of(twins, twins) == [0, 1, 2]


def test_a_measure_s_values_come_to_their_tokens():
    """Of trees of one and of two branches, packed in any order, more of them than a batch holds."""
    random = np.random.default_rng(0)
    sizes = [(3, (2, 4)), (1, (5,)), (4, (1, 1)), (2, (3, 2))]
    trees = [
        Tree(
            random.integers(1, 90, p).astype(np.int32), tuple(random.integers(1, 90, n).astype(np.int32) for n in each),
            np.full(len(each), np.inf, np.float32),
        )
        for p, each in sizes
    ]  # fmt: skip
    found = over_tokens(
        lambda params, forest: params * np.asarray(forest.tokens_RT), 2, trees, ForestShape(1, 16, 2, 2)
    )
    for tree, branches in zip(trees, found, strict=True):
        assert [each.tolist() for each in branches] == [(2.0 * branch).tolist() for branch in tree.branches]


def trees_of(c):
    """The first answer in a tree of its own."""
    branches = [np.asarray(ids, np.int32) for ids in c.columns["token_ids"]]
    parts = [branches[:1], branches[1:]] if len(branches) > 1 else [branches]
    return [Tree(np.array([7], np.int32), tuple(part), np.full(len(part), np.inf, np.float32)) for part in parts]


def drawing(answer):
    def generator(params):
        return lambda asked, samples, seed: Generated([answered(c, answer(c, samples)) for c in asked], Counter())

    measures = {"reference_log_probs": lambda params, forest: -params * np.asarray(forest.tokens_RT)}
    return Drawing(generator, REWARD, 3, measures, trees_of, ForestShape(2, 32, 4, 3))


def test_a_round_has_what_is_learned_from_and_what_is_logged():
    found = drawing(lambda c, samples: ["a" * (i + 1) for i in range(samples)])(1.0, 2.0, ASKED[:2], 0)
    assert found.questions == [0, 1] and found.records[0].columns["rewards"] == (1.0, 2.0, 3.0)
    assert found.records[0].columns["reference_log_probs"] == (
        (-2.0, -4.0),
        (-2.0, -4.0, -6.0),
        (-2.0, -4.0, -6.0, -8.0),
    )
    assert found.metrics["reward"] == 2.0 and found.metrics["answers"] == 6 and found.metrics["answer_tokens"] == 3.0
    assert found.metrics["equal_groups"] == 0.0 and found.metrics["kl"] > 0
    assert {"seconds_sampling", "seconds_rewarding", "seconds_recording"} <= set(found.metrics)


def test_a_policy_that_says_nothing_and_equal_rewards_show():
    found = drawing(lambda c, samples: [""] * samples)(1.0, 1.0, ASKED, 0)
    assert found.metrics["empty"] == 1.0 and found.metrics["equal_groups"] == 1.0 and found.metrics["reward_std"] == 0.0


def test_a_round_without_a_single_reward_ends_the_run():
    with pytest.raises(ValueError, match=r"no answer of a round has a reward \(12 × hangs"):
        drawing(lambda c, samples: ["bad"] * samples)(1.0, 1.0, ASKED, 0)


def test_a_kl_of_equal_policies_is_0():
    same = answered(ASKED[0], ["aa"])
    columns = {**same.columns, "reference_log_probs": same.columns["log_probs"], "rewards": (1.0,)}
    assert measures_of([Comparison("p", ("aa",), columns=columns)], {})["kl"] == 0.0
