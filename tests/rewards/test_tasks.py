"""reasoning-gym as a verifier, with a stand-in of its interface; with the package itself where it is installed."""

import sys
import types

import pytest

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure
from rmjax.rewards.tasks import Task


class Sums:
    """A data set of reasoning-gym's: random access, and a score of an answer."""

    def __init__(self, seed, size, low=0):
        self.seed, self.size, self.low = seed, size, low

    def __getitem__(self, index):
        assert index < self.size
        a = self.seed + index + self.low
        return {"question": f"What is {a} + 1?", "answer": str(a + 1), "metadata": {}}

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else float(answer) * 0


@pytest.fixture
def gym(monkeypatch):
    module = types.ModuleType("reasoning_gym")

    def create_dataset(name, **options):
        if name != "sums":
            raise ValueError(name)
        return Sums(**options)

    module.create_dataset = create_dataset
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def test_an_answer_is_checked_against_its_own_question(gym):
    c = Comparison("Think. What is 10 + 1?", ("11", " 11\n", "12", "eleven"), id="sums:7:3")
    assert Task()([c]) == [[1.0, 1.0, 0.0, Failure("ValueError")]]
    assert Task(options={"sums": {"low": 3}})([Comparison("What is 10 + 1?", ("11",), id="sums:7:0")]) == [[1.0]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sums:7:4", "the prompt is not the question of the record's id"),
        ("other:7:3", "reasoning-gym has no such task"),
        ("", "the record's id is not TASK:SEED:INDEX"),
        ("sums:7", "the record's id is not TASK:SEED:INDEX"),
        ("sums:-1:3", "the record's id is not TASK:SEED:INDEX"),
    ],
)
def test_another_question_is_a_failure(gym, name, reason):
    assert Task()([Comparison("What is 10 + 1?", ("11",), id=name)]) == [[Failure(reason)]]


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"pip install 'rmjax\[corpus\]'"):
        Task()


def test_the_package_itself():
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", seed=5, size=3)[2]
    c = Comparison(entry["question"], (entry["answer"], "no number"), id="chain_sum:5:2")
    (values,) = Task()([c])
    assert values[0] == 1.0 and not isinstance(values[1], Failure) and values[1] < 1
