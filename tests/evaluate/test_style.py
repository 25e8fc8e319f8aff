"""rmjax/evaluate/style.py: marks are counted, known coefficients are found again."""

import numpy as np
import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.style import FEATURES, control, features, fit


def test_marks_outside_code_count():
    text = "# Head\n\n- one\n* two\n  1. three\n\n**bold** and __bold__ and 2 * 3\n```\n# no\n- no\n**no**\n```\n"
    assert dict(zip(FEATURES, features(text), strict=True)) == {
        "words": len(text.split()), "list items": 3, "headers": 1, "bold": 2,
    }  # fmt: skip
    assert features("") == [0, 0, 0, 0] and features("```\n- never closed")[1] == 0


def test_a_regression_finds_its_coefficients_again():
    rng, weights = np.random.default_rng(0), np.asarray([1.5, -0.5])
    design = rng.normal(size=(20_000, 2))
    won = rng.random(20_000) < 1 / (1 + np.exp(-design @ weights))
    assert fit(np.where(won[:, None], design, -design)) == pytest.approx(weights, abs=0.06)


def test_pairs_that_are_all_told_apart_have_finite_coefficients():
    assert 0 < fit(np.ones((10, 1)))[0] < 20 and fit(np.zeros((10, 2))) == pytest.approx([0, 0])


def answers(number, longer):
    few, many = "word " * 3 + str(number), "word " * 9 + str(number)
    return (many, few) if longer else (few, many)


def test_a_reward_that_is_length_has_nothing_left_beside_style():
    records = [Comparison(f"p{i}", answers(i, longer=i % 5 > 0), ranks=(0.0, 1.0)) for i in range(100)]
    by_length = control(records, [[float(len(o)) for o in c.outputs] for c in records])
    assert by_length["accuracy"]["longer"]["value"] == 1.0 and by_length["accuracy"]["shorter"]["value"] == 0.0
    assert (by_length["accuracy"]["longer"]["n"], by_length["accuracy"]["shorter"]["n"]) == (80, 20)
    assert by_length["loss"]["both"] == pytest.approx(by_length["loss"]["style"], abs=2e-3)
    knows = control(records, [[1.0, 0.0] for _ in records])
    assert knows["reward"]["controlled"]["low"] > by_length["reward"]["controlled"]["high"]
    assert knows["style"]["headers"]["value"] == 0.0 and knows["loss"]["reward"] < 0.1 < by_length["loss"]["reward"]


def test_nothing_to_explain():
    with pytest.raises(ValueError, match="no record has an order"):
        control([Comparison("p", ("a", "b"))], [[1.0, 0.0]])
