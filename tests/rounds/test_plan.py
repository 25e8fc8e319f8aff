"""Which prompts and answers a step learns from."""

import pytest

from rmjax.rounds.plan import Plan


def test_a_step_has_a_round_and_a_place_in_it():
    plan = Plan(questions=10, prompts=4, updates=2, passes=3)
    assert plan.steps == 6 and plan.rounds == 2
    assert [plan.at(step) for step in (1, 2, 6, 7, 13)] == [(0, 0), (0, 1), (0, 5), (1, 0), (2, 0)]


def test_no_round_asks_a_prompt_twice_and_an_epoch_asks_each_at_most_once():
    plan = Plan(questions=11, prompts=3, updates=1, seed=5)
    for epoch in range(4):
        asked = [i for number in range(3 * epoch, 3 * epoch + 3) for i in plan.asked(number)]
        assert len(asked) == len(set(asked)) == 9
    assert plan.asked(0) != plan.asked(3) and plan.asked(0) == Plan(11, 3, 1, seed=5).asked(0)
    assert plan.asked(0) != Plan(11, 3, 1, seed=6).asked(0)
    assert {i for number in range(40) for i in plan.asked(number)} == set(range(11))


@pytest.mark.parametrize("records", [8, 7, 2, 0])
def test_a_pass_learns_from_every_record_once_and_passes_differ(records):
    plan = Plan(questions=8, prompts=8, updates=4, passes=2)
    turns = [[i for step in range(4 * turn, 4 * turn + 4) for i in plan.part(3, step, records)] for turn in (0, 1)]
    assert [sorted(turn) for turn in turns] == [list(range(records))] * 2
    assert records < 7 or turns[0] != turns[1]


def test_the_same_prompt_is_drawn_with_another_seed_in_each_round():
    plan = Plan(questions=2, prompts=2, updates=1)
    assert len({plan.seed_of(number) for number in range(50)}) == 50


def test_epochs_end_the_prompts():
    plan = Plan(questions=5, prompts=2, updates=1, epochs=2)
    assert [plan.ended(number) for number in (0, 3, 4)] == [False, False, True]
    assert not Plan(questions=5, prompts=2, updates=1).ended(10**6)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"questions": 3, "prompts": 4, "updates": 1}, "rollouts.prompts is 4, and there are 3 prompts that fit"),
        ({"questions": 9, "prompts": 4, "updates": 5}, "rollouts.updates is 5, and a round has 4 prompts"),
    ],
)
def test_a_round_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**sizes)


def test_the_derived_numbers_are_said():
    said = Plan(questions=100, prompts=8, updates=2, passes=2).said(samples=4)
    assert "8 prompts × 4 samples = 32 answers, 4 updates on 4 prompts, 2 passes each" in said
    assert "100 prompts = 12 rounds = 48 steps" in said and "at most 3 updates old" in said
