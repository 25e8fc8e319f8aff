"""A reward model, or any other scorer, as a reward: POLAR with the reference of each prompt."""

import dataclasses
from collections.abc import Sequence

from rmjax.data.record import Comparison
from rmjax.evaluate.scorers import ScoreError, Scorer
from rmjax.rewards.reward import Failure, Values, checked


@dataclasses.dataclass(frozen=True)
class OfScorer:
    """Scores of outputs. It reads texts and encodes them by its own tokenizer, never a policy's token ids.

    `RewardModel.load(path).scorer` is one. A record whose scores are not finite fails alone.
    """

    scorer: Scorer
    needs_reference: bool = False  # POLAR: a record without one fails, for its score would be of another input

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `Reward`."""
        bare = [dataclasses.replace(c, columns={}, ranks=None, scores=None, votes=None) for c in records]
        able = [i for i, c in enumerate(bare) if c.references or not self.needs_reference]
        found: list[list[object]] = [[Failure("no reference")] * len(c.outputs) for c in bare]
        for i, values in zip(able, self._scores([bare[i] for i in able]), strict=True):
            found[i] = list(values)
        return checked(records, found, self.name)

    def _scores(self, records: Sequence[Comparison]) -> Sequence[Sequence[object]]:
        if not records:
            return []
        try:
            return self.scorer.score(records)
        except ScoreError:
            if len(records) == 1:
                return [[Failure("the score is not finite")] * len(records[0].outputs)]
            middle = len(records) // 2  # halves find the record to blame in few calls
            return [*self._scores(records[:middle]), *self._scores(records[middle:])]
