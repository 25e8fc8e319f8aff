"""Refining: a judge that accepts too much, an expert that is a program, and a library of criteria of which a few are right."""

import random

import pytest

from rmjax.judges.llmeval_med.refine import Case, Change, refine

FACTS = ("dose", "allergy", "source", "doctor")
NOISE = ("greeting", "length", "emoji")
LIBRARY = tuple(Change(f"names {word}") for word in (*NOISE, *FACTS[1:]))


def cases(count, seed):
    """The expert wants all facts; answers have each by chance."""
    rng = random.Random(seed)
    found = []
    for n in range(count):
        words = [f for f in FACTS if rng.random() < 0.8] + [w for w in NOISE if rng.random() < 0.5]
        found.append(Case(f"q{seed}-{n}", " ".join(words), all(f in words for f in FACTS)))
    return found


def judge(changes, cases):
    """Sees the first fact only, and what was added."""
    wanted = ["dose", *(change.text.split()[1] for change in changes)]
    return [all(word in case.answer.split() for word in wanted) for case in cases]


DEV, TEST = cases(200, 0), cases(200, 1)


def test_agreement_on_the_untouched_test_rises_and_false_accepts_fall():
    steps = refine(judge, DEV, TEST, LIBRARY, 6)
    assert [change.text for change in steps[-1].changes if change.text.split()[1] in NOISE] == []
    assert len(steps) == 4  # nothing more helps
    test = [step.test["agreement"]["value"] for step in steps]
    assert 0.5 < test[0] < 0.75 and test == sorted(test) and test[-1] == 1.0
    assert steps[0].test["over_accepted"] > 0.3 and steps[-1].test["over_accepted"] == 0
    assert steps[0].test["only_human"] == 0  # one-sided, as the paper's


def test_the_control_adds_at_random_and_is_worse():
    control = refine(judge, DEV, TEST, LIBRARY, 3, random.Random(0))
    best = refine(judge, DEV, TEST, LIBRARY, 3)
    assert len(control) == 4
    assert control[-1].test["agreement"]["value"] < best[-1].test["agreement"]["value"]


def test_unread_verdicts_are_counted():
    steps = refine(lambda changes, cases: [None, *judge(changes, cases[1:])], DEV, TEST, LIBRARY, 0)
    assert steps[0].dev["unread"] == 1 and steps[0].dev["agreement"]["n"] == 199


def test_sets_must_be_apart():
    with pytest.raises(ValueError, match="200 answers are in both sets"):
        refine(judge, DEV, DEV, LIBRARY, 1)
    with pytest.raises(ValueError, match="a set of answers is empty"):
        refine(judge, DEV, [], LIBRARY, 1)
