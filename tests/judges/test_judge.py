"""rmjax/judges/judge.py and kinds.py: scores of replies, both orders, votes, and what is not scored."""

import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.evaluators import EVALUATORS
from rmjax.evaluate.scorers import ScoreError
from rmjax.judges.forms import Form, Unread
from rmjax.judges.judge import MISSING, UNREADABLE, Judge
from rmjax.judges.replies import Replies
from rmjax.judges.spec import Criterion, Rules, Spec
from rmjax.judges.templates import Template
from tests.judges.scripted import Scripted

AB = Form(choices=("A=first", "B=second", "C=equal"))
PAIR = Template("{{ prompt }}|{{ answer_a }}|{{ answer_b }}")
ONE = Template("{{ prompt }}|{{ answer }}")


def pair(n, better="good", worse="bad"):
    return Comparison(f"p{n}", (better, worse), ranks=(0.0, 1.0), id=f"r{n}")


def pairwise(answer, **rules):
    spec = Spec(PAIR, rules=Rules("pairwise", **rules), form=AB)
    return Judge(spec, Replies(Scripted(answer)))


def fair(prompt, n):
    return "[[A]]" if prompt.split("|")[1] == "good" else "[[B]]"


def first(prompt, n):
    return "[[A]]"


def test_a_fair_judge_is_right_in_both_orders():
    judge = pairwise(fair)
    assert judge.score([pair(0), pair(1)]) == [[1.0, 0.0], [1.0, 0.0]]
    assert EVALUATORS["preference"].metrics(judge, [pair(0), pair(1)])["accuracy"] == 1.0
    found = judge.report([pair(0), pair(1)])
    assert found["position"]["first"]["value"] == 0.5 and found["position"]["consistent"]["value"] == 1.0
    assert (found["replies"], found["missing"], found["unread"], found["unjudged"]) == (4, 0, {}, {})


@pytest.mark.parametrize("inconsistent", ["tie", "votes"])
def test_a_judge_of_places_says_nothing_of_answers(inconsistent):
    judge = pairwise(first, inconsistent=inconsistent)
    assert judge.score([pair(0)]) == [[0.5, 0.5]]
    position = judge.report([pair(0)])["position"]
    assert (position["first"]["value"], position["consistent"]["value"], position["first_twice"]) == (1.0, 0.0, 1)


def test_inconsistent_orders_are_a_tie_or_go_by_votes():
    def leaning(
        prompt, n
    ):  # three of three for the good answer where it stands first, one of three where it stands second
        good_first = prompt.split("|")[1] == "good"
        return "[[A]]" if good_first or n > 0 else "[[B]]"

    assert pairwise(leaning, votes=3).score([pair(0)]) == [[0.5, 0.5]]
    assert pairwise(leaning, votes=3, inconsistent="votes").score([pair(0)]) == [[1.0, 0.0]]
    by_mean = pairwise(leaning, votes=3, inconsistent="votes", combine="mean").score([pair(0)])[0]
    assert by_mean == pytest.approx([2 / 3, 1 / 3])


def test_several_answers_are_compared_each_with_each():
    def longer(prompt, n):
        _, a, b = prompt.split("|")
        return "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"

    judge = pairwise(longer)
    assert judge.score([Comparison("p", ("xxx", "x", "xx", "yy"))]) == [pytest.approx([1.0, 0.0, 0.5, 0.5])]
    assert len(judge.replies.generator.asked) == 12
    assert judge.report([Comparison("p", ("xxx", "x", "xx", "yy"))])["position"]["ties"] == pytest.approx(2 / 12)


def test_what_cannot_be_read_is_counted_and_never_scored():
    def answer(prompt, n):
        if prompt.startswith("p1"):
            return "[[both]]" if prompt.split("|")[1] == "good" else "[[B]]"
        return None if prompt.startswith("p2") and prompt.split("|")[1] == "bad" else fair(prompt, n)

    judge, records = pairwise(answer), [pair(0), pair(1), pair(2)]
    assert judge.attempt(records) == [[1.0, 0.0], Unread(UNREADABLE), Unread(MISSING)]
    assert judge.counts == {"HTTP 500": 1}
    found = judge.report(records)
    assert (found["replies"], found["missing"], found["unread"]) == (5, 1, {"says both": 1})
    assert found["unjudged"] == {UNREADABLE: 1, MISSING: 1} and found["position"]["pairs"] == 1
    with pytest.raises(ScoreError, match=r"r1: .* gave no score \(a question without a readable reply\)"):
        judge.score(records)


def test_one_unreadable_vote_of_three_does_not_count():
    judge = pairwise(lambda prompt, n: "hm" if n == 0 else fair(prompt, n), votes=3)
    assert judge.score([pair(0)]) == [[1.0, 0.0]]
    assert judge.report([pair(0)])["unread"] == {"no verdict": 2}
    assert judge.report([pair(0)])["agreement"] == 1.0


def test_a_single_output_is_no_pair():
    assert isinstance(pairwise(fair).attempt([Comparison("p", ("x",))])[0], Unread)


@pytest.mark.parametrize(("combine", "score"), [("mean", 5.0), ("majority", 4.0)])
def test_numbers_of_several_replies(combine, score):
    said = ["[[4]]", "[[3]]", "[[99]]", "[[8]]"]
    spec = Spec(ONE, rules=Rules("pointwise", votes=4, combine=combine))
    judge = Judge(spec, Replies(Scripted(lambda prompt, n: said[n])))
    assert judge.score([Comparison("p", ("x",))]) == [[score]]
    assert judge.report([Comparison("p", ("x",))])["unread"] == {"number out of range": 1}


CRITERIA = (Criterion("true", "says nothing false", 2.0, core=True), Criterion("brief", "is brief", 1.0))


def of_criteria(kind, reply):
    spec = Spec(ONE, rules=Rules(kind), form=Form("json", low=1, high=5), criteria=CRITERIA)
    return Judge(spec, Replies(Scripted(lambda prompt, n: reply))).attempt([Comparison("p", ("x",))])


@pytest.mark.parametrize(
    ("kind", "reply", "score"),
    [
        ("rubric", '{"true": 5, "brief": 2}', 4.0),
        ("checklist", '{"true": true, "brief": true}', 2.0),
        ("checklist", '{"true": true, "brief": false}', 1 + 2 / 3),
        ("checklist", '{"true": false, "brief": true}', 0.0),
    ],
)
def test_criteria_are_weighed(kind, reply, score):
    assert of_criteria(kind, reply) == [pytest.approx([score])]


@pytest.mark.parametrize(
    ("kind", "reply", "reason"),
    [
        ("rubric", '{"true": 5}', "a criterion is missing"),
        ("rubric", '{"a": 5, "b": 1}', "no criterion"),
        ("rubric", '{"true": 5, "brief": 2, "kind": 1}', "a criterion that there is not"),
        ("rubric", '{"true": 6, "brief": 2}', "number out of range"),
        ("rubric", '{"true": true, "brief": 2}', "no number"),
        ("checklist", '{"true": "yes", "brief": true}', "a point that is neither true nor false"),
    ],
)
def test_replies_that_break_the_list(kind, reply, reason):
    spec = Spec(ONE, rules=Rules(kind), form=Form("json", low=1, high=5), criteria=CRITERIA)
    judge = Judge(spec, Replies(Scripted(lambda prompt, n: reply)))
    assert judge.attempt([Comparison("p", ("x",))]) == [Unread(UNREADABLE)]
    assert judge.report([Comparison("p", ("x",))])["unread"] == {reason: 1}
