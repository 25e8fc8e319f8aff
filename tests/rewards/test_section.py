"""Rewards by a section of a config, and a scorer as one."""

import dataclasses
from collections import Counter

import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import Baseline, checked
from rmjax.rewards.deadline import InProcess
from rmjax.rewards.model import OfScorer
from rmjax.rewards.reward import Failure
from rmjax.rewards.section import RewardSection, build
from rmjax.sections import defaults, read

RECORDS = [Comparison("p", ("<think>aaaa</think>bb", "ccc"), references=("r",)), Comparison("q", ("d",))]


class Lengths:
    """A scorer: characters; not finite where an output says so."""

    name = "lengths"
    counts = Counter[str]()

    def score(self, records, progress=False):
        assert all(c.columns == {} for c in records)
        return checked(records, [[float("nan") if "nan" in o else float(len(o)) for o in c.outputs] for c in records])


def test_a_model_reads_the_answer_without_its_thinking_and_rules_read_all():
    section = RewardSection(("model=1.0", "overlong=10"), think="strip", longest=10, buffer=5)
    assert build(section, Lengths())(RECORDS) == [[2.0 - 10, 3.0], [1.0]]
    kept = dataclasses.replace(section, parts=("model=2",), think="keep", bound=20.0)
    assert build(kept, Lengths())(RECORDS) == [[20.0, 6.0], [2.0]]
    assert build(dataclasses.replace(kept, whiten=True, bound=1e3), Lengths())(RECORDS)[1][0] < 0
    tagged = RewardSection(("model=1",), tag="a")
    assert build(tagged, Lengths())([Comparison("p", ("<a>bb</a> c",))]) == [[2.0]]


def test_a_record_whose_score_is_not_finite_fails_alone():
    many = [Comparison(str(i), ("nan" if i == 2 else "ok", "x")) for i in range(5)]
    found = OfScorer(Lengths())(many)
    assert found[2] == [Failure("the score is not finite")] * 2 and found[:2] + found[3:] == [[2.0, 1.0]] * 4


def test_a_record_without_the_reference_that_is_needed_fails():
    assert OfScorer(Baseline("longer"), needs_reference=True)(RECORDS) == [[21.0, 3.0], [Failure("no reference")]]
    assert OfScorer(Baseline("longer"))(RECORDS)[1] == [1.0]


def test_verifiers_of_a_section_have_a_deadline():
    reward = build(RewardSection(("number=1", "matches=0.5"), seconds=5.0))
    parts = reward.reward.parts
    assert all(isinstance(parts[name][0], InProcess) and parts[name][0].seconds == 5 for name in ("number", "matches"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ()}, "config.reward.parts is empty; give NAME=WEIGHT, with number"),
        ({"parts": ("length=1",)}, "config.reward.parts has 'length=1'"),
        ({"parts": ("number",)}, "as number=1.0"),
        ({"parts": ("number=nan",)}, "weight of number is not finite"),
        ({"parts": ("number=1", "number=2")}, "has a name twice"),
        ({"parts": ("model=1",)}, "names `model`, and there is none"),
        ({"parts": ("server=1",)}, "begins with http"),
        ({"parts": ("overlong=1",), "longest": 3, "buffer": 4}, "want 0 < buffer <= longest"),
    ],
)
def test_a_section_that_rewards_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(RewardSection(**changes))


def test_the_section_is_one_of_a_config():
    assert read(RewardSection, defaults(RewardSection), "config.reward") == RewardSection()
    with pytest.raises(ValueError, match="config.reward.think is 'drop'; choose keep or strip"):
        read(RewardSection, {"think": "drop"}, "config.reward")
