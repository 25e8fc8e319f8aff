"""A judge as a scorer: records → questions → replies → scores, and a report of what could not be read and of position bias."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import ScoreError, Scores, checked
from rmjax.evaluate.statistics import interval
from rmjax.judges.forms import Unread
from rmjax.judges.kinds import KINDS, Place, Reading, fields_of
from rmjax.judges.replies import Question, Replies
from rmjax.judges.spec import Spec
from rmjax.judges.templates import conversation

MISSING = "a question without a reply"
UNREADABLE = "a question without a readable reply"
CUT_OFF = "cut off before a verdict"
Replied = dict[Place, list[Reading | Unread]]
"""Of one record: what each reply to each question says."""


class Judge:
    """A generator that evaluates, by a file of prompts and rules. A `Scorer`, for records that it has a score of.

    Args:
      spec: what is asked and how replies are read.
      replies: the generator, and what it has said already.
    """

    def __init__(self, spec: Spec, replies: Replies):
        self.spec, self.replies, self._kind = spec, replies, KINDS[spec.rules.kind]
        self.name = f"{spec.name} by {replies.generator.name}"

    @property
    def counts(self) -> Counter[str]:
        """Why replies could not be had → how many."""
        return self.replies.counts.copy()

    def questions(self, c: Comparison) -> dict[Place, Question]:
        """What is asked of a record."""
        return {place: self._question(c, place) for place in self._kind.places(c)}

    def _question(self, c: Comparison, place: Place) -> Question:
        fields = fields_of(self.spec, c, place)
        prompt = conversation(self.spec.system.render(**fields), self.spec.prompt.render(**fields))
        return Question(
            prompt, self.spec.rules.votes, f"{c.id or c.place} {self.spec.name} {'-'.join(map(str, place))}"
        )

    def is_answered(self, c: Comparison) -> bool:
        """Whether all replies about a record are there."""
        asked = list(self.questions(c).values())
        return all(len(r) == question.samples for r, question in zip(self.replies.kept(asked), asked, strict=True))

    def attempt(self, records: Sequence[Comparison]) -> list[list[float] | Unread]:
        """The scores of each record, or why it has none: none is made of replies that are missing or cannot be read."""
        asked = [self.questions(c) for c in records]
        self.replies.ask([question for of_record in asked for question in of_record.values()])
        return [self._scored(c, self._kept(of_record)) for c, of_record in zip(records, asked, strict=True)]

    def score(self, records: Sequence[Comparison], progress: bool = False) -> Scores:
        """The scores of each record.

        Raises:
          ScoreError: a record has none; `attempt` goes on without it.
        """
        del progress
        found = self.attempt(records)
        for c, scores in zip(records, found, strict=True):
            if isinstance(scores, Unread):
                place = c.place or c.id or f"the record with the prompt {c.prompt[:40]!r}"
                raise ScoreError(
                    f"{place}: {self.name} gave no score ({scores.reason}); leave the record out, or ask again"
                )
        return checked(records, [scores for scores in found if not isinstance(scores, Unread)])

    def _kept(self, asked: dict[Place, Question]) -> Replied:
        kept = self.replies.kept(list(asked.values()))
        cut = [[bool(more.get("truncated")) for more in self.replies.facts(question)] for question in asked.values()]
        return {
            place: [self._read(reply, is_cut) for reply, is_cut in zip(replies, of_place, strict=True)]
            for place, replies, of_place in zip(asked, kept, cut, strict=True)
        }

    def _read(self, reply: str, is_cut: bool) -> Reading | Unread:
        found = self._kind.read(self.spec, reply)
        return Unread(CUT_OFF) if is_cut and isinstance(found, Unread) else found

    def _scored(self, c: Comparison, replied: Replied) -> list[float] | Unread:
        if not all(replied.values()):
            return Unread(MISSING)
        readings = readable(replied)
        if not all(readings.values()):
            return Unread(UNREADABLE)
        return self._kind.score(self.spec, len(c.outputs), readings)

    def report(self, records: Sequence[Comparison], seed: int = 0) -> dict[str, Any]:
        """What there is to know of the replies about these records; nothing is asked.

        Returns:
          the rules; `replies`, how many there are, and how many are `missing`; `unread`, reason → replies; `unjudged`, reason →
          records; `agreement`, of a question's readable replies with their most frequent one, where several were asked for; of a
          pairwise judge `position`.
        """
        replied = [self._kept(self.questions(c)) for c in records]
        said = [r for of_record in replied for replies in of_record.values() for r in replies]
        wanted = sum(map(len, replied)) * self.spec.rules.votes
        outcomes = [self._scored(c, found) for c, found in zip(records, replied, strict=True)]
        rules = self.spec.rules
        found = {
            "judge": self.spec.name, "generator": self.replies.generator.name, "kind": rules.kind, "votes": rules.votes,
            "combine": rules.combine, "replies": len(said), "missing": wanted - len(said),
            "unread": dict(Counter(reply.reason for reply in said if isinstance(reply, Unread))),
            "unjudged": dict(Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Unread))),
        }  # fmt: skip
        if rules.votes > 1:
            found["agreement"] = _agreement(replied)
        if rules.kind == "pairwise":
            readings = [readable(of_record) for of_record in replied]
            found |= {"inconsistent": rules.inconsistent, "position": position(records, readings, seed)}
        return found


def readable(replied: Replied) -> dict[Place, list[Reading]]:
    """The replies that could be read."""
    return {p: [reply for reply in replies if not isinstance(reply, Unread)] for p, replies in replied.items()}


def _agreement(replied: Sequence[Replied]) -> float | None:
    groups = [Counter(replies) for of_record in replied for replies in readable(of_record).values() if len(replies) > 1]
    return float(np.mean([max(group.values()) / group.total() for group in groups])) if groups else None


def position(
    records: Sequence[Comparison], readings: Sequence[dict[Place, list[Reading]]], seed: int = 0
) -> dict[str, Any]:
    """What the place of an answer does to a pairwise judge.

    Returns:
      `first`: of replies that name a winner, the fraction that names the answer that stands first, ½ without bias; `ties`, the
      fraction of replies that name none; of pairs of which both orders could be read, `pairs`, the fraction `consistent` (both
      orders prefer the same answer, or none), and how many name the first or the second place in both. Intervals resample
      prompts.
    """
    said = [(c.prompt, v) for c, found in zip(records, readings, strict=True) for rs in found.values() for (v,) in rs]
    decided = [(prompt, value) for prompt, value in said if value != 0.5]
    pairs = [
        (c.prompt, _side(found[i, j]), _side(found[j, i]))
        for c, found in zip(records, readings, strict=True)
        for i, j in itertools.combinations(range(len(c.outputs)), 2)
        if found[i, j] and found[j, i]
    ]
    return {
        "first": interval([value for _, value in decided], [prompt for prompt, _ in decided], seed),
        "ties": 1 - len(decided) / len(said) if said else None,
        "pairs": len(pairs),
        "consistent": interval([float(a == -b) for _, a, b in pairs], [prompt for prompt, *_ in pairs], seed),
        "first_twice": sum(a > 0 and b > 0 for _, a, b in pairs),
        "second_twice": sum(a < 0 and b < 0 for _, a, b in pairs),
    }


def _side(readings: Sequence[Reading]) -> float:
    """1 where most replies name the first answer, −1 for the second, 0 for neither."""
    return float(np.sign(np.mean([value for (value,) in readings]) - 0.5))
