"""EvaLearn's protocol: what each paradigm shows, who learns, and what has no grade."""

import re

import pytest

from rmjax.judges.evalearn.data import Problem, Series
from rmjax.judges.evalearn.metrics import Outcomes, summarize
from rmjax.judges.evalearn.protocol import (
    PARADIGMS,
    Prompts,
    by_judge,
    by_verifier,
    examples_of,
    lines,
    right_of,
    run,
)  # fmt: skip
from rmjax.judges.evalearn.toy import says_it, toy_series
from rmjax.judges.replies import Replies
from tests.judges.scripted import Scripted

PROMPTS = Prompts.load()
SAID = {True: "right", False: "wrong"}
THREE = Series(
    "s", "kind", tuple(Problem(f"p{m}", "kind", (f"question {m}",), f"rubric {m}", f"standard {m}") for m in range(3))
)
OTHERS = [Problem(f"q{m}", "kind", (f"other {m}",), "r", f"other standard {m}") for m in range(4)]


def affine_student(prompt, n):
    """Finds a · x + b by two answers that it was shown, if it was shown any."""
    known = {}
    for block in re.split(r"\[Problem \d+\]|\[Example \d+\]", prompt)[1:]:
        asked, told = re.search(r"f\((\d+)\)", block), re.search(r"answer is (-?\d+)|\[Its answer\]\n(-?\d+)", block)
        if asked and told:
            known[int(asked[1])] = int(told[1] or told[2])
    x = int(re.findall(r"f\((\d+)\)", prompt)[-1])
    if len(known) < 2:
        return "0"
    (x0, y0), (x1, y1) = list(known.items())[:2]
    a = (y1 - y0) // (x1 - x0)
    return str(a * (x - x0) + y0)


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_what_a_paradigm_shows(paradigm):
    student = Scripted(lambda prompt, n: "my answer")
    run(
        [THREE, Series("o", "kind", tuple(OTHERS[:3]))], Replies(student), by_verifier(says_it, SAID), PROMPTS, paradigm
    )
    third = next(p for p in student.asked if p.count("question 2") and p.rstrip().endswith("question 2"))
    assert ("question 0" in third) == (paradigm not in ("zero_shot", "few_shot")) or paradigm == "few_shot"
    assert ("standard 0" in third.replace("other standard 0", "")) <= (paradigm in ("demonstration", "few_shot"))
    assert ("my answer" in third and "rubric 1" in third and "wrong" in third) == (
        paradigm in ("feedback", "moved_feedback")
    )
    assert "rubric 2" not in third and "standard 2" not in third.replace("other standard 2", "")  # never its own
    if paradigm == "few_shot":
        assert third.count("[Its answer]") == 3
    if paradigm == "zero_shot":
        assert "kind" in third and "other" not in third


def test_a_student_that_reads_its_feedback_learns():
    series = toy_series(12, families=["affine"])
    outcomes = {}
    for paradigm in PARADIGMS:
        student = Replies(Scripted(affine_student))
        _, right, lacking = right_of(series, run(series, student, by_verifier(says_it, SAID), PROMPTS, paradigm))
        assert not lacking
        outcomes[paradigm] = right
    types = tuple(each.type for each in series)
    found = summarize(Outcomes(outcomes["feedback"], types, outcomes["zero_shot"]))["figures"]
    assert found["slope"]["macro"]["above_shuffled"]["low"] > 0.05
    assert found["offset"]["macro"]["value"] > 1
    assert summarize(Outcomes(outcomes["demonstration"], types))["figures"]["slope"]["macro"]["value"] > 0.05
    assert outcomes["moved_feedback"].sum() < outcomes["feedback"].sum() / 10
    assert abs(summarize(Outcomes(outcomes["zero_shot"], types))["figures"]["slope"]["macro"]["value"]) < 0.05


def test_a_judge_grades_by_the_rubric_alone():
    judge = Scripted(lambda prompt, n: f'{{"answer_score": {int("rubric 1" in prompt)}}}')
    done = run(
        [THREE], Replies(Scripted(lambda prompt, n: "a")), by_judge(PROMPTS, Replies(judge)), PROMPTS, "feedback"
    )
    assert [one.right for one in done[0]] == [False, True, False]
    assert all("question" not in prompt and "[Answer]\na" in prompt for prompt in judge.asked)
    assert lines([THREE], done, "feedback")[1] == {
        "sequence_id": "s", "type": "kind", "paradigm": "feedback", "position": 2, "id": "p1", "answer": "a",
        "right": True, "evaluation": '{"answer_score": 1}', "reason": "",
    }  # fmt: skip


def test_answers_and_grades_that_cannot_be_had_are_counted_and_not_scored():
    others = Series("o", "kind", tuple(OTHERS[:3]))
    student = Scripted(lambda prompt, n: None if prompt.rstrip().endswith("other 1") else "a")
    judge = Scripted(lambda prompt, n: "2" if "rubric 2" in prompt else '{"answer_score": 0}')
    series = [THREE, others]
    done = run(series, Replies(student), by_judge(PROMPTS, Replies(judge)), PROMPTS, "feedback")
    whole, right, lacking = right_of(series, done)
    assert whole == [] and right.size == 0
    assert lacking == {"an answer that could not be had": 2, "a grade that could not be read: no JSON object": 1}


def test_a_problem_is_never_its_own_example():
    problems = [*THREE.problems, *OTHERS]
    chosen = examples_of(problems)["kind"]
    assert len(chosen) == 4 and chosen == examples_of(list(reversed(problems)))["kind"]


def test_an_unknown_paradigm():
    with pytest.raises(
        ValueError, match="'none' does not exist; choose zero_shot, few_shot, demonstration, feedback, moved"
    ):
        run([THREE], Replies(Scripted(lambda prompt, n: "")), by_verifier(says_it, SAID), PROMPTS, "none")
