"""Which prompts a round asks, and which of its answers a step learns from: functions of seed, round and step alone."""

import dataclasses

import numpy as np

from rmjax.sections import number, pattern


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """`config.rollouts`: rounds of answers that the policy gives while it learns (data.kind=rollouts)."""

    categories: str = pattern("")  # regular expression that a prompt's whole category must match; empty = all prompts
    prompts: int = number(8, low=1)  # that a round asks, each once
    samples: int = number(8, low=1)  # answers to each of them
    updates: int = number(
        1, low=1
    )  # steps that one pass over a round's answers takes, each on an equal part of its prompts
    passes: int = number(1, low=1)  # over a round's answers; 1 = each answer is learned from once
    max_new_tokens: int = number(128, low=1)  # tokens of an answer; a longer one is cut off, and `truncated`
    stop: tuple[str, ...] = ()  # texts that end an answer, beside the format's end token
    refresh: int = number(0, low=0)  # rounds after which the reference becomes the policy as it is; 0 = never
    measure_kl: bool = True  # False: log-probabilities of the reference only where the loss reads them


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the rounds over a file of prompts.

    Raises:
      ValueError: fewer prompts than a round asks.
    """

    questions: int  # prompts that there are
    prompts: int  # of a round
    updates: int  # steps of one pass over a round
    passes: int = 1
    seed: int = 0
    epochs: int = 0  # passes over the prompts; 0 = endless

    def __post_init__(self) -> None:
        if self.prompts > self.questions:
            raise ValueError(
                f"config.rollouts.prompts is {self.prompts}, and there are {self.questions} prompts that fit; lower it, or give "
                "more prompts"
            )
        if self.updates > self.prompts:
            raise ValueError(
                f"config.rollouts.updates is {self.updates}, and a round has {self.prompts} prompts to share out; lower it"
            )

    @property
    def steps(self) -> int:
        """Of a round."""
        return self.updates * self.passes

    @property
    def rounds(self) -> int:
        """Of an epoch. What is left of the prompts then waits for the next epoch's order, so no round asks one twice."""
        return self.questions // self.prompts

    def at(self, step: int) -> tuple[int, int]:
        """(round, number of the step in it) of a step from 1, both from 0."""
        return divmod(step - 1, self.steps)

    def ended(self, number: int) -> bool:
        """Whether the prompts have ended before this round."""
        return bool(self.epochs) and number >= self.epochs * self.rounds

    def asked(self, number: int) -> list[int]:
        """Indices of the prompts of a round."""
        epoch, place = divmod(number, self.rounds)
        order = self._random(epoch).permutation(self.questions)
        return [int(i) for i in order[place * self.prompts : (place + 1) * self.prompts]]

    def part(self, number: int, step: int, records: int) -> list[int]:
        """Which of a round's records its step (from 0) learns from."""
        turn, update = divmod(step, self.updates)
        order = self._random(number, 1 + turn).permutation(records)
        return [int(i) for i in np.array_split(order, self.updates)[update]]

    def seed_of(self, number: int) -> int:
        """That a round's answers are drawn with: another one each round, since prompts come again."""
        return int(self._random(number, 0).integers(2**31))

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed & 0xFFFFFFFF, *key])

    def said(self, samples: int) -> str:
        """The numbers that follow from the config, for the log."""
        each = f"{self.prompts / self.updates:.3g} prompts" + (f", {self.passes} passes" if self.passes > 1 else "")
        return (
            f"a round: {self.prompts} prompts × {samples} samples = {self.prompts * samples} answers, {self.steps} updates on "
            f"{each} each; an epoch: {self.questions} prompts = {self.rounds} rounds = {self.rounds * self.steps} steps; answers "
            f"are at most {self.steps - 1} updates old"
        )
