"""reasoning-gym's tasks as a verifier (the extra `corpus`); the package is imported where a task is made, not before."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, Values, checked


@dataclasses.dataclass(frozen=True)
class Task:
    """reasoning-gym's own score of an answer, 0 to 1.

    A record's id says which question it is, `TASK:SEED:INDEX`; the question is made again, and has to stand in the record's
    prompt: answers are never checked against another one's. With a deadline: `deadline.InProcess("reasoning_gym", options)`.

    Raises:
      ValueError: the package is not installed.
    """

    name: str = "reasoning_gym"
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
    """Task → the options that its questions were made with."""

    def __post_init__(self) -> None:
        try:
            importlib.import_module("reasoning_gym")
        except ImportError:
            raise ValueError("reasoning-gym is not installed; pip install 'rmjax[corpus]'") from None

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `reward.Reward`."""
        asked = [[{"id": c.id, "prompt": c.prompt, "output": output} for output in c.outputs] for c in records]
        return checked(records, [[self._safely(each) for each in one] for one in asked], self.name)

    def _safely(self, asked: Mapping[str, Any]) -> object:
        try:
            return self.of(asked)
        except Exception as error:  # a scorer of reasoning-gym's may choke on what a policy writes
            return Failure(type(error).__name__)

    def of(self, asked: Mapping[str, Any]) -> float | Failure:
        """The score of {"id", "prompt", "output"}, or why there is none."""
        task, _, place = str(asked["id"]).partition(":")
        seed, _, index = place.partition(":")
        if not (task and seed.isdecimal() and index.isdecimal()):
            return Failure("the record's id is not TASK:SEED:INDEX")
        dataset = self._dataset(task, int(seed), int(index) + 1)
        if dataset is None:
            return Failure("reasoning-gym has no such task")
        entry = dataset[int(index)]
        if entry["question"].strip() not in asked["prompt"]:
            return Failure("the prompt is not the question of the record's id")
        return float(dataset.score_answer(answer=asked["output"].strip(), entry=entry))

    def _dataset(self, task: str, seed: int, size: int) -> Any:
        return _dataset(task, seed, size, tuple(sorted(self.options.get(task, {}).items())))


@functools.lru_cache(maxsize=256)
def _dataset(task: str, seed: int, size: int, options: tuple[tuple[str, Any], ...]) -> Any:
    gym = importlib.import_module("reasoning_gym")
    try:
        return gym.create_dataset(task, seed=seed, size=size, **dict(options))
    except ValueError:
        return None
